"""The waiting line under overload, in virtual time: a paced scorer, Poisson arrivals."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.inference.line import Line
from serving.inference.pace import Pace

DEADLINE_SECONDS, MAX_DOCUMENTS = 10.0, 256


@dataclass(eq=False)
class Ask:
    """A request of the simulation."""

    num_documents: int
    came_seconds: float
    gone: bool = False

    @property
    def deadline_seconds(self) -> float:
        return self.came_seconds + DEADLINE_SECONDS


@dataclass
class Outcome:
    """What became of the requests of one simulation."""

    answered: list[float] = field(default_factory=list)
    refused: int = 0
    late: int = 0
    longest_batch: float = 0.0
    seconds: float = 0.0

    @property
    def p99(self) -> float:
        ordered = sorted(self.answered)
        return ordered[int(0.99 * (len(ordered) - 1))]


Cost = Callable[[int, float], float]
"""Documents of a batch and the time -> seconds that it takes."""


def make_line() -> Line[Ask]:
    return Line(
        Pace(),
        max_documents=MAX_DOCUMENTS,
        max_wait_seconds=4.0,
        deadline_seconds=DEADLINE_SECONDS,
    )


def simulate(
    cost: Cost, rate: float, *, num: int = 1500, documents: int = 10, seed: int = 0
) -> Outcome:
    """Let `num` requests come at `rate` per second, in front of one scorer."""
    draw, line, outcome = random.Random(seed), make_line(), Outcome()
    arrivals, now = [], 0.0
    for _ in range(num):
        now += draw.expovariate(rate)
        arrivals.append(now)
    batch: list[Ask] = []
    began, ends = 0.0, 0.0

    def begin(now: float) -> None:
        nonlocal batch, began, ends
        taken = line.take(now)
        outcome.late += len(taken.late)
        batch, began = taken.batch, now
        ends = now + cost(sum(ask.num_documents for ask in batch), now) if batch else now

    def end() -> None:
        nonlocal batch
        outcome.answered += [ends - ask.came_seconds for ask in batch]
        outcome.longest_batch = max(outcome.longest_batch, ends - began)
        line.pace.learn(sum(ask.num_documents for ask in batch), ends - began)
        line.finish()
        batch = []

    for now in arrivals:
        while batch and ends <= now:
            end()
            if len(line):
                begin(ends)
        if line.full(now):
            line.refuse()
        else:
            line.append(Ask(documents, now))
            if not batch:
                begin(now)
    while batch:
        end()
        if len(line):
            begin(ends)
    outcome.seconds = arrivals[-1]
    return outcome


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    capacity=st.floats(1.0, 500.0),
    load=st.sampled_from([1.2, 3.0, 10.0]),
    documents=st.integers(1, 100),
    seed=st.integers(0, 1000),
)
def test_an_overload_is_answered_at_capacity_and_no_later_than_an_ordinary_load(
    capacity: float, load: float, documents: int, seed: int
) -> None:
    def cost(num_documents: int, now: float) -> float:
        return num_documents / documents / capacity

    calm = simulate(cost, 0.8 * capacity, documents=documents, seed=seed)
    over = simulate(cost, load * capacity, documents=documents, seed=seed)
    assert len(over.answered) >= 0.8 * capacity * over.seconds
    assert over.p99 <= 2 * calm.p99 + over.longest_batch
    assert (calm.late, over.late) == (0, 0)
    assert calm.refused <= 0.08 * 1500, "an ordinary load has its bursts"


@pytest.mark.parametrize("load", [1.2, 3.0, 10.0])
def test_a_scorer_whose_batches_cost_the_same_at_any_size_is_given_large_ones(load: float) -> None:
    """Capacity is then 25 requests, of 10 documents each, per batch."""
    over = simulate(lambda num_documents, now: 0.2, load * 125, num=6000)
    assert len(over.answered) >= 0.8 * 125 * over.seconds
    assert over.p99 <= 1.0


@pytest.mark.parametrize(("before", "after"), [(0.2, 0.004), (0.004, 0.2)])
def test_the_line_follows_a_scorer_that_becomes_fast_or_slow(before: float, after: float) -> None:
    """Texts that are known cost a fiftieth of those that are not."""

    def cost(num_documents: int, now: float) -> float:
        return num_documents / 10 * (before if now < 30.0 else after)

    rate = 3 / after
    outcome = simulate(cost, rate, num=round(60 * rate))
    possible = 30 * min(rate, 1 / before) + (outcome.seconds - 30) / after
    assert len(outcome.answered) >= 0.8 * possible
    assert outcome.late == 0
    assert max(outcome.answered) < DEADLINE_SECONDS


def test_a_request_is_let_in_when_nothing_runs_whatever_was_learned_before() -> None:
    line = make_line()
    line.pace.learn(10, 1000.0)
    assert not line.full(0.0)
    line.append(Ask(10, 0.0))
    assert line.full(0.0)
    assert len(line.take(0.0).batch) == 1, "the last one is tried"


def test_what_cannot_be_done_in_time_is_not_scored_while_anything_waits_behind_it() -> None:
    line = make_line()
    line.append(old := Ask(10, 0.0))
    line.append(new := Ask(10, 8.0))
    line.pace.learn(10, 3.0)
    taken = line.take(9.0)
    assert (taken.batch, taken.late) == ([new], [old])


def test_a_batch_ends_where_more_of_it_would_make_its_first_request_late() -> None:
    line = make_line()
    line.pace.learn(10, 2.0)
    asks = [Ask(10, 0.0) for _ in range(5)]
    for ask in asks:
        line.append(ask)
    assert line.take(5.0).batch == asks[:2]
    assert len(line) == 3


def test_a_caller_that_is_gone_leaves_no_work_behind() -> None:
    line = make_line()
    gone, waits, hung_up = Ask(10, 0.0), Ask(20, 0.0), Ask(5, 0.0)
    for ask in (gone, waits, hung_up):
        line.append(ask)
    assert line.remove(gone)
    assert not line.remove(gone)
    hung_up.gone = True
    taken = line.take(0.0)
    assert (taken.batch, taken.gone, line.num_documents) == ([waits], [hung_up], 0)


def test_a_batch_that_overruns_its_estimate_makes_the_line_wait_longer() -> None:
    line = make_line()
    line.pace.learn(10, 1.0)
    line.append(Ask(10, 0.0))
    line.take(0.0)
    waits = [round(line.wait_seconds(now), 3) for now in (0.0, 0.75, 1.5, 3.0)]
    assert waits == [1.0, 0.25, 0.5, 2.0]


def test_the_pace_tells_a_fixed_cost_from_one_per_document() -> None:
    pace = Pace()
    for num_documents in (10, 40, 80, 20) * 30:
        pace.learn(num_documents, 0.03 + 0.002 * num_documents)
    assert pace.fixed == pytest.approx(0.03, rel=0.05)
    assert pace.per_document == pytest.approx(0.002, rel=0.05)


@given(batches=st.lists(st.tuples(st.integers(1, 512), st.floats(0.0, 100.0)), max_size=50))
def test_whatever_batches_took_the_estimate_is_finite_and_not_negative(
    batches: list[tuple[int, float]],
) -> None:
    pace = Pace()
    for num_documents, seconds in batches:
        pace.learn(num_documents, seconds)
        assert 0.0 <= pace.fixed <= 101.0
        assert 0.0 < pace.per_document <= 101.0


def test_requests_that_come_together_do_not_all_find_the_same_room() -> None:
    """Their bodies are not decoded yet; before room was kept for them all were let in."""
    line = make_line()
    line.pace.learn(10, 0.002)
    line.append(Ask(10, 0.0))
    line.take(0.0)
    line.finish()
    let_in = 0
    while not line.full(0.0) and let_in < 1000:
        line.expect(0.0)
        let_in += 1
    assert let_in == 25, "50 ms of work"
    for _ in range(let_in):
        line.arrive()
        assert not line.full(0.0), "room was kept for it"
        line.append(Ask(10, 0.0))
    assert line.full(0.0)


def test_room_is_not_kept_for_long_for_a_body_that_does_not_come() -> None:
    line = make_line()
    line.pace.learn(10, 100.0)
    line.append(Ask(10, 0.0))
    line.take(0.0)
    line.finish()
    line.expect(0.0)
    assert line.full(0.0)
    assert not line.full(0.02)
    assert line.num_expected == 0
