"""Partitions added to topics that are read: noticed, waited for, and taken over at one poll.

A key may lie in another partition afterwards, so topics that are joined are taken over together,
once all of them have the same number. That is an event among the polls, and journaled with them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

from consumers.errors import PartitionsAdded, SnapshotRefused
from consumers.events import Kind
from consumers.source import Source
from weighting.provenance import Counts, TopicPartition

#: What to do about partitions that were added.
CARRY, HALT = "carry", "stop"

_log = logging.getLogger(__name__)


class Growth:
    """Partition counts that are read, and those that the log has.

    Attributes:
        counts: topic -> number of its partitions that are read, by all ranks together.
    """

    def __init__(
        self,
        source: Source,
        kinds: Mapping[str, Kind],
        counts: Mapping[str, int],
        *,
        policy: str,
        world: int,
        attribution_us: int,
    ) -> None:
        """Take a started source.

        Args:
            source: knows what the log has.
            kinds: the kind of each topic.
            counts: of the topics as they are read.
            policy: `carry`, or `stop`.
            world: number of ranks that share the partitions.
            attribution_us: the window of open entries.
        """
        self.counts = {topic: counts[topic] for topic in kinds}
        self._source = source
        self._events = [topic for topic, kind in kinds.items() if kind is not Kind.ITEM]
        self._policy = policy
        self._world = world
        self._attribution_us = attribution_us
        self._said: Mapping[str, int] = {}
        # Topic -> its count before, and the event time up to which something open is of then.
        self._grown: dict[str, tuple[int, int]] = {}

    def added(self) -> dict[str, int]:
        """Return how many partitions each topic has that are not read."""
        found = self._source.partition_counts()
        return {topic: max(found[topic] - count, 0) for topic, count in self.counts.items()}

    def due(self) -> Counts:
        """Return the counts to read from now on, of the topics that have grown; mostly none.

        Raises:
            PartitionsAdded: the policy is `stop`, or several ranks share the partitions.
        """
        if not any(self.added().values()):
            return ()
        found = self._source.partition_counts()
        if self._policy == HALT or self._world > 1:
            raise PartitionsAdded(self.counts, found, self._world)
        grown = [topic for topic in self.counts if self._takes_over(topic, found)]
        self._report(found, grown)
        return tuple((topic, found[topic]) for topic in grown)

    def take_over(
        self, counts: Counts, known: Collection[TopicPartition], present_us: int
    ) -> list[TopicPartition]:
        """Read these counts from now on; return the partitions of this reader that are new.

        Args:
            counts: as `due` returned them.
            known: partitions read before.
            present_us: event time of now.
        """
        before, self.counts = self.counts, {**self.counts, **dict(counts)}
        for topic, _ in counts:
            if topic in self._events:
                self._grown[topic] = (before[topic], present_us + 2 * self._attribution_us)
        return [
            tp for tp in self._source.assignment() if tp not in known and tp[1] < self.counts[tp[0]]
        ]

    def snapshot(self, watermark_us: int) -> dict[str, tuple[int, int]]:
        """Return the counts of before; they are forgotten by time."""
        return {topic: at for topic, at in sorted(self._grown.items()) if at[1] >= watermark_us}

    def restore(self, grown: Mapping[str, tuple[int, int]], *, same_ranks: bool) -> None:
        """Restore what `snapshot` returned.

        Raises:
            SnapshotRefused: other ranks share the partitions now, and what is open of a client
                may belong to another one than its events.
        """
        for topic, (before, _) in grown.items():
            moved = before % self._world or self.counts[topic] % self._world
            if moved and not same_ranks:
                raise SnapshotRefused(
                    f"{topic} has grown from {before} partitions to {self.counts[topic]}, and "
                    f"{self._world} ranks do not divide both. Go on with one rank until twice the "
                    "attribution window has passed, or with a number of ranks that divides both."
                )
        self._grown = dict(grown)

    def _takes_over(self, topic: str, found: Mapping[str, int]) -> bool:
        if found[topic] <= self.counts[topic]:
            return False
        return topic not in self._events or len({found[one] for one in self._events}) == 1

    def _report(self, found: Mapping[str, int], grown: Sequence[str]) -> None:
        """Log each state of the log once."""
        if found == self._said:
            return
        self._said = dict(found)
        most = max(found[topic] for topic in self._events)
        details = {
            "read": dict(self.counts),
            "found": {topic: found[topic] for topic in self.counts},
            "lacking": [topic for topic in self._events if found[topic] < most],
        }
        message = "partitions were added; reading them, too, from here on"
        if not grown:
            message = (
                "partitions were added to some topics only; they are read once all topics of "
                "events have as many"
            )
        _log.warning(message, extra=details)
