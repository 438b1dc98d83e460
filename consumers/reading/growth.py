"""Partitions added to topics that are read: noticed, waited for, and taken over at one poll.

A key may lie in another partition afterwards, so topics that are joined are taken over together,
once all of them have the same number. That is an event among the polls, and journaled with them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from consumers.errors import PartitionsAdded, SnapshotRefused
from consumers.events import Kind
from consumers.joining.carried import Carried, CarriedState
from consumers.reading.partition import Partition
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
            attribution_us: the window of deduplication and of open entries.
        """
        self.counts = {topic: counts[topic] for topic in kinds}
        self._source = source
        self._events = [topic for topic, kind in kinds.items() if kind is not Kind.ITEM]
        self._policy = policy
        self._world = world
        self._attribution_us = attribution_us
        self._said: Mapping[str, int] = {}
        self._carried: dict[str, Carried] = {}
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
        self, counts: Counts, partitions: Iterable[Partition], newest_us: int
    ) -> list[TopicPartition]:
        """Read these counts from now on; return the partitions of this reader that are new.

        Args:
            counts: as `due` returned them.
            partitions: those read before.
            newest_us: the newest event time.
        """
        before, self.counts = self.counts, {**self.counts, **dict(counts)}
        known = {partition.tp for partition in partitions}
        for topic, _ in counts:
            if topic in self._events:
                until_us = newest_us + 2 * self._attribution_us
                self._grown[topic] = (before[topic], until_us)
                self._carry(topic, [each for each in partitions if each.tp[0] == topic])
        return [
            tp for tp in self._source.assignment() if tp not in known and tp[1] < self.counts[tp[0]]
        ]

    def carried(self, topic: str) -> Carried | None:
        """Return the event ids of before, for every partition of a topic."""
        return self._carried.get(topic)

    def _carry(self, topic: str, partitions: Iterable[Partition]) -> None:
        carried = self._carried.setdefault(topic, Carried(self._attribution_us))
        for partition in partitions:
            carried.add(partition.dedup.give_up())
            partition.carried = carried

    def snapshot(
        self, watermark_us: int
    ) -> tuple[dict[str, CarriedState], dict[str, tuple[int, int]]]:
        """Return the ids carried over, and of what counts; both empty by time."""
        carried: dict[str, CarriedState] = {}
        for topic, one in sorted(self._carried.items()):
            state = one.snapshot(watermark_us)
            if state is not None:
                carried[topic] = state
        grown = {topic: at for topic, at in sorted(self._grown.items()) if at[1] >= watermark_us}
        return carried, grown

    def restore(
        self,
        carried: Mapping[str, CarriedState],
        grown: Mapping[str, tuple[int, int]],
        partitions: Iterable[Partition],
        *,
        same_ranks: bool,
    ) -> None:
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
        for topic, state in carried.items():
            self._carried[topic] = Carried(self._attribution_us)
            self._carried[topic].restore(state)
        for partition in partitions:
            partition.carried = self._carried.get(partition.tp[0])

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
