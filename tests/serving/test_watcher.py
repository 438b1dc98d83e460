"""Hot swap: nothing unfit is served, no versions are mixed, no request fails meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from learner.artifact import Document, Scores, ScoringInput
from serving.errors import Refused
from serving.inference.slot import NUM_OUTCOMES
from serving.rollout.gate import GOLDEN
from serving.rollout.watcher import Watcher, WatcherConfig
from tests.fakes.scorer import FakeScorer, FakeStore
from tests.serving.conftest import Replica, until

GOLDEN_TEXTS = [document.text for request in GOLDEN for document in request.documents]
BODY = {"query": "q", "documents": ["a", "b", "c"]}


def served(replica: Replica) -> str | None:
    return None if replica.slot.current is None else replica.slot.current.name


def test_swaps_under_load_mix_no_versions_and_fail_no_request(replica: Replica) -> None:
    num_swaps, answers = 40, list[httpx2.Response]()

    async def shopper(client: httpx2.AsyncClient, done: asyncio.Event) -> None:
        while not done.is_set():
            answers.append(await client.post("/v2/rerank", json=BODY))

    async def run() -> None:
        done = asyncio.Event()
        async with replica.client() as client:
            shoppers = [asyncio.create_task(shopper(client, done)) for _ in range(4)]
            for seq in range(2, num_swaps + 2):
                replica.store.publish(seq)
                await asyncio.to_thread(replica.watcher.poll)
            done.set()
            await asyncio.gather(*shoppers)

    asyncio.run(run())
    assert replica.slot.swaps == num_swaps + 1
    assert {answer.status_code for answer in answers} == {200}
    for answer in answers:
        model = answer.json()["model"]
        assert answer.headers["X-Model-Version"] == model
        scores = {result["relevance_score"] for result in answer.json()["results"]}
        assert scores == {int(model[1:]) / 1000}
    models = {answer.json()["model"] for answer in answers}
    assert len(models) > 2, "no swap happened while requests were in flight"


def test_a_request_ends_on_the_version_that_it_began_with(replica: Replica) -> None:
    old = replica.store.scorers["v000001"]
    assert isinstance(old, FakeScorer)
    old.gate, before = threading.Event(), len(old.calls)

    async def run() -> tuple[httpx2.Response, httpx2.Response]:
        async with replica.client() as client:
            began = asyncio.create_task(client.post("/v2/rerank", json=BODY))
            await until(lambda: len(old.calls) == before + 1)
            replica.store.publish(2)
            await asyncio.to_thread(replica.watcher.poll)
            assert old.gate is not None
            old.gate.set()
            return await began, await client.post("/v2/rerank", json=BODY)

    first, second = asyncio.run(run())
    assert first.headers["X-Model-Version"] == "v000001"
    assert second.headers["X-Model-Version"] == "v000002"


def test_what_follows_the_first_load_is_done_once_and_before_anything_is_answered() -> None:
    replica, seen = Replica(), list[str | None]()
    watcher = Watcher(
        replica.store,
        replica.slot,
        replica.telemetry,
        WatcherConfig(),
        first_loaded=lambda: seen.append(served(replica)),
    )
    for seq in (1, 2):
        replica.store.publish(seq)
        watcher.poll()
    assert (seen, served(replica)) == ([None], "v000002")


def test_a_version_is_promoted_only_after_it_is_in_use(replica: Replica) -> None:
    seen: list[tuple[str | None, str | None]] = []
    promote = replica.store.promote

    def watched(version: Any) -> None:
        seen.append((served(replica), replica.store.aliases()["champion"]))
        promote(version)

    replica.store.promote = watched  # type: ignore[method-assign]
    replica.store.publish(2)
    replica.watcher.poll()
    assert seen == [("v000002", "v000001")]
    aliases = {"champion": "v000002", "challenger": None, "previous": "v000001"}
    assert replica.store.aliases() == aliases


def test_a_corrupt_version_is_refused_never_loaded_and_the_old_one_stays(
    client: TestClient, replica: Replica
) -> None:
    replica.store.corrupt = {"v000002"}
    replica.store.publish(2)
    for _ in range(3):
        replica.watcher.poll()
    assert client.post("/v2/rerank", json=BODY).headers["X-Model-Version"] == "v000001"
    assert replica.store.loaded == ["v000001"]
    assert replica.store.aliases()["champion"] == "v000001"
    # A refused version must not be tried again.
    assert replica.value("serving_swaps_total", result="rejected") == 1
    assert replica.value("serving_gate_checks_total", check="load", result="failed") == 1
    assert "model.safetensors" in client.get("/info").json()["refused"]["v000002"]
    models = client.get("/v1/models").json()["models"]
    assert [model["state"] for model in models] == ["champion", "refused"]
    assert [model["weighting"] for model in models] == [{"scheme": "uniform"}] * 2
    replica.store.publish(3)
    replica.watcher.poll()
    assert served(replica) == "v000003"


def raising(requests: Any) -> None:
    raise ValueError("no such layer")


class Short(FakeScorer):
    def score(self, requests: Any) -> list[Scores]:
        return [
            replace(s, probability={**s.probability, "click": s.probability["click"][1:]})
            for s in super().score(requests)
        ]


def broken(version: str) -> FakeScorer:
    scorer = FakeScorer(version)
    scorer.fault = raising
    return scorer


@pytest.mark.parametrize(
    ("check", "scorer"),
    [
        ("warm", broken("v000002")),
        ("shape", Short("v000002")),
        ("finite", FakeScorer("v000002", {"garden hose 20 m": float("inf")})),
        ("distribution", FakeScorer("v000002", dict.fromkeys(GOLDEN_TEXTS, 0.9))),
        ("distribution", FakeScorer("v000002", purchase=0.0)),
    ],
)
def test_an_unfit_version_is_refused_by_the_name_of_the_check(
    check: str, scorer: FakeScorer
) -> None:
    replica = Replica()
    replica.store.publish(1)
    replica.watcher.poll()
    replica.store.publish(2, scorer)
    replica.watcher.poll()
    assert served(replica) == "v000001"
    assert replica.watcher.refused["v000002"].startswith(f"{check}: ")
    assert replica.value("serving_gate_checks_total", check=check, result="failed") == 1


class Loaded:
    """What a check is about."""


def test_a_refusal_keeps_nothing_of_what_was_refused(replica: Replica) -> None:
    def refuse() -> weakref.ref[Loaded]:
        loaded = Loaded()
        with contextlib.suppress(Refused), replica.watcher._check("load"):
            raise ValueError
        return weakref.ref(loaded)

    gc.disable()  # else a cycle would be collected sooner or later
    try:
        assert refuse()() is None
    finally:
        gc.enable()


def test_a_new_version_scores_recent_requests_before_it_is_used(
    client: TestClient, replica: Replica
) -> None:
    texts = [str(number) for number in range(40)]
    client.post("/v2/rerank", json={"query": "warm", "documents": texts})
    new = FakeScorer("v000002")
    replica.store.publish(2, new)
    replica.watcher.poll()
    warm = tuple(Document(text=text) for text in texts[:32])
    asked = ScoringInput(query="warm", documents=warm)
    assert new.calls == [list(GOLDEN), [asked], list(GOLDEN)]


def test_the_last_version_is_kept_and_an_operators_promote_goes_back_to_it_without_loading(
    replica: Replica,
) -> None:
    replica.store.publish(2)
    replica.watcher.poll()
    replica.store.promote(replica.store.version("v000001"))
    replica.watcher.poll()
    assert served(replica) == "v000001"
    assert replica.store.loaded == ["v000001", "v000002"]
    assert replica.value("serving_rollbacks_total", reason="operator") == 1
    assert replica.store.aliases()["champion"] == "v000001"
    replica.watcher.poll()
    # The version that was rolled back from must not come again unannounced.
    assert served(replica) == "v000001"
    replica.store.publish(3)
    replica.watcher.poll()
    assert served(replica) == "v000003"


def test_an_operators_choice_stands_above_the_comparison(replica: Replica) -> None:
    replica.store.add(2, FakeScorer("v000002", dict.fromkeys(GOLDEN_TEXTS, 0.999)))
    replica.store.promote(replica.store.version("v000002"))
    replica.watcher.poll()
    assert served(replica) == "v000002"


def restarted(store: FakeStore) -> Replica:
    replica = Replica(store=store)
    replica.watcher.poll()
    return replica


def test_after_a_restart_the_champion_serves_and_what_was_rolled_back_from_does_not() -> None:
    store = FakeStore()
    store.publish(1)
    before = restarted(store)
    store.publish(2)
    before.watcher.poll()
    store.promote(store.version("v000001"))
    assert served(restarted(store)) == "v000001"


def test_after_a_restart_an_announcement_that_nobody_has_judged_is_taken() -> None:
    store = FakeStore()
    store.publish(1)
    restarted(store)
    store.publish(2)
    assert served(restarted(store)) == "v000002"
    assert store.aliases()["champion"] == "v000002"


def test_a_champion_that_is_damaged_at_start_is_replaced_by_the_one_before() -> None:
    store = FakeStore()
    for seq in (1, 2):
        store.publish(seq)
        restarted(store)
    store.corrupt = {"v000002"}
    replica = restarted(store)
    assert served(replica) == "v000001"
    # It was also the announced one, and must be judged once.
    assert replica.value("serving_swaps_total", result="rejected") == 1
    assert store.aliases()["champion"] == "v000002", "only an operator moves it back"


def test_an_alias_that_another_replica_has_moved_further_is_not_moved_back(
    replica: Replica,
) -> None:
    replica.store.publish(2)
    replica.store.add(3)

    def meanwhile(name: str) -> None:
        if name == "v000002":
            replica.store.promote(replica.store.version("v000003"))

    replica.store.on_load = meanwhile
    replica.watcher.poll()
    assert (served(replica), replica.store.aliases()["champion"]) == ("v000002", "v000003")
    replica.watcher.poll()
    assert served(replica) == "v000003"


def test_an_alias_that_cannot_be_moved_stops_no_swap(replica: Replica) -> None:
    def full(version: Any) -> None:
        raise OSError("no space left on device")

    replica.store.promote = full  # type: ignore[method-assign]
    replica.store.publish(2)
    replica.watcher.poll()
    assert served(replica) == "v000002"
    assert replica.value("serving_gate_checks_total", check="promote", result="failed") == 1
    replica.watcher.poll()
    assert served(replica) == "v000002"


def test_a_store_that_cannot_be_read_is_logged_once_and_read_again(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    replica.store.publish(2)
    replica.store.failure = OSError("stale file handle")
    with caplog.at_level(logging.WARNING, "steelyard.serving"):
        for _ in range(3):
            replica.watcher.poll()
    assert [record.message for record in caplog.records] == ["store cannot be read"]
    assert replica.value("serving_gate_checks_total", check="announcement", result="failed") == 3
    replica.store.failure = None
    replica.watcher.poll()
    assert served(replica) == "v000002"


def promote_by_operator(replica: Replica, seq: int) -> None:
    """Promote as an operator does: champion and pin in one move."""
    version = replica.store.version(f"v{seq:06d}")
    replica.store.pin(version.name)
    replica.store.promote(version)
    replica.store.pin(None if version.name == replica.store.announced() else version.name)


def test_what_an_operator_went_back_to_stays_in_use_whatever_the_learner_announces(
    replica: Replica,
) -> None:
    replica.store.publish(2)
    replica.watcher.poll()
    promote_by_operator(replica, 1)
    replica.watcher.poll()
    assert served(replica) == "v000001"
    for seq in (3, 4):
        replica.store.publish(seq)
        replica.watcher.poll()
    assert (served(replica), replica.store.aliases()["champion"]) == ("v000001", "v000001")
    promote_by_operator(replica, 4)
    replica.watcher.poll()
    replica.store.publish(5)
    replica.watcher.poll()
    assert served(replica) == "v000005", "the newest was chosen: the learner is followed again"


def test_after_a_restart_the_operators_choice_serves(replica: Replica) -> None:
    replica.store.publish(2)
    replica.watcher.poll()
    promote_by_operator(replica, 1)
    replica.store.publish(3)
    assert served(restarted(replica.store)) == "v000001"


def test_a_choice_made_while_a_newer_version_is_loading_wins(replica: Replica) -> None:
    replica.store.publish(2)
    replica.watcher.poll()
    replica.store.add(1)

    def meanwhile(name: str) -> None:
        if name == "v000003":
            promote_by_operator(replica, 2)

    replica.store.on_load = meanwhile
    replica.store.publish(3)
    replica.watcher.poll()
    replica.watcher.poll()
    assert (served(replica), replica.store.aliases()["champion"]) == ("v000002", "v000002")


def test_a_choice_that_cannot_be_served_holds_nothing_back(replica: Replica) -> None:
    replica.store.publish(2)
    replica.watcher.poll()
    replica.store.add(9)
    replica.store.corrupt = {"v000009"}
    promote_by_operator(replica, 9)
    replica.watcher.poll()
    replica.store.publish(10)
    replica.watcher.poll()
    assert served(replica) == "v000010"
    assert "v000009" in replica.watcher.refused


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loader_that_has_ended_by_itself_is_not_alive() -> None:
    def wait(seconds: float) -> bool:
        raise RuntimeError("the wait itself is broken")

    replica = Replica(wait=wait)
    replica.watcher.start()
    for thread in threading.enumerate():
        if thread.name == "loader":
            thread.join()
    with TestClient(replica.app) as client:
        answer = client.get("/livez")
    assert answer.status_code == 503
    assert answer.json()["detail"] == "the loader thread has ended. Try again in 1 s"


def test_the_thread_polls_whenever_its_wait_ends() -> None:
    replica = Replica()
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        replica.store.publish(len(waits) + 1)
        return len(waits) == 3

    replica.store.publish(1)
    watcher = Watcher(replica.store, replica.slot, replica.telemetry, WatcherConfig(), wait=wait)
    watcher.start()
    watcher.close()
    assert waits == [0.1, 0.1, 0.1]
    assert served(replica) == "v000003"
    assert watcher.healthy


FAILING = {"query": "q", "documents": ["a", "of one kind"]}


def failing(version: str) -> FakeScorer:
    """A version that fails on texts that no probe has."""
    return FakeScorer(version, {"of one kind": float("nan")})


def test_a_version_that_fails_in_use_is_rolled_back_with_its_reason_and_not_tried_again(
    client: TestClient, replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    replica.store.publish(2, failing("v000002"))
    replica.watcher.poll()
    for _ in range(4):
        client.post("/v2/rerank", json=BODY)
        assert client.post("/v2/rerank", json=FAILING).status_code == 424
    replica.watcher.poll()
    assert served(replica) == "v000002", "four failures are no burst"
    client.post("/v2/rerank", json=FAILING)
    with caplog.at_level(logging.ERROR, "steelyard.serving"):
        replica.watcher.poll()
    assert client.post("/v2/rerank", json=FAILING).headers["X-Model-Version"] == "v000001"
    assert replica.value("serving_rollbacks_total", reason="failures") == 1
    reason = "5 of its newest 9 answers failed: rolled back to v000001"
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert (record.message, record.__dict__["reason"]) == ("version rolled back", reason)
    models = client.get("/v1/models").json()["models"]
    assert [(m["state"], m["reason"]) for m in models] == [
        ("champion", None),
        ("refused", f"failures: {reason}"),
    ]
    assert replica.store.aliases()["champion"] == "v000001"
    for _ in range(3):
        replica.watcher.poll()
    assert served(replica) == "v000001"
    assert served(restarted(replica.store)) == "v000001"
    replica.store.publish(3)
    replica.watcher.poll()
    assert served(replica) == "v000003"
    replica.store.publish(2)  # announced anew, mended
    replica.watcher.poll()
    assert served(replica) == "v000002"


def test_failures_that_the_former_version_had_too_are_not_the_new_ones(
    client: TestClient, replica: Replica
) -> None:
    former = replica.slot.current
    assert former is not None
    former.outcomes.extend([False] * 10)
    replica.store.publish(2, failing("v000002"))
    replica.watcher.poll()
    for _ in range(15):
        client.post("/v2/rerank", json=FAILING)
    replica.watcher.poll()
    assert served(replica) == "v000002"
    for _ in range(6):
        client.post("/v2/rerank", json=FAILING)
    replica.watcher.poll()
    assert served(replica) == "v000001", "more than twice as many"


def test_failures_of_long_ago_are_forgotten_and_the_rollback_can_be_switched_off() -> None:
    for config, expected in (
        (WatcherConfig(), "v000002"),
        (WatcherConfig(rollback_failures=0), "v000002"),
        (WatcherConfig(rollback_failures=1), "v000001"),
    ):
        replica = Replica(watching=config)
        for seq in (1, 2):
            replica.store.publish(seq)
            replica.watcher.poll()
        current = replica.slot.current
        assert current is not None
        current.outcomes.extend([False] * 50)
        current.outcomes.extend([True] * (NUM_OUTCOMES - 1))
        replica.watcher.poll()
        assert served(replica) == expected


def test_an_operator_who_chooses_a_failing_version_again_gives_it_a_new_start(
    replica: Replica,
) -> None:
    version = replica.store.publish(2)
    replica.watcher.poll()
    assert replica.slot.current is not None
    replica.slot.current.outcomes.extend([False] * 5)
    replica.watcher.poll()
    assert served(replica) == "v000001"
    replica.store.withdraw_refusal(version.name)  # as `Store.promote` does for an operator
    replica.store.promote(version)
    for _ in range(2):
        replica.watcher.poll()
    assert served(replica) == "v000002"


class KeepingScorer(FakeScorer):
    """A scorer that keeps texts."""

    def __init__(self, version: str, fixed: str, known: Sequence[int] = ()) -> None:
        super().__init__(version)
        self.fixed, self._kept = fixed, list(known)
        self.on_keep: Callable[[], None] = lambda: None

    def kept(self) -> Sequence[int]:
        return self._kept

    def keep(self, texts: Sequence[int]) -> None:
        self.on_keep()
        self._kept += texts


@pytest.mark.parametrize("same", [True, False])
def test_a_new_version_knows_the_texts_of_the_one_in_use_before_it_is_used(
    replica: Replica, same: bool
) -> None:
    current = KeepingScorer("v000002", "as it was", range(100))
    after = KeepingScorer("v000003", "as it was" if same else "another tokenizer")
    replica.store.publish(2, current)
    replica.watcher.poll()
    replica.store.publish(3, after)
    in_use_meanwhile: set[str | None] = set()
    after.on_keep = lambda: in_use_meanwhile.add(served(replica))
    replica.watcher.poll()
    assert served(replica) == "v000003"
    assert in_use_meanwhile == ({"v000002"} if same else set())
    assert list(after.kept()) == (list(range(100)) if same else [])


def test_a_version_waits_no_longer_than_it_may_for_texts_that_are_known(replica: Replica) -> None:
    now = 0.0

    class Slow(KeepingScorer):
        def keep(self, texts: Sequence[int]) -> None:
            nonlocal now
            now += 1.0
            super().keep(texts)

    watcher = Watcher(
        replica.store,
        replica.slot,
        replica.telemetry,
        WatcherConfig(warm_seconds=3.0),
        clock=lambda: now,
    )
    replica.store.publish(2, KeepingScorer("v000002", "same", range(1000)))
    watcher.poll()
    after = Slow("v000003", "same")
    replica.store.publish(3, after)
    watcher.poll()
    assert served(replica) == "v000003"
    assert (now, len(after.kept())) == (3.0, 12)
