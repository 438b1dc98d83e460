"""Attribute-weighted choice: lifts of attribute values, and how much each attribute counts.

Legend: N pairs of a query and an item, S slots of attributes, M attribute values, T words.

Item j of a list is chosen with

    p_j = softmax_j(log theta_j + alpha_0 z_j + sum_s (alpha_s f_js + beta_s h_js)),

a conditional logit (McFadden 1974) under the position-based model: theta is the examination
probability, z what else is said of the pair, in logits. f and h of an item's attribute s are log
lifts of its value v, clicks observed over those expected, under any query and under the words t of
this one beyond that:

    f = log r_v / r,    h = sum_t log r_vt / r_v,

where r = (c + k) / (e + k) over everything, r_v = (c_v + k r) / (e_v + k) over the showings of v,
and r_vt = (c_vt + k' r_v) / (e_vt + k') over those under a query with the word t: each shrunk to
what it is a part of (a gamma prior of k expected clicks: DuMouchel 1999). Of an attribute that is a
list they are means over its texts; numbers are binned on a logarithmic scale; what is missing or
unknown is 0. All lifts are read before the list's labels are counted, so that alpha is learned on
what is not known yet. Counts and information fade in event time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from weighting.checks import check_examination, check_finite, check_labels, check_weights
from weighting.errors import SnapshotError
from weighting.estimators.conditional_logit import ConditionalLogit
from weighting.estimators.count_table import CountTable
from weighting.features import attribute_values, query_words
from weighting.sample import Attribute

Array = NDArray[np.float64]
Places = NDArray[np.intp]
Keys = NDArray[np.uint64]
_DAY_US = 86_400_000_000
_EVERYTHING = np.zeros(1, dtype=np.uint64)
_LEAST_EXAMINATION = 1e-6
_LONGEST_NAME = 100  # characters of an attribute's name


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeChoiceConfig:
    """Bounds, shrinkage and memory.

    Attributes:
        hash_bits: log2 of the number of counted values, and of values under a word.
        max_attributes: S; of further names nothing is learned.
        max_words: T, words of a query under which a value is counted.
        pseudo_clicks: k.
        pseudo_clicks_of_word: k'.
        start: alpha and beta before any choice.
        deviation: standard deviation of alpha and beta around it.
        half_life_days: of counts and of information, in event time.
    """

    hash_bits: int = 17
    max_attributes: int = 16
    max_words: int = 6
    pseudo_clicks: float = 5.0
    pseudo_clicks_of_word: float = 15.0
    start: float = 0.5
    deviation: float = 0.5
    half_life_days: float = 30.0


class Coefficients(NamedTuple):
    """How much an attribute counts in a choice.

    Attributes:
        alone: alpha, of its lift under any query.
        alone_error: standard error of alpha.
        by_query: beta, of its lift under the words of the query beyond that.
        by_query_error: standard error of beta.
    """

    alone: float
    alone_error: float
    by_query: float
    by_query_error: float

    def intervals(self) -> dict[str, tuple[float, float, float]]:
        """Return value, low and high of the 95 % interval of both, by what they are of."""
        pairs = {"any query": self[:2], "its words": self[2:]}
        return {
            of: (value, value - 1.96 * error, value + 1.96 * error)
            for of, (value, error) in pairs.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Values:
    """M attribute values of N pairs.

    Attributes:
        pair: (M,) number of the pair that has it.
        slot: (M,) of the attribute; values of others are left out.
        alone: (M,) key of the value.
        crossed: (M, T) its key under each word, 0 behind the last word.
    """

    pair: Places
    slot: Places
    alone: Keys
    crossed: Keys


class AttributeChoice:
    """Utility of an item's attributes under a query, learned from what lists were chosen from.

    >>> model = AttributeChoice()
    >>> model.predict(["shoes"], [{"brand": "acme"}]).tolist()
    [nan]
    """

    def __init__(self, config: AttributeChoiceConfig | None = None) -> None:
        """Start with nothing known."""
        self.config = c = config or AttributeChoiceConfig()
        self._counts = CountTable(
            hash_bits=c.hash_bits, half_life_seconds=c.half_life_days * _DAY_US / 1e6
        )
        many = 2 * c.max_attributes
        self._logit = ConditionalLogit(
            mean=[1.0] + [c.start] * many, precision=[c.deviation**-2] * (1 + many)
        )
        self._slots: dict[str, int] = {}  # numbered from 0 without a gap
        self._seen_us = [0] * c.max_attributes
        self._learned_us: int | None = None

    def coefficients(self) -> dict[str, Coefficients]:
        """Return how much each attribute counts, the names in order."""
        many = self.config.max_attributes
        known = np.stack([self._logit.mean, self._logit.standard_errors()])
        alone, by_query = known[:, 1 : 1 + many], known[:, 1 + many :]
        return {
            name: Coefficients(*alone[:, slot].tolist(), *by_query[:, slot].tolist())
            for name, slot in sorted(self._slots.items())
        }

    def predict(
        self, queries: Sequence[str], attributes: Sequence[Mapping[str, Attribute]]
    ) -> Array:
        """Return sum_s (alpha_s f_s + beta_s h_s) (N,), NaN where no value is known. Pure."""
        lifts, known = self._lifts(self._values(queries, attributes), len(queries))
        total = np.zeros(len(queries))
        for slot in range(len(self._slots)):
            for place in (slot, slot + self.config.max_attributes):
                total = total + self._logit.mean[1 + place] * lifts[place]
        return np.where(known, total, np.nan)

    def probabilities(
        self,
        queries: Sequence[str],
        attributes: Sequence[Mapping[str, Attribute]],
        lists: Places,
    ) -> Array:
        """Return the chance (N,) of each item within its list, by attributes alone. Pure."""
        lifts, _ = self._lifts(self._values(queries, attributes), len(queries))
        nothing = np.zeros(len(queries))
        return self._logit.probabilities(np.stack([nothing, *lifts]), nothing, lists)

    def learn(
        self,
        queries: Sequence[str],
        attributes: Sequence[Mapping[str, Attribute]],
        *,
        label: Array,
        weight: Array,
        exposure: Array,
        examination: Array,
        logit: Array,
        lists: Places,
        time_us: NDArray[np.int64],
    ) -> None:
        """Learn N pairs; of their order, only which new attributes are kept depends.

        Args:
            queries: their texts.
            attributes: of the items.
            label: (N,) 0 or 1.
            weight: (N,) of the labels, >= 0.
            exposure: (N,) share of a showing that each counts for, >= 0.
            examination: (N,) theta, in [0, 1].
            logit: (N,) z, as if shown first.
            lists: (N,) number of the list of each; negative for none.
            time_us: (N,) event times.

        Raises:
            WeightError: an input is NaN or out of range; nothing was learned.
        """
        check_labels(label)
        check_weights("weight", weight)
        check_weights("exposure", exposure)
        check_examination(examination)
        check_finite("logit", logit)
        observed, expected = label * weight, exposure * examination * expit(logit)
        counted = (observed > 0) | (expected > 0)
        if not counted.any():
            return
        now_us = int(time_us[counted].max())
        if self._counts.newest_us is not None:
            now_us = max(now_us, self._counts.newest_us)
        values = self._values(queries, attributes, now_us)
        if not len(values.pair):
            return
        lifts, _ = self._lifts(values, len(queries))
        listed = np.where(lists < 0, lists.max(initial=0) + 1 + np.arange(len(lists)), lists)
        offset = np.log(np.maximum(examination, _LEAST_EXAMINATION))
        inputs, since = np.stack([logit, *lifts]), now_us - (self._learned_us or now_us)
        keep = 2.0 ** (-since / (self.config.half_life_days * _DAY_US))
        if self._logit.learn(inputs, observed, offset, listed, keep=keep):
            self._learned_us = now_us
        self._count(values, observed, expected, now_us)

    def _take_slot(self, name: str, now_us: int) -> int | None:
        """Give a new name a free slot, or that of a name not seen for a half-life."""
        fit = len(name) <= _LONGEST_NAME and name.isprintable()
        slot = self._free_slot(now_us) if fit else None
        if slot is not None:
            self._slots[name] = slot
        return slot

    def _free_slot(self, now_us: int) -> int | None:
        if len(self._slots) < self.config.max_attributes:
            return len(self._slots)
        slot = min(range(len(self._seen_us)), key=self._seen_us.__getitem__)
        if now_us - self._seen_us[slot] <= self.config.half_life_days * _DAY_US:
            return None
        (oldest,) = [name for name, own in self._slots.items() if own == slot]
        del self._slots[oldest]
        self._logit.forget([1 + slot, 1 + slot + self.config.max_attributes])
        return slot

    def _values(
        self,
        queries: Sequence[str],
        attributes: Sequence[Mapping[str, Attribute]],
        now_us: int | None = None,
    ) -> _Values:
        """Look up the values of N pairs; with a time, new attributes take slots."""
        if now_us is not None:  # before any makes room for a new one
            for name in self._slots.keys() & {name for own in attributes for name in own}:
                self._seen_us[self._slots[name]] = now_us
        words: dict[str, list[int]] = {}
        most, slots = self.config.max_words, self._slots
        pair, slot, value, under = [], [], [], []
        for i, (query, own) in enumerate(zip(queries, attributes, strict=True)):
            if query not in words:
                found = query_words(query, most)
                words[query] = found + [0] * (most - len(found))
            asked = words[query]
            for name, hashed in attribute_values(own):
                at = slots.get(name)
                if at is None and now_us is not None:
                    at = self._take_slot(name, now_us)
                if at is None:
                    continue
                if now_us is not None:
                    self._seen_us[at] = now_us
                pair.append(i)
                slot.append(at)
                value.append(hashed)
                under.append(asked)
        hashes = np.array(value, dtype=np.uint64) << np.uint64(32)
        word = np.array(under, dtype=np.uint64).reshape(len(value), most)
        return _Values(
            pair=np.array(pair, dtype=np.intp),
            slot=np.array(slot, dtype=np.intp),
            alone=_mixed(hashes),
            crossed=np.where(word > 0, _mixed(hashes[:, None] | word), _EVERYTHING),
        )

    def _lifts(self, values: _Values, number: int) -> tuple[Array, NDArray[np.bool_]]:
        """Return (2 S, N) f and h, and which pairs (N,) have a known value."""
        k, k_word = self.config.pseudo_clicks, self.config.pseudo_clicks_of_word
        M, T = values.crossed.shape
        keys = np.concatenate([_EVERYTHING, values.alone, values.crossed.T.reshape(-1)])
        c, e = self._counts.get(keys)
        r = (c[0] + k) / (e[0] + k)
        c_v, e_v, c_vt, e_vt = c[1 : 1 + M], e[1 : 1 + M], c[1 + M :], e[1 + M :]
        r_v = (c_v + k * r) / (e_v + k)
        shrunk = (c_vt.reshape(T, M) + k_word * r_v) / (e_vt.reshape(T, M) + k_word)
        by_word = np.where(values.crossed.T > 0, np.log(shrunk / r_v), 0.0)
        h = np.zeros(M)
        for own in by_word:
            h = h + own
        heard = (c_v > 0) | (e_v > 0)
        lifts = np.concatenate(
            [self._means(np.log(r_v / r), values, number), self._means(h, values, number)]
        )
        return lifts, np.bincount(values.pair[heard], minlength=number) > 0

    def _means(self, lift: Array, values: _Values, number: int) -> Array:
        """Mean (S, N) of the lifts (M,) of each attribute's values, 0 where a pair has none."""
        shape = self.config.max_attributes, number
        places, size = values.slot * number + values.pair, shape[0] * number
        total, many = np.bincount(places, lift, size), np.bincount(places, minlength=size)
        mean: Array = (total / np.maximum(many, 1)).reshape(shape)
        return mean

    def _count(self, values: _Values, observed: Array, expected: Array, now_us: int) -> None:
        """Count the clicks (N,) of each value, of each under each word, and of everything."""
        under = values.crossed > 0
        crossed_pair = np.broadcast_to(values.pair[:, None], under.shape)[under]
        keys = np.concatenate([values.alone, values.crossed[under]])
        pair = np.concatenate([values.pair, crossed_pair])
        any_value = np.unique(values.pair)
        known, own = np.unique(keys, return_inverse=True)
        c = np.bincount(own, observed[pair], len(known)).astype(np.float64)
        e = np.bincount(own, expected[pair], len(known)).astype(np.float64)
        used = (c > 0) | (e > 0)
        whole = np.array([[clicks[any_value].sum()] for clicks in (observed, expected)])
        self._counts.add(_EVERYTHING, whole[0], whole[1], now_us)
        self._counts.add(known[used], c[used], e[used], now_us)

    def snapshot(self) -> dict[str, Any]:
        """State after the last `learn`, as plain numbers."""
        return {
            "counts": self._counts.snapshot(),
            "logit": self._logit.snapshot(),
            "slots": sorted(self._slots, key=self._slots.__getitem__),
            "seen_us": self._seen_us[: len(self._slots)],
            "learned_us": self._learned_us,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: it has another size, or its columns do not match.
        """
        names, seen = list(state["slots"]), list(state["seen_us"])
        most = self.config.max_attributes
        if len(names) > most or len(seen) != len(names):
            raise SnapshotError("attributes", len(names), f"at most {most}")
        self._counts.restore(state["counts"])
        self._logit.restore(state["logit"])
        self._slots = {name: slot for slot, name in enumerate(names)}
        self._seen_us = seen + [0] * (most - len(names))
        self._learned_us = state["learned_us"]


def _mixed(keys: Keys) -> Keys:
    """Spread keys over 64 bits, one to one (SplitMix64, Steele et al. 2014)."""
    x = keys + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Keys = x ^ (x >> np.uint64(31))
    return mixed
