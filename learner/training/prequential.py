"""Test, then train: what would have been served is evaluated before the score learns the labels.

Legend: N samples of a step, n of them of one task, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from learner.evaluation.clicked_ranks import ClickedRanks
from learner.evaluation.evaluation import Evaluation
from learner.evaluation.judged import NUM_KEPT, Details, Judged
from learner.evaluation.query_frequency import QueryFrequency
from learner.parts.part import Outcomes, Pairs, Vectors
from learner.served import Array, ServedScore
from learner.training.clicked_lists import ClickedLists
from learner.training.explained import ExplainedList, explained
from learner.training.scored import Scored
from weighting.estimators.conditional import shown_logit
from weighting.sample import FIRST_COPY, Sample
from weighting.tasks import TASKS, TaskName, root
from weighting.weighted import WeightedBatch

Places = NDArray[np.intp]


class Prequential:
    """Evaluations of the tasks, and what they need of lists that were shown before.

    Attributes:
        evaluations: task -> its evaluation.
        clicked: ranks of clicked items, until they are bought.
        frequency: lists that each query had before.
    """

    def __init__(self) -> None:
        """Start with nothing evaluated."""
        self.evaluations = {task: Evaluation() for task in TASKS}
        self.clicked = ClickedRanks()
        self.frequency = QueryFrequency()

    def run(
        self,
        served: ServedScore,
        weighted: WeightedBatch,
        scored: Scored,
        clicked: ClickedLists,
        query_vectors: Vectors,
        item_vectors: Vectors,
        factor: Array,
        *,
        num_explained: int = 0,
    ) -> tuple[ExplainedList, ...]:
        """Evaluate what would have been served where each sample was shown; then learn it.

        Args:
            served: the score.
            weighted: N samples with their weights.
            scored: of the model as it was.
            clicked: of the same samples, made before anything learned them.
            query_vectors: (N, D) vectors of the queries by the starting encoder.
            item_vectors: (N, D) vectors of the items by the starting encoder.
            factor: (N,) by which a scored sample counts. Those of 0 have no score of the encoder:
                they are not evaluated, and stacker, item prior, attributes and client affinity do
                not learn them; the other parts do.
            num_explained: lists with a click, at most, that are returned.

        Returns:
            Lists with a click as they would have been served.
        """
        tasks = np.array([s.task for s in weighted.samples], dtype=object)

        def pairs(places: Places, given: Mapping[str, Array]) -> Pairs:
            samples = [weighted.samples[i] for i in places]
            return Pairs(
                queries=[s.query for s in samples],
                clients=[s.client for s in samples],
                items=[s.item_id or s.text for s in samples],
                texts=[s.text for s in samples],
                attributes=[s.attributes for s in samples],
                query_vectors=query_vectors[places],
                item_vectors=item_vectors[places],
                given=given,
            )

        prior = {**clicked.prior, **weighted.prior}
        lists_explained: tuple[ExplainedList, ...] = ()
        for task in weighted.prior:
            own = np.flatnonzero(tasks == task)
            samples = [weighted.samples[i] for i in own]
            first = np.array([s.copy_kind is FIRST_COPY for s in samples], dtype=bool)
            encoder = scored.by_task[task][own].astype(np.float64)
            base = scored.base[own].astype(np.float64)
            given = served.given(
                task,
                encoder=encoder,
                base=base,
                memory=weighted.pair_memory_logit[own],
                memory_base=weighted.pair_memory_base[own],
                prior=prior,
            )
            asked = pairs(own, given)
            said, lists = served.ask(task, asked), _lists(task, samples)
            relevance = served.logit(task, said)
            outcomes = Outcomes(
                label=weighted.label[own],
                weight=weighted.correction[own],
                discount=weighted.discount[own],
                factor=factor[own],
                examination=weighted.examination[own],
                shown=first,
                lists=lists,
                time_us=np.array([s.emitted_us for s in samples], dtype=np.int64),
                logit=relevance,
            )
            drawn = factor[own] > 0
            lists_judged = np.where(first, lists, -1)
            num_earlier, kept = self._history(task, samples, lists_judged)
            if task == root() and clicked.can_be_served(scored.by_task):
                logit = np.zeros(len(weighted.samples))
                earlier = np.full(len(weighted.samples), -1, dtype=np.intp)
                logit[own], earlier[own] = relevance, num_earlier
                score = clicked.served(served, logit, scored, pairs)
                clicked.keep(self.clicked, score, weighted.examination, factor, earlier)
                if num_explained:
                    at = np.searchsorted(own, clicked.places)
                    lists_explained = explained(
                        [weighted.samples[place] for place in clicked.places],
                        score,
                        relevance[at],
                        served.contributions(task, said[:, at]),
                        limit=num_explained,
                    )
            judged = Judged(
                logit=shown_logit(relevance, outcomes.examination),
                relevance=relevance,
                label=outcomes.label,
                weight=outcomes.weight * factor[own],
                examination=outcomes.examination,
                position=np.array([s.position or 0 for s in samples], dtype=np.intp),
                lists=lists_judged,
                details=Details(
                    scenario=np.array([s.scenario for s in samples], dtype=object),
                    num_earlier=num_earlier,
                    importance=weighted.weight[own].astype(np.float64),
                    factor=factor[own],
                    time_us=outcomes.time_us,
                    kept=kept,
                ),
            )
            self.evaluations[task].update(judged[drawn])
            served.learn(task, asked, said, outcomes)
        return lists_explained

    def _history(
        self, task: TaskName, samples: Sequence[Sample], lists: Places
    ) -> tuple[Places, Array]:
        """Return lists of the same query before (n,), -1 if unknown, and `Details.kept` (n, 5)."""
        earlier = np.full(len(samples), -1, dtype=np.intp)
        kept = np.zeros((len(samples), NUM_KEPT))
        if task == root():
            known: dict[int, int] = {}
            for place, number in enumerate(lists.tolist()):
                if number >= 0 and samples[place].list_id:
                    if number not in known:
                        known[number] = self.frequency.learn(samples[place].query)
                    earlier[place] = known[number]
            return earlier, kept
        for place, s in enumerate(samples):
            found = self.clicked.take(s.list_id, s.item_id or s.text) if s.label else None
            if found is not None:
                kept[place], earlier[place] = found
        return earlier, kept


def _lists(task: TaskName, samples: Sequence[Sample]) -> Places:
    """Return the number of each sample's list; -1 for all of a task whose samples form none.

    A later copy comes without the others of its list, and is one of its own.
    """
    if task != root():
        return np.full(len(samples), -1, dtype=np.intp)
    numbers: dict[str | int, int] = {}
    keys = [
        s.list_id if s.list_id and s.copy_kind is FIRST_COPY else place
        for place, s in enumerate(samples)
    ]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.intp)
