"""The served score: inverted, stacked, multiplied along the tasks, in one place for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace as replace_field
from numpy.typing import NDArray
from scipy.special import expit

from learner.parts.part import Outcomes, Pairs, Part
from learner.parts.registry import make_parts
from learner.parts.stateless import CLIENT_COLUMNS, OWN_ENCODER, PAIR_MEMORY, RESIDUAL
from learner.request import ENCODER
from learner.served import ServedScore, ranking_score
from tests.learner.test_scorer import learned, live, requests
from tests.learner.training import batches
from tests.weighting.streams import SECOND
from weighting.config import WeigherConfig
from weighting.errors import SnapshotError, WeightError
from weighting.sample import client_hash
from weighting.schemes.ratio import ImportanceRatio
from weighting.tasks import CLICK, PURCHASE, TASKS, Task, TaskName, chain, root

SUPPORT = {
    name: Task(name=name, parent=parent, window="", loss="pointwise", position_matters=False)
    for name, parent in (("opened", None), ("read", "opened"), ("resolved", "opened"))
}


def test_the_tasks_are_multiplied_from_the_shown_items_to_the_task_declared_last() -> None:
    assert (root(), chain()) == (CLICK, [CLICK, PURCHASE])
    assert (root(SUPPORT), chain(SUPPORT)) == ("opened", ["opened", "resolved"])
    probability = {CLICK: np.array([0.5, 0.1]), PURCHASE: np.array([0.2, 0.9])}
    np.testing.assert_array_equal(
        ranking_score(probability), probability[CLICK] * probability[PURCHASE]
    )


def pairs_of(number: int, *, seed: int = 0, at: str = "item") -> Pairs:
    """Pairs of random vectors, an encoder that is right, and a memory that knows every other."""
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(2, number, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    memory = draw.normal(size=number)
    memory[::2] = np.nan
    return Pairs(
        queries=[f"red {i % 5}" for i in range(number)],
        clients=[i % 3 for i in range(number)],
        items=[f"{at} {i % 20}" for i in range(number)],
        texts=[f"red {i % 20} thing" for i in range(number)],
        attributes=[{"brand": f"brand {i % 4}"} for i in range(number)],
        query_vectors=vectors[0],
        item_vectors=vectors[1],
        given={
            ENCODER: draw.normal(size=number),
            RESIDUAL: np.full(number, np.nan),
            PAIR_MEMORY: memory,
            OWN_ENCODER: draw.normal(size=number),
        },
    )


def outcomes_of(label: NDArray[Any]) -> Outcomes:
    number = len(label)
    return Outcomes(
        label=label.astype(np.float64),
        weight=np.ones(number),
        discount=np.ones(number),
        factor=np.ones(number),
        examination=np.full(number, 0.7),
        shown=np.ones(number, dtype=bool),
        lists=np.arange(number) // 10,
        time_us=np.arange(number) * SECOND,
        logit=np.zeros(len(label)),
    )


def fresh(exponent: float = 1.0) -> ServedScore:
    initial = WeigherConfig().initial()
    parts = make_parts(width=4, logit_scale=8.0)
    return ServedScore(ImportanceRatio(exponent).invert, parts, initial)


def taught(exponent: float = 1.0) -> tuple[ServedScore, Pairs]:
    """A score that learned that the encoder is right, and pairs to ask about."""
    served, pairs = fresh(exponent), pairs_of(400)
    outcomes = outcomes_of((pairs.given[ENCODER] > 0).astype(np.float64))
    for task in TASKS:
        served.learn(task, pairs, served.ask(task, pairs), outcomes)
    return served, pairs_of(60, seed=1)


def test_a_restored_score_is_the_same_score_and_learns_on_the_same() -> None:
    served, pairs = taught()
    again = fresh()
    again.restore(served.snapshot(), served.snapshot_parts())
    outcomes = outcomes_of(np.arange(60) % 2.0)
    for task in TASKS:
        said, expected = again.ask(task, pairs), served.ask(task, pairs)
        np.testing.assert_array_equal(said, expected)
        np.testing.assert_array_equal(again.logit(task, said), served.logit(task, expected))
        for own in (served, again):
            own.learn(task, pairs, said, outcomes)
    assert again.snapshot() == served.snapshot()
    assert again.snapshot_parts() == served.snapshot_parts()


def test_predicting_is_pure_and_what_was_learned_counts() -> None:
    served, pairs = taught()
    before = served.snapshot(), served.snapshot_parts()
    learned = served.contributions(CLICK, served.ask(CLICK, pairs))
    assert (served.snapshot(), served.snapshot_parts()) == before
    untrained = fresh()
    start = untrained.contributions(CLICK, untrained.ask(CLICK, pairs))
    assert np.ptp(learned[ENCODER]) > 2 * np.ptp(start[ENCODER])


def test_contributions_add_up_to_the_logit_and_silence_adds_nothing() -> None:
    served, pairs = taught()
    said = served.ask(CLICK, pairs)
    found = served.contributions(CLICK, said)
    total = np.sum(list(found.values()), axis=0)
    np.testing.assert_allclose(total, served.logit(CLICK, said), rtol=1e-9)
    assert (found[RESIDUAL] == 0).all()
    assert (found[PAIR_MEMORY][::2] == 0).all()
    assert (found[PAIR_MEMORY][1::2] != 0).all()


def test_a_purchase_is_judged_by_the_click_without_what_knows_the_pair() -> None:
    served, pairs = taught()
    columns = dict(zip(served.stackers[PURCHASE].names, served.ask(PURCHASE, pairs), strict=True))
    assert list(columns) == [CLICK, OWN_ENCODER, PAIR_MEMORY]
    contributed = served.contributions(CLICK, served.ask(CLICK, pairs))
    known = {RESIDUAL, PAIR_MEMORY, *CLIENT_COLUMNS}
    general = sum(own for n, own in contributed.items() if n not in known)
    np.testing.assert_allclose(np.diff(columns[CLICK]), np.diff(general), atol=1e-9)
    np.testing.assert_array_equal(columns[PAIR_MEMORY], pairs.given[PAIR_MEMORY])


def test_a_purchase_s_columns_are_the_same_from_those_of_the_click() -> None:
    served, pairs = taught()
    of_root = served.ask(CLICK, pairs)
    kept = of_root.copy()
    silent = np.full(len(pairs.queries), np.nan)
    own = replace(pairs, given={**pairs.given, RESIDUAL: silent})
    for asked in (pairs, own):
        found = served.ask(PURCHASE, asked, of_root)
        np.testing.assert_array_equal(found, served.ask(PURCHASE, asked))
    np.testing.assert_array_equal(of_root, kept)


def test_what_a_click_tells_of_a_purchase_is_learned_from_purchases() -> None:
    """Three in four of the likelier half are bought and one in four of the others, or half."""

    def coefficient(*, tells: bool) -> float:
        served, pairs = fresh(), pairs_of(2_000)
        said, draw = served.ask(PURCHASE, pairs), np.random.default_rng(0)
        likely = (
            np.where(said[0] > np.median(said[0]), 0.75, 0.25) if tells else np.full(2_000, 0.5)
        )
        outcomes = outcomes_of(draw.random(2_000) < likely)
        none = np.full(2_000, -1, dtype=np.intp)
        served.learn(PURCHASE, pairs, said, replace(outcomes, lists=none))
        return served.stackers[PURCHASE].coefficients()[CLICK]

    assert coefficient(tells=True) > 0.2
    assert coefficient(tells=False) < 0.05


def test_a_logit_stays_where_a_probability_is_neither_0_nor_1() -> None:
    served, pairs = taught()
    said = served.ask(CLICK, pairs)
    assert np.abs(served.logit(CLICK, said * 1e6)).max() == 30


def test_parts_of_another_score_are_refused() -> None:
    served, _ = taught()
    parts = served.snapshot_parts()
    del parts["lexical"]
    with pytest.raises(SnapshotError, match="lexical"):
        fresh().restore(served.snapshot(), parts)


def test_stackers_of_other_tasks_are_refused() -> None:
    served, _ = taught()
    stackers = served.snapshot()
    del stackers[PURCHASE]
    with pytest.raises(SnapshotError, match="stackers"):
        fresh().restore(stackers, served.snapshot_parts())


@pytest.mark.parametrize("task", TASKS)
def test_the_evaluation_s_score_is_the_scorer_s(task: TaskName) -> None:
    """Bit for bit what a server says is what the trainer would evaluate now."""
    own = learned(0)
    for batch in batches(3):
        own.step([replace_field(s, client=client_hash("ann")) for s in batch])
    client = client_hash("ann")
    request = replace_field(requests(3)[2], client=client)  # of the stream
    scores = live(own).score([request])[0]
    queries = [request.query] * len(request.documents)
    texts = [d.text for d in request.documents]
    with torch.inference_mode():
        logits = own.ranker(queries, texts)
    encoder = logits.by_task[task].double().numpy()
    pairs = Pairs(
        queries=queries,
        clients=[client] * len(queries),
        items=[d.id or d.text for d in request.documents],
        texts=texts,
        attributes=[d.attributes for d in request.documents],
        query_vectors=own.ranker.starting_vectors(queries),
        item_vectors=own.ranker.starting_vectors(texts),
        given=own.served.given(
            task,
            encoder=encoder,
            base=logits.base.double().numpy(),
            memory=own.weigher.pair_memory_logits(task, request.query, request.documents),
            memory_base=own.weigher.pair_memory_base(task),
            prior={name: own.weigher.prior(name) for name in TASKS},
        ),
    )
    said = own.served.ask(task, pairs)
    if task == CLICK:
        assert np.isfinite(said).any(axis=1).all(), "every part has something to say by now"
    np.testing.assert_array_equal(scores.probability[task], expit(own.served.logit(task, said)))


@pytest.mark.parametrize("about_client", [False, True])
def test_a_part_is_told_what_those_said_that_know_neither_it_nor_the_pair(
    *, about_client: bool
) -> None:
    """One about the client is told what is known of the pair, too."""
    names = CLIENT_COLUMNS if about_client else ("listener",)

    class Listener:
        columns: Mapping[str, float] = dict.fromkeys(names, 0.5)

        def predict(self, pairs: Pairs) -> NDArray[np.float64]:
            return np.full((len(names), len(pairs.items)), 7.0)

        def learn(self, task: TaskName, pairs: Pairs, outcomes: Outcomes) -> None:
            self.told = outcomes.logit

        def snapshot(self) -> bytes:
            return b""

        def restore(self, data: bytes) -> None:
            pass

    initial, listener = WeigherConfig().initial(), Listener()
    parts: dict[str, Part] = make_parts(width=4, logit_scale=8.0)
    parts["client_affinity" if about_client else "listener"] = listener
    served = ServedScore(ImportanceRatio(1.0).invert, parts, initial)
    pairs = pairs_of(40)
    said = served.ask(CLICK, pairs)
    contributed = served.contributions(CLICK, said)
    silent = {*names} if about_client else {*names, RESIDUAL, PAIR_MEMORY}
    expected = sum(own for name, own in contributed.items() if name not in silent)
    outcomes = replace(outcomes_of(np.zeros(len(pairs.items))), logit=served.logit(CLICK, said))
    few = replace(outcomes, weight=0.01 * outcomes.weight)  # that are learned at once
    served.learn(CLICK, pairs, said, few)
    np.testing.assert_allclose(listener.told, expected, atol=1e-12)


class Counting:
    """A part that keeps how many pairs it learned at once, and says how many there were."""

    columns: Mapping[str, float] = {"counting": 0.1}

    def __init__(self) -> None:
        self.shares: list[list[int]] = []

    def predict(self, pairs: Pairs) -> NDArray[np.float64]:
        return np.full((1, len(pairs.items)), float(len(self.shares)))

    def learn(self, task: TaskName, pairs: Pairs, outcomes: Outcomes) -> None:
        self.shares.append(outcomes.lists.tolist())

    def snapshot(self) -> bytes:
        return b""

    def restore(self, data: bytes) -> None:
        pass


def counted() -> tuple[ServedScore, Counting]:
    counting = Counting()
    parts: dict[str, Part] = {**make_parts(width=4, logit_scale=8.0), "counting": counting}
    return ServedScore(ImportanceRatio(1.0).invert, parts, WeigherConfig().initial()), counting


def step(served: ServedScore, pairs: Pairs, label: NDArray[np.float64]) -> None:
    said = served.ask(CLICK, pairs)
    outcomes = replace(outcomes_of(label), logit=served.logit(CLICK, said))
    served.learn(CLICK, pairs, said, outcomes)


def test_a_cold_score_learns_a_step_in_shares_of_whole_lists_and_a_warm_one_at_once() -> None:
    served, counting = counted()
    step(served, pairs_of(400), np.tile([1.0, *[0.0] * 9], 40))
    shares = [len(own) for own in counting.shares]
    learned = [number for own in counting.shares for number in own]
    assert learned == outcomes_of(np.zeros(400)).lists.tolist()
    assert len(shares) > 4
    assert all(len(own) % 10 == 0 for own in counting.shares), "no list is divided"
    assert max(shares) > 4 * shares[0], "the more it knows the more it takes"
    for seed in range(20):
        step(served, pairs_of(400, seed=seed), np.tile([1.0, *[0.0] * 9], 40))
    before = len(counting.shares)
    step(served, pairs_of(400, seed=99), np.tile([1.0, *[0.0] * 9], 40))
    assert len(counting.shares) == before + 1


def test_shares_of_a_step_are_as_steps_of_their_own() -> None:
    """So each is predicted by what was learned of those before it."""
    (one, counting), (other, _) = counted(), counted()
    pairs, label = pairs_of(400), np.tile([1.0, *[0.0] * 9], 40)
    step(one, pairs, label)
    start = 0
    for share in counting.shares:
        end = start + len(share)
        said = other.ask(CLICK, pairs[start:end])
        outcomes = replace(outcomes_of(label)[start:end], logit=other.logit(CLICK, said))
        other.learn(CLICK, pairs[start:end], said, outcomes)
        start = end
    assert one.snapshot() == other.snapshot()
    assert one.snapshot_parts() == other.snapshot_parts()


def test_one_list_that_surprises_wholly_is_learned_and_so_is_none() -> None:
    served, counting = counted()
    step(served, pairs_of(10), np.ones(10))
    assert counting.shares == [[0] * 10]
    step(served, pairs_of(0), np.zeros(0))
    assert len(counting.shares) == 2


@pytest.mark.parametrize(
    ("column", "wrong"), [("label", 2.0), ("weight", -1.0), ("factor", np.inf), ("examination", 2)]
)
def test_of_a_step_with_an_input_out_of_range_no_share_is_learned(
    column: str, wrong: float
) -> None:
    served, counting = counted()
    pairs, outcomes = pairs_of(400), outcomes_of(np.tile([1.0, *[0.0] * 9], 40))
    getattr(outcomes, column)[-1] = wrong
    before = served.snapshot(), served.snapshot_parts()
    with pytest.raises(WeightError):
        served.learn(CLICK, pairs, served.ask(CLICK, pairs), outcomes)
    assert (served.snapshot(), served.snapshot_parts(), counting.shares) == (*before, [])


def test_of_a_step_in_which_a_part_said_infinity_no_share_is_learned() -> None:
    served, counting = counted()
    pairs = pairs_of(400)
    pairs.given[ENCODER][-1] = np.inf
    with pytest.raises(WeightError, match="encoder"):
        step(served, pairs, np.tile([1.0, *[0.0] * 9], 40))
    assert counting.shares == []


def test_clicks_beyond_what_was_examined_divide_no_step_without_end() -> None:
    """The level is far up then, where its information is nothing: one list would be too much."""
    served, counting = counted()
    for seed in range(2):
        counting.shares.clear()
        pairs = pairs_of(2000, seed=seed)
        said = served.ask(CLICK, pairs)
        outcomes = replace(
            outcomes_of(np.ones(2000)),
            examination=np.full(2000, 0.3),
            logit=served.logit(CLICK, said),
        )
        served.learn(CLICK, pairs, said, outcomes)
        assert len(counting.shares) == 64
        assert sum(map(len, counting.shares)) == 2000


def test_after_a_stream_with_more_clicks_than_examined_a_click_is_no_longer_certain() -> None:
    """Ten steps with more clicks than examined, then as many at a sixth of what is examined."""
    served, asked, draw = fresh(), pairs_of(200, seed=99), np.random.default_rng(0)
    found = []
    for number in range(20):
        rate = 0.5 if number < 10 else 0.05
        pairs, label = pairs_of(320, seed=number), (draw.random(320) < rate).astype(np.float64)
        said = served.ask(CLICK, pairs)
        outcomes = replace(
            outcomes_of(label), examination=np.full(320, 0.3), logit=served.logit(CLICK, said)
        )
        served.learn(CLICK, pairs, said, outcomes)
        found.append(expit(served.logit(CLICK, served.ask(CLICK, asked))).mean())
    assert found[9] > 0.99
    assert found[-1] < 0.5
