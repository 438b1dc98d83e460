"""The role `learn`: its advisory commit may fail, and its metrics show the last verdict."""

import threading
from collections.abc import Mapping
from pathlib import Path
from threading import Event

import pytest
from prometheus_client import CollectorRegistry

from consumers.errors import CommitFailed
from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.options import KafkaConfig
from consumers.telemetry import Telemetry
from deploy.roles.advisory_commit import AdvisoryCommit
from deploy.roles.learn import LearnRole
from deploy.settings.load import load
from learner.store import verdict
from learner.store.blobs import Disk
from tests.learner.saving import saved
from weighting.provenance import TopicPartition

OFFSETS = {("clicks", 1): 11}


def committed(registry: CollectorRegistry) -> float | None:
    return registry.get_sample_value(
        "steelyard_consumer_committed_offset", {"topic": "clicks", "partition": "1"}
    )


class MoodyAdmin(KafkaAdmin):
    """Commits or refuses, as given."""

    def __init__(self, *moods: bool) -> None:
        super().__init__(KafkaConfig())
        self._moods = iter(moods)
        self.done = Event()

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        if not next(self._moods):
            raise CommitFailed(group, "the coordinator is not there yet")
        self.done.set()


class SilentAdmin(KafkaAdmin):
    """Answers nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__(KafkaConfig())
        self.asked, self.answers = Event(), Event()
        self.commits: list[Mapping[TopicPartition, int]] = []

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        self.asked.set()
        self.answers.wait()
        self.commits.append(offsets)


def test_an_advisory_commit_that_fails_once_is_no_warning_and_twice_in_a_row_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = CollectorRegistry()
    moods = (False, True, False, False, False, True)
    commit = AdvisoryCommit(MoodyAdmin(*moods), "g", Telemetry(registry))
    caplog.set_level("INFO")
    for _ in moods:
        commit.commit(OFFSETS)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "nothing is lost" in caplog.text
    assert committed(registry) == 11


def test_a_coordinator_that_a_new_broker_makes_at_the_first_question_is_asked_again_quietly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry, admin = CollectorRegistry(), MoodyAdmin(False, True)
    caplog.set_level("INFO")
    commit = AdvisoryCommit(admin, "g", Telemetry(registry), retry_seconds=0.0)
    commit(OFFSETS)
    assert admin.done.wait(60)
    commit.close()
    assert committed(registry) == 11
    assert not caplog.records


def test_newer_offsets_or_the_end_are_not_held_up_by_the_wait_for_a_second_try() -> None:
    registry, admin = CollectorRegistry(), MoodyAdmin(False, True)
    commit = AdvisoryCommit(admin, "g", Telemetry(registry), retry_seconds=3600.0)
    commit(OFFSETS)
    commit({("clicks", 1): 12})
    commit.close(timeout_seconds=60.0)
    assert committed(registry) == 12


def test_brokers_that_do_not_answer_hold_no_publishing_up_and_get_the_newest_offsets() -> None:
    registry, admin = CollectorRegistry(), SilentAdmin()
    commit = AdvisoryCommit(admin, "g", Telemetry(registry))
    commit(OFFSETS)
    admin.asked.wait()
    for offset in (12, 13):
        commit({("clicks", 1): offset})
    admin.answers.set()
    commit.close(timeout_seconds=120.0)
    assert admin.commits == [OFFSETS, {("clicks", 1): 13}]
    assert committed(registry) == 13


def test_one_that_commits_nothing_has_no_thread() -> None:
    before = set(threading.enumerate())
    commit = AdvisoryCommit(SilentAdmin(), "g", Telemetry(CollectorRegistry()))
    assert set(threading.enumerate()) <= before
    commit.close()
    commit(OFFSETS)
    assert set(threading.enumerate()) <= before


def test_an_end_waits_for_no_brokers_and_what_it_leaves_is_never_committed() -> None:
    registry, admin = CollectorRegistry(), SilentAdmin()
    commit = AdvisoryCommit(admin, "g", Telemetry(registry))
    commit(OFFSETS)
    admin.asked.wait()
    commit({("clicks", 1): 12})
    commit.close(timeout_seconds=0.0)
    assert admin.commits == []
    admin.answers.set()
    commit.close(timeout_seconds=120.0)
    assert admin.commits == [OFFSETS]


class FailingAdmin(SilentAdmin):
    """Fails once it is told to answer."""

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        super().commit(group, offsets)
        raise OSError("closed")


def test_a_commit_that_an_end_gave_up_is_not_begun_anew(caplog: pytest.LogCaptureFixture) -> None:
    admin = FailingAdmin()
    commit = AdvisoryCommit(admin, "g", Telemetry(CollectorRegistry()), retry_seconds=3600.0)
    caplog.set_level("INFO")
    commit(OFFSETS)
    admin.asked.wait()
    commit.close(timeout_seconds=0.0)
    admin.answers.set()
    commit.close(timeout_seconds=120.0)
    assert admin.commits == [OFFSETS]
    assert not caplog.records


def test_the_role_shows_what_was_verified_of_its_store(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    role = LearnRole(load(None, {}, {"store.root": str(tmp_path)}))
    verdict.write(tmp_path, Disk(), version="v000002", since=None, num_differences=3, now_us=0)
    assert role.registry.get_sample_value("steelyard_verify_differences") == 3
