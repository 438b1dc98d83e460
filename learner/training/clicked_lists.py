"""Lists with a click, scored as they would have been served, for the evaluation of purchases.

Legend: N samples of a step, n of them in lists with a click.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from learner.evaluation.clicked_ranks import ClickedRanks, Ranks
from learner.evaluation.list_metrics import gains, list_sums
from learner.parts.part import Pairs
from learner.request import Document
from learner.served import ServedScore, ranking_score
from learner.training.scored import Scored
from weighting.sample import FIRST_COPY, Sample
from weighting.tasks import TASKS, TaskName, chain, root
from weighting.weigher import Weigher

Array = NDArray[np.float64]
Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Memory:
    """What the pair memory of a task said of n pairs, before it learned any sample of the step."""

    logit: Array
    base: float


class ClickedLists:
    """The n samples of a step that are shown items of lists with a click.

    Attributes:
        places: (n,) their places among the N, ascending.
        prior: task -> p(y=1) before the step.
    """

    def __init__(self, samples: Sequence[Sample], weigher: Weigher) -> None:
        """Ask the pair memory of the tasks behind a click; call before the weigher learns."""
        task = root()
        shown = [
            place
            for place, s in enumerate(samples)
            if s.task == task and s.copy_kind is FIRST_COPY and s.list_id
        ]
        clicked = [samples[place].list_id for place in shown if samples[place].label]
        by_list: dict[str, list[int]] = {list_id: [] for list_id in clicked}
        for place in shown:
            if samples[place].list_id in by_list:
                by_list[samples[place].list_id].append(place)
        self._samples = samples
        self.prior = {task: weigher.prior(task) for task in TASKS}
        places = sorted(place for own in by_list.values() for place in own)
        self.places: Places = np.array(places, dtype=np.intp)
        self._memory = {
            task: _Memory(
                logit=_memory(task, samples, by_list, weigher)[self.places],
                base=weigher.pair_memory_base(task),
            )
            for task in chain()[1:]
        }

    def restrict(self, drawn: NDArray[np.bool_]) -> None:
        """Leave out what the encoder was not given; `drawn` (N,) says what it was."""
        left = drawn[self.places]
        self.places = self.places[left]
        self._memory = {
            task: replace(memory, logit=memory.logit[left]) for task, memory in self._memory.items()
        }

    def can_be_served(self, encoder: Mapping[TaskName, Array]) -> bool:
        """Return whether there are any, with numbers (N,) of the encoder for each later task.

        A step goes on without them: they are no sample's own logit.
        """
        finite = (np.isfinite(encoder[task][self.places]).all() for task in self._memory)
        return len(self.places) > 0 and all(finite)

    def served(
        self,
        score: ServedScore,
        logit: Array,
        encoder: Scored,
        pairs: Callable[[Places, Mapping[str, Array]], Pairs],
    ) -> Array:
        """Return what ranking would have sorted the n samples by; call before anything learns.

        Args:
            score: stackers and parts.
            logit: (N,) served logits of the task without a parent.
            encoder: (N,) logits of the encoder.
            pairs: makes pairs of some places and what is given for them.
        """
        probability = {root(): expit(logit[self.places])}
        for task, memory in self._memory.items():
            given = score.given(
                task,
                encoder=encoder.by_task[task][self.places].astype(np.float64),
                base=encoder.base[self.places].astype(np.float64),
                memory=memory.logit,
                memory_base=memory.base,
                prior=self.prior,
            )
            said = score.ask(task, pairs(self.places, given))
            probability[task] = expit(score.logit(task, said))
        return ranking_score(probability)

    def keep(
        self,
        into: ClickedRanks,
        score: Array,
        examination: Array,
        factor: Array,
        num_earlier: Places,
    ) -> None:
        """Keep where the clicked items ranked.

        Args:
            into: takes them.
            score: (n,) of `served`.
            examination: (N,) probabilities.
            factor: (N,) by which a sample counts.
            num_earlier: (N,) lists of the same query before.
        """
        samples = [self._samples[place] for place in self.places]
        by_list: dict[str, list[int]] = {}
        for place, s in enumerate(samples):
            by_list.setdefault(s.list_id, []).append(place)
        for own in by_list.values():
            shown = [-float(samples[place].position or 0) for place in own]
            if len(own) < 2 or not all(shown):
                continue  # it has no order
            for place in own:
                s = samples[place]
                if not s.label:
                    continue
                alone = np.array([float(each == place) for each in own])
                ours, theirs = (_ranks(order, alone) for order in (score[own], np.array(shown)))
                at = self.places[place]
                gain = factor[at] * float(gains(np.ones(1), examination[[at]])[0])
                into.keep(
                    s.list_id,
                    s.item_id or s.text,
                    Ranks(gain, ours[0], theirs[0], ours[1], theirs[1]),
                    num_earlier=int(num_earlier[at]),
                    final_us=s.shown_us + s.window_us + 2 * s.attribution_us,
                    time_us=s.emitted_us,
                )


def _ranks(order: Array, alone: Array) -> tuple[float, float]:
    """Return NDCG and reciprocal rank of one item of a list, by an order of its items."""
    sums = list_sums(np.zeros(len(order), dtype=np.intp), order, alone)
    return float(sums.dcg[0]), float(sums.reciprocal_rank[0])


def _memory(
    task: TaskName,
    samples: Sequence[Sample],
    by_list: Mapping[str, Sequence[int]],
    weigher: Weigher,
) -> Array:
    """Return pair-memory logits (N,) of the given lists, 0 elsewhere."""
    found = np.zeros(len(samples))
    for places in by_list.values():
        own = [samples[place] for place in places]
        documents = [Document(text=s.text, id=s.item_id, attributes=s.attributes) for s in own]
        found[list(places)] = weigher.pair_memory_logits(task, own[0].query, documents)
    return found
