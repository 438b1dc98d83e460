"""What one server of a store has refused: others respect it, and nothing reverses it in silence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from learner.artifact import Refusal, StoreFailed
from tests.fakes.scorer import FakeScorer, FakeStore
from tests.serving.conftest import Replica
from tests.serving.test_watcher import served

TRAFFIC = {"query": "q", "documents": ["a", "b"]}


def turned(version: str) -> FakeScorer:
    """A version that answers this shop's traffic otherwise, and nothing that a probe asks."""
    return FakeScorer(version, {"a": 0.999, "b": 0.001})


def started(store: FakeStore) -> Replica:
    replica = Replica(store=store)
    replica.watcher.poll()
    return replica


@pytest.fixture
def refusing(replica: Replica, client: TestClient) -> Replica:
    """A server with traffic that has refused v000002."""
    replica.store.scorers["v000001"] = FakeScorer("v000001")
    client.post("/v2/rerank", json=TRAFFIC)
    replica.store.publish(2, turned("v000002"))
    replica.watcher.poll()
    assert served(replica) == "v000001"
    assert replica.watcher.refused["v000002"].startswith("distribution: recent requests")
    return replica


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, dict[str, Any]]]]:
    caplog.set_level(logging.INFO, "steelyard.serving")

    def read() -> list[tuple[str, dict[str, Any]]]:
        found = [(record.message, record.__dict__) for record in caplog.records]
        caplog.clear()
        return found

    return read


Lines = Callable[[], list[tuple[str, dict[str, Any]]]]


def test_a_server_without_traffic_does_not_take_what_one_with_traffic_has_refused(
    refusing: Replica, lines: Lines
) -> None:
    reason = refusing.watcher.refused["v000002"]
    lines()
    second = started(refusing.store)
    assert served(second) == "v000001"
    said = dict(lines())["version stays refused"]
    assert (said["version"], said["reason"], said["server"]) == ("v000002", reason, "here:8080")
    assert said["at"] == "2026-11-23T22:08:20+00:00"
    assert said["remedy"].endswith("steelyard checkpoints promote v000002")
    assert second.watcher.refused["v000002"].startswith(reason)
    assert second.value("serving_swaps_total", result="rejected") == 1
    for server in (refusing, second):
        server.watcher.poll()
        assert served(server) == "v000001"
    assert refusing.store.aliases()["champion"] == "v000001"
    assert lines() == [], "it is said once"


def test_without_the_record_the_second_server_would_take_it(refusing: Replica) -> None:
    """So it is the record that keeps it from doing so: no probe finds anything."""
    refusing.store.refusals.clear()
    assert served(started(refusing.store)) == "v000002"


def test_a_server_that_starts_again_respects_what_it_refused_before(refusing: Replica) -> None:
    assert served(started(refusing.store)) == "v000001"


def test_the_next_version_is_judged_as_ever(refusing: Replica) -> None:
    refusing.store.publish(3)
    second = started(refusing.store)
    refusing.watcher.poll()
    assert served(second) == served(refusing) == "v000003"


def test_an_operator_who_makes_it_champion_overrules_the_refusal_and_the_log_says_so(
    refusing: Replica, lines: Lines
) -> None:
    second = started(refusing.store)
    reasons = [server.watcher.refused["v000002"] for server in (refusing, second)]
    store = refusing.store
    store.withdraw_refusal("v000002")  # as `Store.promote` does for an operator
    store.promote(store.version("v000002"))
    for server, reason in zip((refusing, second), reasons, strict=True):
        lines()
        server.watcher.poll()
        assert served(server) == "v000002"
        said = dict(lines())
        taken = said["refused version taken"]
        assert (taken["version"], taken["reason"]) == ("v000002", reason)
        assert taken["because"] == "it was made champion"
        assert said["version swapped"]["checked"] == "alone: made champion"
        assert server.watcher.refused == {}


def test_a_champion_that_another_server_made_of_it_is_not_taken(refusing: Replica) -> None:
    """One that judged it at the same moment, without traffic; an operator withdraws a refusal."""
    refusing.store.promote(refusing.store.version("v000002"))
    refusing.watcher.poll()
    assert served(refusing) == "v000001"
    assert served(started(refusing.store)) == "v000001", "the one before, at a start"


def test_an_operator_is_obeyed_who_promotes_what_another_server_has_made_champion(
    refusing: Replica, lines: Lines
) -> None:
    """The alias stays what it is, so the record that is gone is what tells of it."""
    store = refusing.store
    second = started(store)
    store.promote(store.version("v000002"))
    for server in (refusing, second):
        server.watcher.poll()
        assert served(server) == "v000001"
    store.withdraw_refusal("v000002")  # as `Store.promote` does for an operator
    for server in (refusing, second):
        lines()
        server.watcher.poll()
        assert served(server) == "v000002"
        assert dict(lines())["refused version taken"]["because"] == "it was made champion"


def test_a_champion_that_is_announced_once_more_is_compared_and_no_choice_of_an_operator(
    refusing: Replica,
) -> None:
    store = refusing.store
    store.promote(store.version("v000002"))
    store.publish(3, turned("v000003"))
    refusing.watcher.poll()
    assert served(refusing) == "v000001"
    store.publish(2, turned("v000002"))
    store.withdraw_refusal("v000002")  # by another server, which judges it anew
    refusing.watcher.poll()
    assert served(refusing) == "v000001"
    assert refusing.watcher.refused["v000002"].startswith("distribution: recent requests")


def test_a_refusal_that_another_server_records_while_the_version_is_loaded_counts(
    replica: Replica, lines: Lines
) -> None:
    refusal = Refusal(version="v000002", reason="agreement: x", server="there:80", at_us=0)
    replica.store.on_load = lambda name: replica.store.refuse(refusal)
    replica.store.publish(2)
    replica.watcher.poll()
    assert served(replica) == "v000001"
    assert dict(lines())["version stays refused"]["server"] == "there:80"


def test_a_record_that_could_not_be_read_is_read_again(
    refusing: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(name: str) -> None:
        raise PermissionError(13, "Permission denied")

    store = refusing.store
    with monkeypatch.context() as patch:
        patch.setattr(store, "refusal", unreadable)
        second = started(store)
        second.watcher.poll()
        assert served(second) is None
    second.watcher.poll()
    assert served(second) == "v000001"


def test_a_refused_version_that_is_announced_once_more_is_judged_anew_and_the_log_says_so(
    refusing: Replica, lines: Lines
) -> None:
    store = refusing.store
    store.publish(3)
    refusing.watcher.poll()
    store.publish(2, FakeScorer("v000002"))
    lines()
    refusing.watcher.poll()
    assert served(refusing) == "v000002"
    assert dict(lines())["refused version judged anew"]["because"] == "announced once more"
    assert store.refusals == {}


def test_what_failed_for_want_of_something_here_binds_no_other_server(replica: Replica) -> None:
    replica.store.corrupt = {"v000002"}
    replica.store.publish(2)
    replica.watcher.poll()
    assert replica.watcher.refused["v000002"].startswith("load: ")
    assert replica.store.refusals == {}
    replica.store.corrupt = set()
    assert served(started(replica.store)) == "v000002"


def test_a_server_that_would_have_nothing_to_serve_takes_a_refused_champion_and_says_so(
    lines: Lines,
) -> None:
    store = FakeStore()
    store.publish(1)
    store.promote(store.version("v000001"))
    store.refuse(Refusal(version="v000001", reason="agreement: x", server="there:80", at_us=0))
    replica = started(store)
    assert served(replica) == "v000001"
    taken = dict(lines())["refused version taken"]
    assert taken["because"] == "no other can be served"
    assert taken["reason"].startswith("agreement: x (refused by there:80")


def test_a_refused_champion_that_cannot_be_loaded_is_tried_once(lines: Lines) -> None:
    store = FakeStore()
    store.publish(1)
    store.promote(store.version("v000001"))
    store.refuse(Refusal(version="v000001", reason="agreement: x", server="there:80", at_us=0))
    store.corrupt = {"v000001"}
    replica = started(store)
    for _ in range(3):
        replica.watcher.poll()
    assert served(replica) is None
    assert [what for what, _ in lines()].count("refused version taken") == 1


def test_a_refusal_that_cannot_be_recorded_holds_here_and_the_log_says_so(
    replica: Replica, client: TestClient, lines: Lines
) -> None:
    def read_only(refusal: Refusal) -> None:
        raise StoreFailed(step="refuse", path=Path("control"), cause=OSError(30, "read-only"))

    replica.store.refuse = read_only  # type: ignore[method-assign]
    client.post("/v2/rerank", json=TRAFFIC)
    replica.store.publish(2, turned("v000002"))
    replica.watcher.poll()
    assert served(replica) == "v000001"
    assert "v000002" in replica.watcher.refused
    assert dict(lines())["other servers are not told of a refusal"]["version"] == "v000002"


def test_a_swap_says_what_the_version_was_compared_with(
    replica: Replica, client: TestClient, lines: Lines
) -> None:
    def checked() -> str:
        replica.watcher.poll()
        return str(dict(lines())["version swapped"]["checked"])

    lines()
    started(replica.store)
    assert dict(lines())["version swapped"]["checked"] == "alone: no other is in use"
    replica.store.publish(2)
    assert checked() == "without traffic"
    client.post("/v2/rerank", json=TRAFFIC)
    replica.store.publish(3)
    assert checked() == "on 1 recent requests"
    replica.store.promote(replica.store.version("v000002"))
    assert checked() == "not again: it was in use before"
