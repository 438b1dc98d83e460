"""Creation of the topics that the settings name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from consumers.events import Kind
from consumers.pipeline import Topics
from deploy.process.terminal import Output

_COMPACTED = {"cleanup.policy": "compact"}
_WEEK_MS = 7 * 86_400_000


class Admin(Protocol):
    """What is asked of the brokers; `consumers.kafka.admin.KafkaAdmin` once started."""

    def topics(self) -> dict[str, int]:
        """Return every topic with its partition count."""

    def create_topic(
        self, topic: str, num_partitions: int, *, config: Mapping[str, str], replication: int
    ) -> bool:
        """Create a topic; False when it existed already."""


def create(
    admin: Admin,
    topics: Topics,
    out: Output,
    *,
    num_partitions: int | None,
    replication: int,
    attribution_us: int,
) -> int:
    """Create the topics that are missing; those that exist are left as they are.

    Items and dead letters are compacted. Events are retained for a week longer than a purchase may
    follow its click.

    Args:
        admin: connected.
        topics: their names.
        out: one line a topic, or one JSON object: topic -> {"created", "partitions"}.
        num_partitions: of events and items; None for as many as an event topic that exists has,
            else 4. Topics of events need equal counts.
        replication: factor; -1 for the brokers' default.
        attribution_us: how long a purchase may follow its click.

    Returns:
        The exit code: 1 when topics of events differ in partitions.
    """
    existing, kinds = admin.topics(), topics.kinds()
    events = [topic for topic, kind in kinds.items() if kind is not Kind.ITEM]
    known = [existing[topic] for topic in events if topic in existing]
    num_partitions = num_partitions or max(known, default=4)
    retained = {"retention.ms": str(attribution_us // 1000 + _WEEK_MS)}
    counts, created = {}, set()
    for topic in (*kinds, topics.dead_letter):
        counts[topic] = existing.get(topic, num_partitions if topic in kinds else 1)
        config = retained if topic in events else _COMPACTED
        if topic not in existing and admin.create_topic(
            topic, counts[topic], config=config, replication=replication
        ):
            created.add(topic)
    found = {
        topic: {"created": topic in created, "partitions": count} for topic, count in counts.items()
    }
    out.give(found, [_line(topic, topic in created, count) for topic, count in counts.items()])
    if len({counts[topic] for topic in events}) > 1:
        listed = ", ".join(f"{topic} {counts[topic]}" for topic in events)
        out.report(f"topics of events need equal numbers of partitions, and have: {listed}")
        return 1
    return 0


def _line(topic: str, created: bool, count: int) -> str:
    plural = "" if count == 1 else "s"
    return f"{topic}: {'created' if created else 'exists'}, {count} partition{plural}"
