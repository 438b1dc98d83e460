"""The role `learn`: its advisory commit may fail, and its metrics show the last verdict."""

from collections.abc import Mapping
from pathlib import Path

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


class MoodyAdmin(KafkaAdmin):
    """A source that commits or refuses, as given."""

    def __init__(self, *moods: bool) -> None:
        super().__init__(KafkaConfig())
        self._moods = iter(moods)

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        if not next(self._moods):
            raise CommitFailed(group, "the coordinator is not there yet")


def test_an_advisory_commit_that_fails_once_is_no_warning_and_twice_in_a_row_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (version,) = saved(tmp_path, 1)
    registry = CollectorRegistry()
    moods = (False, True, False, False, False, True)
    commit = AdvisoryCommit(MoodyAdmin(*moods), "g", Telemetry(registry))
    caplog.set_level("INFO")
    for _ in moods:
        commit(version)
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "WARNING", "WARNING"]
    assert (
        registry.get_sample_value(
            "steelyard_consumer_committed_offset", {"topic": "clicks", "partition": "1"}
        )
        == 11
    )


def test_the_role_shows_what_was_verified_of_its_store(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    role = LearnRole(load(None, {}, {"store.root": str(tmp_path)}))
    verdict.write(tmp_path, Disk(), version="v000002", since=None, num_differences=3, now_us=0)
    assert role.registry.get_sample_value("steelyard_verify_differences") == 3
