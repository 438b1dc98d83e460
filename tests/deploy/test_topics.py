"""Creation of topics, and settings for a trial."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from consumers.pipeline import Topics
from deploy.admin import topics as creating
from deploy.settings.leaf import leaves
from deploy.settings.load import load
from deploy.settings.render import TRIAL, starter
from deploy.settings.tree import Settings
from tests.fakes.paper import Paper

HOUR_US = 3_600_000_000


class Brokers:
    """Topics of a cluster, with the configuration they were created with."""

    def __init__(self, **existing: int) -> None:
        self.existing = dict(existing)
        self.created: dict[str, tuple[int, Mapping[str, str], int]] = {}

    def topics(self) -> dict[str, int]:
        return dict(self.existing)

    def create_topic(
        self, topic: str, num_partitions: int, *, config: Mapping[str, str], replication: int
    ) -> bool:
        self.created[topic] = num_partitions, config, replication
        return True


def create(brokers: Brokers, paper: Paper, num_partitions: int | None = None) -> int:
    return creating.create(
        brokers,
        Topics(),
        paper.output(),
        num_partitions=num_partitions,
        replication=-1,
        attribution_us=HOUR_US,
    )


def test_missing_topics_are_created_with_the_configuration_that_the_doctor_asks_for() -> None:
    brokers, paper = Brokers(), Paper()
    assert create(brokers, paper) == 0
    retained = {"retention.ms": str(3_600_000 + 7 * 86_400_000)}
    compacted = {"cleanup.policy": "compact"}
    events = dict.fromkeys(("exposures", "clicks", "purchases"), (4, retained, -1))
    others = {"items": (4, compacted, -1), "steelyard.deadletter": (1, compacted, -1)}
    assert brokers.created == {**events, **others}
    assert paper.written[0] == "exposures: created, 4 partitions"
    assert paper.written[-1] == "steelyard.deadletter: created, 1 partition"


def test_existing_topics_are_left_alone_and_give_the_number_of_partitions() -> None:
    brokers, paper = Brokers(clicks=7, exposures=7), Paper()
    assert create(brokers, paper) == 0
    assert {topic: one[0] for topic, one in brokers.created.items()} == {
        "purchases": 7,
        "items": 7,
        "steelyard.deadletter": 1,
    }
    assert "clicks: exists, 7 partitions" in paper.written


def test_event_topics_that_differ_are_told_and_exit_1() -> None:
    brokers, paper = Brokers(clicks=7), Paper()
    assert create(brokers, paper, num_partitions=4) == 1
    assert paper.reported == [
        "topics of events need equal numbers of partitions, and have: exposures 4, clicks 7, "
        "purchases 4"
    ]


def test_the_file_for_a_trial_sets_windows_of_seconds_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "trial.yaml"
    file.write_text(starter(TRIAL))
    settings = load(file, {})
    assert settings.origins.keys() == TRIAL.keys()
    assert settings.join.click_window_us + settings.join.grace_us < 30_000_000
    assert settings.store.root == Path("steelyard-store")


@pytest.mark.parametrize("leaf", list(leaves(Settings())), ids=lambda leaf: leaf.key)
def test_every_key_has_a_help_text(leaf: object) -> None:
    assert getattr(leaf, "help", "")
