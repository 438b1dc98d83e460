"""Micro-batching: the window, the inference thread, and independence of neighbours."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import weakref
from functools import partial

import pytest

from learner.artifact import Document, ScoringInput
from serving.errors import BackendFailed, NotReady
from serving.inference.batcher import BatcherConfig
from serving.inference.delivery import Answer
from serving.inference.slot import LoadedModel
from tests.fakes.scorer import FakeScorer, make_version
from tests.serving.conftest import Replica, until


def texts_of(call: list[ScoringInput]) -> list[str]:
    return [document.text for request in call for document in request.documents]


def ask(*texts: str) -> tuple[ScoringInput, ...]:
    return (ScoringInput(query="q", documents=tuple(Document(text=text) for text in texts)),)


def loaded_model(scorer: FakeScorer) -> LoadedModel:
    return LoadedModel(version=make_version(int(scorer.version[1:])), scorer=scorer)


async def admitted(
    replica: Replica, *calls: tuple[FakeScorer, tuple[ScoringInput, ...]]
) -> list[asyncio.Task[Answer]]:
    """Admit each call, in order, before the inference thread runs."""
    loaded = {id(scorer): loaded_model(scorer) for scorer, _ in calls}
    tasks = []
    for scorer, requests in calls:
        call = replica.batcher.score(loaded[id(scorer)], requests)
        tasks.append(asyncio.create_task(call))
    await until(lambda: replica.value("serving_inflight_requests") == len(calls))
    return tasks


def test_requests_waiting_together_go_in_one_forward_pass() -> None:
    replica, scorer = Replica(), FakeScorer("v000001", {"a": 0.1, "b": 0.2, "c": 0.3})

    async def run() -> list[Answer]:
        tasks = await admitted(
            replica, (scorer, ask("a")), (scorer, ask("b", "c")), (scorer, ask("c"))
        )
        replica.batcher.start()
        return list(await asyncio.gather(*tasks))

    answers = asyncio.run(run())
    replica.batcher.close()
    assert [texts_of(call) for call in scorer.calls] == [["a", "b", "c", "c"]]
    assert [answer.scores[0].score.tolist() for answer in answers] == [[0.1], [0.2, 0.3], [0.3]]


def test_a_version_is_gone_once_its_answers_are_taken_though_its_requests_are_kept() -> None:
    replica, gone = Replica(), threading.Event()

    async def run() -> None:
        scorer = FakeScorer("v000001", {"a": 0.1})
        model = loaded_model(scorer)
        await replica.batcher.score(model, ask("a"))
        assert len(replica.batcher.replayed(model)) == 1
        replica.batcher.when_idle(partial(len, [scorer]), 60.0)  # as when it is warmed
        weakref.finalize(scorer, gone.set)

    replica.batcher.start()
    asyncio.run(run())
    assert gone.wait(60.0)  # while the thread waits
    replica.batcher.close()


def test_enough_candidates_close_the_window_before_its_time() -> None:
    replica = Replica(batching=BatcherConfig(window_seconds=3600.0, max_candidates=3))
    scorer = FakeScorer("v000001")

    async def run() -> None:
        replica.batcher.start()
        model, score = loaded_model(scorer), replica.batcher.score
        await asyncio.gather(score(model, ask("a")), score(model, ask("b", "c")))

    asyncio.run(run())
    replica.batcher.close()
    assert [len(call) for call in scorer.calls] == [2]


def test_a_window_that_is_over_takes_what_is_there_and_waits_for_none() -> None:
    config = BatcherConfig(window_seconds=3600.0, max_candidates=100, deadline_seconds=7200.0)
    replica = Replica(batching=config)
    scorer = FakeScorer("v000001")

    async def run() -> None:
        tasks = await admitted(replica, (scorer, ask("a")), (scorer, ask("b")))
        replica.clock.seconds = 3600.0
        replica.batcher.start()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    replica.batcher.close()
    assert [len(call) for call in scorer.calls] == [2]


def test_closing_answers_what_was_admitted_and_refuses_what_comes_after() -> None:
    replica, scorer = Replica(batching=BatcherConfig(window_seconds=3600.0)), FakeScorer("v000001")

    async def run() -> list[Answer]:
        tasks = await admitted(replica, (scorer, ask("a")), (scorer, ask("b")))
        replica.batcher.start()
        await asyncio.to_thread(replica.batcher.close)
        with pytest.raises(NotReady):
            await replica.batcher.score(loaded_model(scorer), ask("c"))
        return list(await asyncio.gather(*tasks))

    assert len(asyncio.run(run())) == 2


def test_one_thread_scores_everything() -> None:
    replica, one, two = Replica(), FakeScorer("v000001"), FakeScorer("v000002")

    async def run() -> None:
        replica.batcher.start()
        for scorer in (one, two, one):
            await replica.batcher.score(loaded_model(scorer), ask("a"))

    asyncio.run(run())
    replica.batcher.close()
    assert len(one.threads | two.threads) == 1


def test_a_batch_across_a_swap_scores_each_request_with_the_version_it_was_admitted_with() -> None:
    replica, old, new = Replica(), FakeScorer("v000001"), FakeScorer("v000002")

    async def run() -> list[Answer]:
        tasks = await admitted(replica, (old, ask("a")), (new, ask("b")), (old, ask("c")))
        replica.batcher.start()
        return list(await asyncio.gather(*tasks))

    answers = asyncio.run(run())
    replica.batcher.close()
    assert [(answer.model.name, answer.scores[0].score[0]) for answer in answers] == [
        ("v000001", 0.001),
        ("v000002", 0.002),
        ("v000001", 0.001),
    ]
    assert (len(old.calls), len(new.calls)) == (1, 1)


def test_a_request_that_breaks_the_model_fails_alone() -> None:
    replica, scorer = Replica(), FakeScorer("v000001")

    def fault(requests: object) -> None:
        assert isinstance(requests, list)
        if "poison" in texts_of(requests):
            raise ValueError("cannot read this")

    scorer.fault = fault

    async def run() -> list[Answer | BaseException]:
        tasks = await admitted(
            replica, (scorer, ask("a")), (scorer, ask("poison")), (scorer, ask("c"))
        )
        replica.batcher.start()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    first, broken, last = asyncio.run(run())
    replica.batcher.close()
    assert isinstance(first, Answer)
    assert isinstance(broken, BackendFailed)
    assert isinstance(last, Answer)


def test_a_caller_that_goes_away_costs_the_others_nothing() -> None:
    replica, scorer = Replica(), FakeScorer("v000001")

    async def run() -> Answer:
        gone, stays = await admitted(replica, (scorer, ask("a")), (scorer, ask("b")))
        gone.cancel()
        replica.batcher.start()
        return await stays

    assert asyncio.run(run()).scores[0].score.tolist() == [0.001]
    replica.batcher.close()
    assert replica.value("serving_inflight_requests") == 0


def test_a_task_for_idle_moments_lets_every_request_go_first_and_gives_its_error_back() -> None:
    replica, scorer = Replica(), FakeScorer("v000001")
    order: list[str] = []
    scorer.fault = lambda requests: order.append("request")

    def task() -> None:
        order.append("task")
        raise ValueError("not today")

    async def run() -> None:
        asked = await admitted(replica, (scorer, ask("a")), (scorer, ask("b")))
        idle = asyncio.create_task(asyncio.to_thread(replica.batcher.when_idle, task, 30.0))
        await until(lambda: bool(replica.batcher._spare))
        replica.batcher.start()
        await asyncio.gather(*asked)
        with pytest.raises(ValueError, match="not today"):
            await idle
        assert await asyncio.to_thread(replica.batcher.when_idle, lambda: order.append("next"), 30)

    asyncio.run(run())
    assert order == ["request", "task", "next"]
    replica.batcher.close()
    assert not replica.batcher.when_idle(task, 30.0), "nobody runs it any more"


def test_a_task_whose_moment_does_not_come_in_time_is_never_run() -> None:
    replica, scorer, ran = Replica(), FakeScorer("v000001"), list[str]()
    scorer.gate = threading.Event()

    async def run() -> None:
        replica.batcher.start()
        (asked,) = await admitted(replica, (scorer, ask("a")))
        await until(lambda: bool(scorer.calls))
        assert not await asyncio.to_thread(replica.batcher.when_idle, lambda: ran.append("x"), 0.0)
        assert scorer.gate is not None
        scorer.gate.set()
        await asked

    asyncio.run(run())
    assert replica.batcher.when_idle(lambda: ran.append("y"), 30.0)
    replica.batcher.close()
    assert ran == ["y"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_task_that_is_never_run_or_fails_keeps_nothing_of_its_version(fails: bool) -> None:
    """On a server that is never idle each version would stay, with all its memory."""
    replica = Replica()
    if fails:
        replica.batcher.start()

    def warmed() -> weakref.ref[FakeScorer]:
        scorer = FakeScorer("v000001")

        def fail(scorer: FakeScorer) -> None:
            raise ValueError(scorer.version)

        try:
            assert not replica.batcher.when_idle(partial(fail, scorer), 30.0 if fails else 0.0)
        except ValueError:
            assert fails
        return weakref.ref(scorer)

    gc.disable()  # else a cycle would be collected sooner or later
    try:
        gone = warmed()
        replica.batcher.when_idle(lambda: None, 30.0 if fails else 0.0)  # the thread goes on
        assert gone() is None
    finally:
        gc.enable()
        replica.batcher.close()


def test_the_answers_of_a_batch_are_delivered_one_per_iteration_of_the_event_loop() -> None:
    """What arrives meanwhile comes between them."""
    replica, scorer = Replica(), FakeScorer("v000001")
    num_done: list[int] = []

    async def run() -> None:
        tasks = await admitted(replica, *((scorer, ask("a")) for _ in range(6)))
        replica.batcher.start()
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            num_done.append(sum(task.done() for task in tasks))

    asyncio.run(run())
    replica.batcher.close()
    assert [len(call) for call in scorer.calls] == [6]
    assert max(after - before for before, after in itertools.pairwise([0, *num_done])) == 1


def test_requests_whose_headers_come_together_are_not_all_let_in() -> None:
    replica = Replica(batching=BatcherConfig(max_in_flight=3))
    refusals = [replica.batcher.admit() for _ in range(5)]
    assert [refusal is None for refusal in refusals] == [True, True, True, False, False]
    replica.clock.seconds = 1.0
    assert replica.batcher.admit() is None, "they never came"


def test_a_refusal_stands_until_a_batch_is_taken() -> None:
    replica, scorer = (
        Replica(batching=BatcherConfig(window_seconds=0.0, max_in_flight=2)),
        FakeScorer("v000001"),
    )

    async def run() -> None:
        tasks = await admitted(replica, (scorer, ask("a")), (scorer, ask("b")))
        refusal = replica.batcher.admit()
        assert refusal is not None
        assert replica.batcher.admit() is refusal
        replica.batcher.start()
        await asyncio.gather(*tasks)
        assert replica.batcher.admit() is None, "the clock has stood still"

    asyncio.run(run())
    replica.batcher.close()
