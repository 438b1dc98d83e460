"""Errors between a log and a sample, as a tree.

```
ConsumersError
├── Invalid              a record cannot be read: set aside as a dead letter, reading goes on
├── SourceUnavailable    the brokers did not answer in time (retriable)
├── SinkUnavailable      written records were not acknowledged in time (retriable)
├── CommitFailed         advisory offsets were not written (retriable)
├── TopicMissing         a configured topic does not exist
├── PartitionsAdded      partitions were added, and they are not taken over by themselves (unsafe)
├── PartitionsMismatch   topics that are joined have different partition counts
├── OffsetLost           the log no longer holds the next offset, or never did (unsafe)
├── LogTruncated         records that were read are no longer in the log (unsafe)
├── TopicRecreated       a topic was deleted and made again under the same name (unsafe)
├── BatchUnreadable      a stored batch cannot be unpacked, today or tomorrow (unsafe)
├── Unreadable           a record cannot be read, and none may be set aside (unsafe)
├── DeadLetterFlood      too many records of a topic cannot be read (unsafe)
├── ChecksumMissing      the package that verifies checksums fast is not installed
├── OptionRefused        an option that the guarantee depends on was overridden
└── SnapshotRefused      state of another format or of other partitions
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from weighting.provenance import Position


class ConsumersError(Exception):
    """Root of the tree.

    Attributes:
        retriable: the same call may succeed later.
        unsafe: going on would lose or corrupt something: an operator decides.
        exit_code: of a process that ends with it.
    """

    retriable: ClassVar[bool] = False
    unsafe: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1


class Invalid(ConsumersError):
    """A record that cannot be read.

    Attributes:
        stage: `decode` or `schema`.
        reason: one of `codec.REASONS`.
        error: shown to the user unchanged.
    """

    def __init__(self, *, stage: str, reason: str, error: str, position: Position) -> None:
        """Name what (`stage`, `reason`, `error`) and where (`position`)."""
        super().__init__(f"{position}: {error}")
        self.stage = stage
        self.reason = reason
        self.error = error
        self.position = position


class SourceUnavailable(ConsumersError):
    """The brokers did not answer before the deadline."""

    retriable = True
    exit_code = 75

    def __init__(self, bootstrap_servers: str, waited_seconds: float, cause: str) -> None:
        """Name the address and the remedy."""
        super().__init__(
            f"no Kafka broker answered at {bootstrap_servers} within {waited_seconds:g} s "
            f"({cause}). Start the broker, or correct kafka.bootstrap_servers, its listener "
            "and its security options."
        )


class SinkUnavailable(ConsumersError):
    """Records were written and not acknowledged; they may be missing from the topic."""

    retriable = True
    exit_code = 75

    def __init__(self, topic: str, num_unacknowledged: int, cause: str) -> None:
        """Name the topic and how many records it may lack."""
        super().__init__(
            f"{topic}: {num_unacknowledged} records were not acknowledged ({cause}). "
            "Check that the topic exists and the brokers are up; nothing that depends on these "
            "records has been confirmed."
        )


class CommitFailed(ConsumersError):
    """Advisory offsets were not written; nothing but lag tools depends on them."""

    retriable = True
    exit_code = 75

    def __init__(self, group: str, cause: str) -> None:
        """Name the group."""
        super().__init__(
            f"group {group}: offsets were not committed ({cause}). "
            "Lag tools show older ones until the next commit."
        )


class TopicMissing(ConsumersError):
    """A configured topic does not exist; it is never created silently."""

    def __init__(self, topic: str, bootstrap_servers: str) -> None:
        """Name the topic and the remedy."""
        super().__init__(
            f"topic {topic!r} does not exist at {bootstrap_servers}. "
            "Create it (`steelyard topics create` makes all that are missing), or correct its "
            "name under kafka.topics."
        )
        self.topic = topic


class PartitionsMismatch(ConsumersError):
    """Topics that are joined partition by partition have different partition counts."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        """Name every topic with its partition count."""
        listed = ", ".join(f"{topic} has {count}" for topic, count in sorted(counts.items()))
        super().__init__(
            f"partition counts differ: {listed}. "
            "Give all event topics the same number of partitions and the same partitioner."
        )


class PartitionsAdded(ConsumersError):
    """Partitions were added to topics, and reading does not go on by itself."""

    unsafe = True
    exit_code = 3

    def __init__(self, read: Mapping[str, int], found: Mapping[str, int], world: int) -> None:
        """Name the topics, their counts, and the remedy; `world` is the number of ranks."""
        listed = ", ".join(
            f"{topic} has {found[topic]} and {count} are read"
            for topic, count in sorted(read.items())
            if found[topic] > count
        )
        why = (
            "kafka.on_new_partitions is stop. Set it to carry: what is open is then carried over, "
            "and each record of the new partitions counts once"
        )
        if world > 1:
            why = (
                f"{world} ranks share them, and what is open of a client may belong to another "
                "rank now. Start one rank alone (without torchrun): it carries everything over; "
                "go back to several once a checkpoint names the new counts"
            )
        super().__init__(f"partitions were added ({listed}), and {why}.")


class OffsetLost(ConsumersError):
    """The next offset is not in the log.

    Attributes:
        expired: retention overtook the reader; the log is the same.
    """

    unsafe = True
    exit_code = 3

    def __init__(
        self, topic: str, partition: int, next_offset: int, beginning: int | None, end: int | None
    ) -> None:
        """Name the partition, the next offset, the retained range and the remedy."""
        retained = "unknown" if beginning is None or end is None else f"[{beginning}, {end})"
        self.expired = beginning is not None and next_offset < beginning
        if beginning is not None and self.expired:
            why = (
                f"{beginning - next_offset} records were deleted before they were read. "
                "Restore a checkpoint that is still retained"
            )
        else:
            why = (
                "the log was truncated or the topic was recreated. "
                "Check the topic, then restore a checkpoint that matches it"
            )
        super().__init__(
            f"{topic}[{partition}]: next offset {next_offset} is outside of the retained range "
            f"{retained}; {why}."
        )
        self.topic = topic
        self.partition = partition
        self.next_offset = next_offset
        self.beginning = beginning
        self.end = end

    @property
    def num_missing(self) -> int:
        """Number of records that retention deleted unread; 0 when it is another log."""
        return max((self.beginning or 0) - self.next_offset, 0)


class LogTruncated(ConsumersError):
    """The brokers lost records that were read already, in an unclean leader election.

    What was learned is not what the log says.
    """

    unsafe = True
    exit_code = 3

    def __init__(self, topic: str, partition: int, next_offset: int, diverged: int | None) -> None:
        """Name the partition, the next offset and the remedy; `diverged` is None if unknown."""
        where = "an unknown offset" if diverged is None else f"or before offset {diverged}"
        super().__init__(
            f"{topic}[{partition}]: the log was truncated at {where}, "
            f"and we have read up to {next_offset}. Find out which records the brokers lost, "
            "then restore a checkpoint from before them (steelyard replay)."
        )
        self.topic = topic
        self.partition = partition
        self.next_offset = next_offset
        self.diverged = diverged


class TopicRecreated(ConsumersError):
    """A topic was deleted and made again under the same name."""

    unsafe = True
    exit_code = 3

    def __init__(self, topic: str, known: str, found: str) -> None:
        """Name the topic and both ids."""
        super().__init__(
            f"topic {topic!r} was deleted and made again: its id was {known} and is {found}, "
            "so the next offsets mean nothing in it. Bring the old topic back, "
            "or let an operator say at which offsets to go on (steelyard offsets reset)."
        )
        self.topic = topic


class BatchUnreadable(ConsumersError):
    """A stored batch cannot be unpacked, and no repetition changes that.

    It is corrupt, or its codec or format is unknown here. Skipping it would lose records silently.
    """

    unsafe = True
    exit_code = 3

    def __init__(self, topic: str, partition: int, offset: int, cause: str, remedy: str) -> None:
        """Name the partition, the first offset that cannot be read, the cause and the remedy."""
        self.place = f"{topic}[{partition}]@{offset}"
        super().__init__(
            f"{self.place}: this batch of records cannot be read: {cause}. "
            f"Reading has stopped before it. {remedy}, or let an operator go on behind it "
            f"(steelyard offsets reset --group GROUP --topic {topic}:{partition} --to-offset N)."
        )
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.cause = cause
        self.remedy = remedy


class Unreadable(ConsumersError):
    """A record cannot be read, and `kafka.dead_letters` is `none`."""

    unsafe = True
    exit_code = 3

    def __init__(self, invalid: Invalid) -> None:
        """Name the position, what is wrong with it and the remedy."""
        super().__init__(
            f"{invalid}. Reading has stopped there, since kafka.dead_letters is none. "
            "Set it to data to have such records set aside, or let an operator skip this one."
        )
        self.position = invalid.position


class DeadLetterFlood(ConsumersError):
    """Too many records of a topic cannot be read.

    A producer or our code is broken, and setting all of them aside is no cure.
    """

    unsafe = True
    exit_code = 3

    def __init__(
        self, topic: str, num_unreadable: int, num_records: int, reason: str, last: Invalid
    ) -> None:
        """Name topic, share, most frequent reason, last example and remedy."""
        share = num_unreadable / num_records
        super().__init__(
            f"topic {topic!r}: {num_unreadable} of the last {num_records} records cannot be read "
            f"({share:.1%}), most of them for the reason {reason}; the last is {last}. "
            "Reading has stopped before it. "
            "Mend the producer or deploy the code that reads its records, then start again; "
            "kafka.dead_letters: all sets every one of them aside instead."
        )
        self.topic = topic
        self.reason = reason


class ChecksumMissing(ConsumersError):
    """The package crc32c is missing.

    The client would fall back, silently, to a pure-Python checksum three times as slow.
    """

    def __init__(self) -> None:
        """Give the install line."""
        super().__init__("the package crc32c is not installed. Run: pip install crc32c")


class OptionRefused(ConsumersError):
    """An option that the guarantee depends on was overridden."""

    exit_code = 2

    def __init__(self, key: str) -> None:
        """Name the option; what was given for it may be secret."""
        super().__init__(
            f"kafka.options.{key}: this option is set by Steelyard and cannot be overridden. "
            "Remove it."
        )


class SnapshotRefused(ConsumersError):
    """State of another format, or of other partitions than the log has."""
