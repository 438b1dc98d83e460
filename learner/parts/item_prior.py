"""Prior of an item: its clicks over all queries, beside those that were to be expected.

Legend: N pairs.

Item i has c_i clicks, and e_i = sum theta sigma(z) is what the other parts of the score
expected of its showings, but for those that know the pair itself; theta is the examination
probability and z their sum in logits. Both fade in event time with one half-life.

    value = log (c_i + k) / (e_i + k),

the log of observed over expected under a gamma prior of k expected ones (DuMouchel 1999): 0 for an
item that does as well as the rest of the score says, and shrunk to 0 where it was shown little.
Beside an average instead, an item that is often shown where it does not belong would seem a bad
one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from scipy.special import expit

from learner.parts.part import Array, Outcomes, Pairs
from weighting.checks import check_examination, check_finite, check_labels, check_weights
from weighting.snapshot import opened
from weighting.tasks import TASKS, TaskName

FORMAT = 3
_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemPriorConfig:
    """Shrinkage, memory and bound of the counts.

    Attributes:
        pseudo_clicks: k, expected clicks that the rest of the score is worth.
        half_life_days: of clicks observed and expected, in event time.
        max_items: the item that was not shown for longest is forgotten first.
    """

    pseudo_clicks: float = 2.0
    half_life_days: float = 30.0
    max_items: int = 100_000


class _Clicks:
    """Fading clicks, observed and expected, up to a time."""

    __slots__ = ("expected", "observed", "time_us")

    def __init__(self, observed: float = 0.0, expected: float = 0.0, time_us: int = 0) -> None:
        self.observed, self.expected, self.time_us = observed, expected, time_us

    def add(self, observed: float, expected: float, time_us: int, half_life_us: float) -> None:
        """Add at a time; of two times out of order the later one stands."""
        keep = 2.0 ** (-max(time_us - self.time_us, 0) / half_life_us)
        self.observed = keep * self.observed + observed
        self.expected = keep * self.expected + expected
        self.time_us = max(self.time_us, time_us)


class ItemPrior:
    """Log of observed over expected clicks; silent about an item that was never shown.

    The ratio is as of the item's last showing: while nothing is shown, nothing fades.
    """

    columns: Mapping[str, float] = {"item_prior": 0.5}

    def __init__(self, config: ItemPriorConfig | None = None) -> None:
        """Start without items."""
        self.config = config or ItemPriorConfig()
        self._items: OrderedDict[str, _Clicks] = OrderedDict()

    def predict(self, pairs: Pairs) -> Array:
        """Return the log ratios (1, N). Pure."""
        k = self.config.pseudo_clicks
        rows = [self._items.get(item) for item in pairs.items]
        numbers = [(np.nan, np.nan) if r is None else (r.observed, r.expected) for r in rows]
        observed, expected = np.array(numbers, dtype=np.float64).reshape(-1, 2).T
        found: Array = np.log((observed + k) / (expected + k))
        return found[None, :]

    def learn(self, task: TaskName, pairs: Pairs, outcomes: Outcomes) -> None:
        """Count N showings.

        Raises:
            WeightError: a label, weight, examination probability or logit is NaN or out of range.
        """
        if TASKS[task].parent is not None:
            return
        check_labels(outcomes.label)
        check_weights("weight", outcomes.weight)
        check_examination(outcomes.examination)
        check_finite("logit", outcomes.logit)
        observed = outcomes.label * outcomes.weight * outcomes.factor
        seen = outcomes.discount * outcomes.factor * outcomes.examination
        clicks = seen * expit(outcomes.logit)
        expected = np.where(outcomes.shown, clicks, 0.0)
        known, half_life_us = self._items, self.config.half_life_days * _DAY_US
        columns = observed.tolist(), expected.tolist(), outcomes.time_us.tolist()
        for item, c, e, at in zip(pairs.items, *columns, strict=True):
            if not (c or e):
                continue
            found = known.get(item)
            if found is None:
                found = known[item] = _Clicks(time_us=at)
                if len(known) > self.config.max_items:
                    known.popitem(last=False)
            found.add(c, e, at, half_life_us)
            known.move_to_end(item)

    def snapshot(self) -> bytes:
        """Return all counts as msgpack, the item shown longest ago first."""
        clicks = [(c.observed, c.expected, c.time_us) for c in self._items.values()]
        state = {"format": FORMAT, "items": list(self._items), "clicks": clicks}
        return msgspec.msgpack.encode(state)

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: the bytes are not such a snapshot.
        """
        with opened(data, "item prior", format=FORMAT) as state:
            rows = zip(state["items"], state["clicks"], strict=True)
            self._items = OrderedDict((item, _Clicks(*clicks)) for item, clicks in rows)
