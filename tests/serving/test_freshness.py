"""From event time to the first answer that knows of the event, once per event."""

from __future__ import annotations

from starlette.testclient import TestClient

from tests.fakes.scorer import FakeStore
from tests.serving.conftest import Replica

BODY = {"query": "q", "documents": ["a"]}
T0 = 1_795_471_700


def answer_at(replica: Replica, client: TestClient, seconds: float) -> None:
    replica.wall_clock.seconds = T0 + seconds
    assert client.post("/v2/rerank", json=BODY).status_code == 200


def observed(replica: Replica) -> tuple[float, float]:
    """Return number and sum of the observed freshness values."""
    count, total = "freshness_seconds_count", "freshness_seconds_sum"
    return replica.value(count), replica.value(total)


def swapped(replica: Replica, seq: int, *events: tuple[float, int]) -> None:
    replica.store.fresh[f"v{seq:06d}"] = [(round((T0 + at) * 1e6), count) for at, count in events]
    replica.store.publish(seq)
    replica.watcher.poll()


def test_freshness_is_observed_at_the_first_answer_for_each_newly_contained_event(
    client: TestClient, replica: Replica
) -> None:
    answer_at(replica, client, 0.0)
    swapped(replica, 2, (9.0, 2), (5.0, 1))
    assert replica.value("freshness_seconds_count") == 0
    answer_at(replica, client, 10.0)
    answer_at(replica, client, 99.0)
    replica.watcher.poll()
    replica.watcher.poll()
    assert observed(replica) == (3, 7.0)
    info = client.get("/info").json()
    assert (info["freshness_p50_seconds"], info["freshness_p99_seconds"]) == (1.0, 5.0)
    assert (info["version"], info["swaps"]) == ("v000002", 2)


def test_a_version_without_an_answer_leaves_its_events_to_the_next(
    client: TestClient, replica: Replica
) -> None:
    answer_at(replica, client, 0.0)
    swapped(replica, 2, (1.0, 1))
    swapped(replica, 3, (2.0, 1))
    answer_at(replica, client, 4.0)
    replica.watcher.poll()
    assert observed(replica) == (2, 5.0)


def test_an_answer_just_before_a_swap_counts_with_its_own_time(
    client: TestClient, replica: Replica
) -> None:
    answer_at(replica, client, 0.0)
    swapped(replica, 2, (1.0, 1))
    replica.store.on_load = lambda name: answer_at(replica, client, 3.0)
    swapped(replica, 3, (2.0, 1))
    answer_at(replica, client, 7.0)
    replica.watcher.poll()
    assert observed(replica) == (2, 2.0 + 5.0)


def test_what_was_answered_before_a_restart_is_not_fresh_again() -> None:
    store = FakeStore()
    store.publish(1)
    Replica(store=store).watcher.poll()
    replica = Replica(store=store)
    replica.store.fresh["v000001"] = [((T0 - 86_400) * 1_000_000, 1000)]
    replica.watcher.poll()
    replica.batcher.start()
    with TestClient(replica.app) as client:
        answer_at(replica, client, 0.0)
        replica.watcher.poll()
        assert replica.value("freshness_seconds_count") == 0
        swapped(replica, 2, (1.0, 1))
        answer_at(replica, client, 2.0)
        replica.watcher.poll()
        assert client.get("/info").json()["freshness_p50_seconds"] == 1.0
    replica.batcher.close()
    assert replica.value("freshness_seconds_count") == 1


def test_a_rollback_makes_nothing_fresh_twice(client: TestClient, replica: Replica) -> None:
    answer_at(replica, client, 0.0)
    for seq in (2, 3):
        swapped(replica, seq, (1.0, 1))
        answer_at(replica, client, 2.0)
        replica.watcher.poll()
    replica.store.promote(replica.store.version("v000001"))
    replica.watcher.poll()
    answer_at(replica, client, 50.0)
    replica.watcher.poll()
    assert replica.value("freshness_seconds_count") == 2
    swapped(replica, 4, (59.0, 1))
    answer_at(replica, client, 60.0)
    replica.watcher.poll()
    assert observed(replica) == (3, 1.0 + 1.0 + 1.0)
