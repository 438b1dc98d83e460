"""A model that changes underneath: nothing unfit is served, nothing is mixed, nothing fails meanwhile."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import httpx
import pytest
from litestar.testing import TestClient

from learner.artifact import Document, Scores, ScoringInput
from serving.rollout.gate import GOLDEN
from serving.rollout.watcher import Watcher, WatcherConfig
from tests.fakes.scorer import FakeScorer, FakeStore
from tests.serving.conftest import House, until

BODY = {"query": "q", "documents": ["a", "b", "c"]}


def served(house: House) -> str | None:
    return None if house.slot.current is None else house.slot.current.name


def test_swaps_under_load_mix_no_versions_and_fail_no_request(house: House) -> None:
    num_swaps, answers = 40, list[httpx.Response]()

    async def shopper(client: httpx.AsyncClient, done: asyncio.Event) -> None:
        while not done.is_set():
            answers.append(await client.post("/v2/rerank", json=BODY))

    async def run() -> None:
        done = asyncio.Event()
        async with house.client() as client:
            shoppers = [asyncio.create_task(shopper(client, done)) for _ in range(4)]
            for seq in range(2, num_swaps + 2):
                house.store.publish(seq)
                await asyncio.to_thread(house.watcher.poll)
            done.set()
            await asyncio.gather(*shoppers)

    asyncio.run(run())
    assert house.slot.swaps == num_swaps + 1
    assert {answer.status_code for answer in answers} == {200}
    for answer in answers:
        model = answer.json()["model"]
        assert answer.headers["X-Model-Version"] == model
        assert {result["relevance_score"] for result in answer.json()["results"]} == {
            int(model[1:]) / 1000
        }
    assert len({answer.json()["model"] for answer in answers}) > 2, (
        "no swap happened while requests were in flight"
    )


def test_a_request_ends_on_the_version_that_it_began_with(house: House) -> None:
    old = house.store.scorers["v000001"]
    assert isinstance(old, FakeScorer)
    old.gate, before = threading.Event(), len(old.calls)

    async def run() -> tuple[httpx.Response, httpx.Response]:
        async with house.client() as client:
            began = asyncio.create_task(client.post("/v2/rerank", json=BODY))
            await until(lambda: len(old.calls) == before + 1)
            house.store.publish(2)
            await asyncio.to_thread(house.watcher.poll)
            assert old.gate is not None
            old.gate.set()
            return await began, await client.post("/v2/rerank", json=BODY)

    first, second = asyncio.run(run())
    assert (first.headers["X-Model-Version"], second.headers["X-Model-Version"]) == (
        "v000001",
        "v000002",
    )


def test_a_version_is_promoted_only_after_it_is_in_use(house: House) -> None:
    seen: list[tuple[str | None, str | None]] = []
    promote = house.store.promote

    def watched(version: Any) -> None:
        seen.append((served(house), house.store.aliases()["champion"]))
        promote(version)

    house.store.promote = watched  # type: ignore[method-assign]
    house.store.publish(2)
    house.watcher.poll()
    assert seen == [("v000002", "v000001")]
    assert house.store.aliases() == {
        "champion": "v000002",
        "challenger": None,
        "previous": "v000001",
    }


def test_a_corrupt_version_is_refused_never_loaded_and_the_old_one_stays(
    client: TestClient[Any], house: House
) -> None:
    house.store.corrupt = {"v000002"}
    house.store.publish(2)
    for _ in range(3):
        house.watcher.poll()
    assert client.post("/v2/rerank", json=BODY).headers["X-Model-Version"] == "v000001"
    assert house.store.loaded == ["v000001"]
    assert house.store.aliases()["champion"] == "v000001"
    assert house.value("serving_swaps_total", result="rejected") == 1, (
        "a refused version must not be tried again"
    )
    assert house.value("serving_gate_checks_total", check="load", result="failed") == 1
    assert "model.safetensors" in client.get("/info").json()["refused"]["v000002"]
    assert [model["state"] for model in client.get("/v1/models").json()["models"]] == [
        "champion",
        "refused",
    ]
    house.store.publish(3)
    house.watcher.poll()
    assert served(house) == "v000003"


def raising(requests: Any) -> None:
    raise ValueError("no such layer")


class Short(FakeScorer):
    def score(self, requests: Any) -> list[Scores]:
        return [
            Scores(click=s.click[1:], purchase=s.purchase, score=s.score, prior=s.prior)
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
        ("golden", FakeScorer("v000002", {"garden hose 20 m": 0.9})),
        ("golden", FakeScorer("v000002", purchase=0.0)),
    ],
)
def test_an_unfit_version_is_refused_by_the_name_of_the_check(
    check: str, scorer: FakeScorer
) -> None:
    house = House(watching=WatcherConfig(max_shift_ratio=0.4))
    house.store.publish(1)
    house.watcher.poll()
    house.store.publish(2, scorer)
    house.watcher.poll()
    assert served(house) == "v000001"
    assert house.watcher.refused["v000002"].startswith(f"{check}: ")
    assert house.value("serving_gate_checks_total", check=check, result="failed") == 1


def test_a_new_version_is_warmed_with_recent_requests_before_it_is_used(
    client: TestClient[Any], house: House
) -> None:
    client.post(
        "/v2/rerank", json={"query": "warm", "documents": [str(number) for number in range(40)]}
    )
    new = FakeScorer("v000002")
    house.store.publish(2, new)
    house.watcher.poll()
    assert new.calls == [
        [
            ScoringInput(
                query="warm", documents=tuple(Document(text=str(number)) for number in range(32))
            )
        ],
        list(GOLDEN),
    ]


def test_the_last_version_is_kept_and_an_operators_promote_goes_back_to_it_without_loading(
    house: House,
) -> None:
    house.store.publish(2)
    house.watcher.poll()
    house.store.promote(house.store.version("v000001"))
    house.watcher.poll()
    assert served(house) == "v000001"
    assert house.store.loaded == ["v000001", "v000002"]
    assert house.value("serving_rollbacks_total", reason="operator") == 1
    assert house.store.aliases()["champion"] == "v000001"
    house.watcher.poll()
    assert served(house) == "v000001", (
        "what was rolled back from came again without a new announcement"
    )
    house.store.publish(3)
    house.watcher.poll()
    assert served(house) == "v000003"


def test_an_operators_order_stands_above_the_golden_requests(house: House) -> None:
    house.store.add(2, FakeScorer("v000002", {"garden hose 20 m": 0.999}))
    house.store.promote(house.store.version("v000002"))
    house.watcher.poll()
    assert served(house) == "v000002"


def restarted(store: FakeStore) -> House:
    house = House(store=store)
    house.watcher.poll()
    return house


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
    house = restarted(store)
    assert served(house) == "v000001"
    assert house.value("serving_swaps_total", result="rejected") == 1, (
        "it was also the announced one, and must be judged once"
    )
    assert store.aliases()["champion"] == "v000002", "only an order moves the alias back"


def test_an_alias_that_another_replica_has_moved_further_is_not_moved_back(house: House) -> None:
    house.store.publish(2)
    house.store.add(3)
    house.store.on_load = lambda name: (
        house.store.promote(house.store.version("v000003")) if name == "v000002" else None
    )
    house.watcher.poll()
    assert (served(house), house.store.aliases()["champion"]) == ("v000002", "v000003")
    house.watcher.poll()
    assert served(house) == "v000003"


def test_an_alias_that_cannot_be_moved_stops_no_swap(house: House) -> None:
    def full(version: Any) -> None:
        raise OSError("no space left on device")

    house.store.promote = full  # type: ignore[method-assign]
    house.store.publish(2)
    house.watcher.poll()
    assert served(house) == "v000002"
    assert house.value("serving_gate_checks_total", check="promote", result="failed") == 1
    house.watcher.poll()
    assert served(house) == "v000002"


def test_a_store_that_cannot_be_read_is_said_once_and_looked_at_again(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.store.publish(2)
    house.store.failure = OSError("stale file handle")
    with caplog.at_level(logging.WARNING, "steelyard.serving"):
        for _ in range(3):
            house.watcher.poll()
    assert [record.message for record in caplog.records] == ["store cannot be read"]
    assert house.value("serving_gate_checks_total", check="announcement", result="failed") == 3
    house.store.failure = None
    house.watcher.poll()
    assert served(house) == "v000002"


def order(house: House, seq: int) -> None:
    """As `Store.promote(by_operator=True)`: champion and pin in one move."""
    version = house.store.version(f"v{seq:06d}")
    house.store.pin(version.name)
    house.store.promote(version)
    house.store.pin(None if version.name == house.store.announced() else version.name)


def test_what_an_operator_went_back_to_stays_in_use_whatever_the_learner_announces(
    house: House,
) -> None:
    house.store.publish(2)
    house.watcher.poll()
    order(house, 1)
    house.watcher.poll()
    assert served(house) == "v000001"
    for seq in (3, 4):
        house.store.publish(seq)
        house.watcher.poll()
    assert (served(house), house.store.aliases()["champion"]) == ("v000001", "v000001")
    order(house, 4)
    house.watcher.poll()
    house.store.publish(5)
    house.watcher.poll()
    assert served(house) == "v000005", "the newest was ordered, so the learner is followed again"


def test_after_a_restart_what_was_ordered_serves(house: House) -> None:
    house.store.publish(2)
    house.watcher.poll()
    order(house, 1)
    house.store.publish(3)
    assert served(restarted(house.store)) == "v000001"


def test_an_order_given_while_a_newer_version_is_loading_wins(house: House) -> None:
    house.store.publish(2)
    house.watcher.poll()
    house.store.add(1)

    def meanwhile(name: str) -> None:
        if name == "v000003":
            order(house, 2)

    house.store.on_load = meanwhile
    house.store.publish(3)
    house.watcher.poll()
    house.watcher.poll()
    assert (served(house), house.store.aliases()["champion"]) == ("v000002", "v000002")


def test_an_order_that_cannot_be_served_holds_nothing_back(house: House) -> None:
    house.store.publish(2)
    house.watcher.poll()
    house.store.add(9)
    house.store.corrupt = {"v000009"}
    order(house, 9)
    house.watcher.poll()
    house.store.publish(10)
    house.watcher.poll()
    assert served(house) == "v000010"
    assert "v000009" in house.watcher.refused


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loader_that_has_ended_by_itself_is_not_alive() -> None:
    def wait(seconds: float) -> bool:
        raise RuntimeError("the wait itself is broken")

    house = House(wait=wait)
    house.watcher.start()
    for thread in threading.enumerate():
        if thread.name == "loader":
            thread.join()
    with TestClient(house.app) as client:
        answer = client.get("/livez")
    assert (answer.status_code, answer.json()["detail"]) == (
        503,
        "the loader thread has ended. Try again in 1 s",
    )


def test_the_thread_polls_whenever_its_wait_ends() -> None:
    house = House()
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        house.store.publish(len(waits) + 1)
        return len(waits) == 3

    house.store.publish(1)
    watcher = Watcher(house.store, house.slot, house.telemetry, WatcherConfig(), wait=wait)
    watcher.start()
    watcher.close()
    assert waits == [0.1, 0.1, 0.1]
    assert served(house) == "v000003"
    assert watcher.healthy
