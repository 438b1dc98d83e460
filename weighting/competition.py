"""Competition of weighting schemes: what each would have made of the stream, judged before it.

Legend: E candidates, N samples of a batch, n of one shown list, D width.

A candidate is a scheme with its exponent. Each has a stand-in of the trained model that learns
every sample under the candidate's weights. List by list, before it is learned:

1. each stand-in's logits are inverted as serving would, z_e, and lose, by delay and position,
   l_e = sum of r [-y log(theta sigma(z_e)) - (1 - y) log(1 - theta sigma(z_e))];
2. Hedge with fixed share turns the losses into probabilities of the candidates (rate 1: in nats,
   the log loss of the mixture is at most that of the best sequence of candidates + `mix_regret`);
3. the candidate in force changes if another leads by a margin (`Choice`);
4. the stand-ins learn the list.

The encoder's weights are those of the candidate in force.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from weighting.checks import check_finite
from weighting.constraints import NotNegative, Positive, SettingError, Text, check
from weighting.estimators.choice import Choice
from weighting.estimators.hedge import Hedge
from weighting.estimators.stand_in import StandIns
from weighting.sample import FIRST_COPY, Sample
from weighting.schemes.registry import parse_candidates
from weighting.schemes.scheme import Scheme
from weighting.tasks import TASKS, TaskName
from weighting.weighted import WeightedBatch

Array = NDArray[np.float64]
_MOST_CHANGES = 16
_LARGEST_LOGIT = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CompetitionConfig:
    """Candidates of `weighting.exponent: auto`, and when the one in force changes."""

    candidates: Annotated[
        Text,
        Meta(description="scheme or scheme:exponent, with commas; the first is in force at first."),
    ] = "uniform, ratio:0.25, ratio:0.5, ratio:1, softmax_share:1"
    share: Annotated[
        float, Meta(gt=0, lt=0.1, description="Probability, per list, that another becomes best.")
    ] = 1e-4
    margin: Annotated[
        Positive,
        Meta(description="Lead in log probability at which the candidate in force changes."),
    ] = 5.0
    min_samples: Annotated[
        NotNegative, Meta(description="Fewest samples between changes, and before any is judged.")
    ] = 5_000.0
    half_life_samples: Annotated[
        Positive,
        Meta(description="Samples after which what the encoder was trained under counts half."),
    ] = 20_000.0

    def __post_init__(self) -> None:
        """Check every field, and that a lead can reach the margin."""
        check(self, "competition")
        try:
            number = len(parse_candidates(self.candidates))
        except ValueError as error:
            raise SettingError(
                "competition", "candidates", self.candidates, str(error), None
            ) from error
        most = float(np.log(number / self.share))
        if self.margin >= most:
            expected = f"a number < log(candidates / share) = {most:.1f}"
            raise SettingError("competition", "margin", self.margin, expected, None)


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change of the candidate in force.

    Attributes:
        time_us: event time of the list after which it changed.
        before: name of the candidate before.
        after: name of the candidate since.
        lead: of the new one, in log probability.
    """

    time_us: int
    before: str
    after: str
    lead: float


class Competition:
    """Stand-ins, probabilities and choice of the candidates."""

    def __init__(self, config: CompetitionConfig, levels: Mapping[TaskName, float]) -> None:
        """Start with the first candidate in force.

        Args:
            config: the settings.
            levels: task -> logit of p(y=1) before any sample.
        """
        self.config = config
        self.candidates: Mapping[str, Scheme] = parse_candidates(config.candidates)
        self._names = tuple(self.candidates)
        self._hedge = Hedge(len(self._names), rate=1.0, share=config.share)
        self._choice = Choice(margin=config.margin, min_samples=config.min_samples)
        self._stand_ins = {
            task: StandIns(
                len(self._names), level=levels[task], half_life_samples=config.half_life_samples
            )
            for task in TASKS
        }
        self._num_samples = 0
        self._trained_under = np.zeros(len(self._names))
        self._trained_under[0] = 1.0
        self.num_changes = 0
        self.changes: tuple[Change, ...] = ()

    @property
    def in_force(self) -> int:
        """Number of the candidate in force."""
        return self._choice.expert

    def probabilities(self) -> dict[str, float]:
        """Probability of each candidate, by name."""
        return dict(zip(self._names, self._hedge.get().tolist(), strict=True))

    def exponent(self) -> float:
        """Effective exponent b: a logit of the encoder is 1 + b times as steep as its inverse."""
        flatter = [1 / (1 + scheme.exponent) for scheme in self.candidates.values()]
        return float(1 / (self._trained_under * np.array(flatter)).sum() - 1)

    def invert(self, logit: Array, prior: float) -> Array:
        """Mean of the candidates' inversions (N,), by how much was trained under each."""
        total = np.zeros(np.shape(logit))
        for share, scheme in zip(
            self._trained_under.tolist(), self.candidates.values(), strict=True
        ):
            if share > 0:
                total = total + share * scheme.invert(logit, prior)
        return total

    def learn(self, batch: WeightedBatch, products: Array) -> tuple[Change, ...]:
        """Judge and teach the stand-ins list by list; return changes of the candidate in force.

        Args:
            batch: N samples, weighed by every candidate, and trained under that in force.
            products: (N, D) vectors of query and item by the starting encoder, multiplied element
                by element.

        Raises:
            WeightError: a product is NaN or infinite.
        """
        check_finite("product", products.sum(axis=1))
        number = len(batch.samples)
        keep = 2.0 ** (-number / self.config.half_life_samples)
        self._trained_under = keep * self._trained_under
        self._trained_under[self.in_force] += 1 - keep
        changes = []
        for own in _lists(batch.samples):
            change = self._learn_list(batch, products[own], own)
            changes += [change] if change else []
        self.num_changes += len(changes)
        self.changes = (*self.changes, *changes)[-_MOST_CHANGES:]
        return tuple(changes)

    def _learn_list(self, batch: WeightedBatch, products: Array, own: slice) -> Change | None:
        first = batch.samples[own.start]
        stand_ins, label = self._stand_ins[first.task], batch.label[own]
        change, number = None, own.stop - own.start
        if self._num_samples >= self.config.min_samples:
            logits = stand_ins.predict(products)
            prior = float(batch.p_y[own.start] if label[0] > 0 else 1 - batch.p_y[own.start])
            inverted = np.stack(
                [s.invert(z, prior) for s, z in zip(self.candidates.values(), logits, strict=True)]
            )
            theta, correction = batch.examination[own], batch.correction[own]
            self._hedge.update(corrected_loss(inverted, label, correction, theta))
            change = self._choose(first.event_time_us, number)
        stand_ins.learn(products, label, batch.candidate_weight[:, own], batch.examination[own])
        self._num_samples += number
        return change

    def _choose(self, time_us: int, num_samples: int) -> Change | None:
        before, log_pi = self.in_force, self._hedge.log_probability()
        if not self._choice.update(log_pi, num_samples):
            return None
        lead = float(log_pi[self.in_force] - log_pi[before])
        names = self._names[before], self._names[self.in_force]
        return Change(time_us=time_us, before=names[0], after=names[1], lead=lead)

    def snapshot(self) -> dict[str, Any]:
        """State after the last `learn`, as plain numbers."""
        return {
            "candidates": list(self._names),
            "hedge": self._hedge.snapshot(),
            "choice": self._choice.snapshot(),
            "stand_ins": {task: own.snapshot() for task, own in self._stand_ins.items()},
            "num_samples": self._num_samples,
            "trained_under": self._trained_under.tolist(),
            "num_changes": self.num_changes,
            "changes": [msgspec.to_builtins(change) for change in self.changes],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`; other candidates begin afresh."""
        if tuple(state["candidates"]) != self._names:
            return
        self._hedge.restore(state["hedge"])
        self._choice.restore(state["choice"])
        for task, own in self._stand_ins.items():
            own.restore(state["stand_ins"][task])
        self._num_samples = state["num_samples"]
        self._trained_under = np.array(state["trained_under"], dtype=np.float64)
        self.num_changes = state["num_changes"]
        self.changes = msgspec.convert(tuple(state["changes"]), tuple[Change, ...])


def corrected_loss(logit: Array, label: Array, correction: Array, examination: Array) -> Array:
    """Log loss (E,) of n samples, corrected for delay and position, less what all have in common.

    Args:
        logit: (E, n) of p(y=1|x) as if shown first.
        label: (n,) 0 or 1.
        correction: (n,) r, the delay correction.
        examination: (n,) theta.
    """
    z = np.clip(logit, -_LARGEST_LOGIT, _LARGEST_LOGIT)
    softplus = np.logaddexp(0.0, z)
    with np.errstate(divide="ignore"):
        unexamined = np.log1p(-examination)  # -inf at theta = 1
    not_clicked = softplus - np.logaddexp(0.0, z + unexamined)
    loss: Array = (correction * np.where(label > 0, softplus - z, not_clicked)).sum(axis=-1)
    return loss


def _lists(samples: Sequence[Sample]) -> Iterator[slice]:
    """Divide a batch into runs of samples that one list emitted, and single ones."""
    start, before = 0, None
    for i, s in enumerate(samples):
        listed = s.list_id and TASKS[s.task].parent is None and s.copy_kind is FIRST_COPY
        own = (s.task, s.list_id) if listed else None
        if i > start and (own is None or own != before):
            yield slice(start, i)
            start = i
        before = own
    if samples:
        yield slice(start, len(samples))
