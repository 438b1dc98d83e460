"""Which partitions, and where to: the words of `kafka-consumer-groups.sh`, and the offsets that they mean here and now.

A plan keeps to what is retained and says where it had to. An offset that cannot be known is a refusal: never the end, never the beginning.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from consumers.errors import SourceUnavailable
from consumers.source import TopicPartition
from deploy.errors import Unsafe, UsageError
from deploy.settings.units import UNITS, format_time, parse_time
from weighting.provenance import Offsets

#: Kafka's own names of where to move to.
TARGETS = (
    "to-earliest",
    "to-latest",
    "to-current",
    "to-datetime",
    "by-duration",
    "shift-by",
    "to-offset",
)


class Admin(Protocol):
    """What we ask of the brokers; `consumers.kafka.admin.KafkaAdmin` once started."""

    def topics(self) -> dict[str, int]:
        """Return every topic with its partition count."""

    def beginning_offsets(self, topics: Iterable[str]) -> dict[TopicPartition, int]:
        """Return the oldest retained offsets."""

    def end_offsets(self, topics: Iterable[str]) -> dict[TopicPartition, int]:
        """Return the offsets that the next records get."""

    def offsets_for_times(
        self, times_us: Mapping[TopicPartition, int], *, timeout_seconds: float = 10.0
    ) -> dict[TopicPartition, Any]:
        """Return (offset, record time in microseconds) of the first record at or after a time; None where there is none."""

    def committed(self, group: str) -> dict[TopicPartition, int]:
        """Return the offsets of a group."""

    def group_state(self, group: str) -> tuple[str, int]:
        """Return its state, and its number of members."""

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Write offsets into a group without members."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to move to, in Kafka's words."""

    name: str  #: one of TARGETS
    value: str = ""

    def shown(self) -> str:
        """Return it as it is typed."""
        return f"--{self.name} {self.value}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which partitions; exactly one of the three is given."""

    topics: tuple[str, ...] = ()  #: `clicks`, or `clicks:0,2`
    all_topics: bool = False
    from_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One partition of a plan."""

    topic: str
    partition: int
    current: int | None  #: None: the group has none
    proposed: int
    clamped: str  #: no, to earliest, to latest
    time_us: int | None  #: record time at the proposed offset, where it was looked up

    @property
    def delta(self) -> int | None:
        """Return by how many offsets it moves; below zero is backwards."""
        return None if self.current is None else self.proposed - self.current

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self) | {
            "delta": self.delta,
            "at": None if self.time_us is None else format_time(self.time_us),
        }


def one_target(given: Mapping[str, Any], *, none: bool = False) -> Target | None:
    """Return the one target that was given, by option.

    Args:
        given: option -> value; None and False are not given.
        none: whether there must be none, since something else says where to.

    Raises:
        UsageError: not as many as there must be; lists them.
    """
    named = [name for name in given if given[name] is not None and given[name] is not False]
    if none and named:
        raise UsageError(f"--{named[0]}: the file says where to already")
    if none:
        return None
    if len(named) != 1:
        raise UsageError(
            one_of("target", [f"--{name}" for name in named], [f"--{name}" for name in given])
        )
    value = given[named[0]]
    return Target(name=named[0], value="" if value is True else str(value))


def one_scope(topics: Sequence[str], all_topics: bool, from_file: Path | None) -> Scope:
    """Return the one scope that was given.

    Raises:
        UsageError: none, or several; lists them.
    """
    scopes = {
        "--topic": bool(topics),
        "--all-topics": all_topics,
        "--from-file": from_file is not None,
    }
    named = [name for name, given in scopes.items() if given]
    if len(named) != 1:
        raise UsageError(one_of("scope", named, list(scopes)))
    return Scope(topics=tuple(topics), all_topics=all_topics, from_file=from_file)


def parse_when(target: Target, now_us: int) -> int:
    """Return the time that `--to-datetime` or `--by-duration` means, in microseconds since the Unix epoch.

    Raises:
        UsageError: it is neither, or lies in the future.
    """
    if target.name == "to-datetime":
        time_us = parse_time(target.value)
        expected = "a time in ISO 8601, such as 2026-11-23T20:00:00Z; without an offset it is UTC"
    else:
        duration_us = UNITS["_us"].parse(target.value)
        time_us = None if duration_us is None else now_us - int(duration_us)
        expected = "a duration back from now, such as PT2H or P1D"
    if time_us is None or not 0 <= time_us:
        raise UsageError(f"--{target.name}: got {target.value!r}, expected {expected}")
    if time_us > now_us:
        raise UsageError(f"--{target.name}: {format_time(time_us)} has not come yet")
    return time_us


def offsets_at(
    admin: Admin, partitions: Sequence[TopicPartition], time_us: int
) -> dict[TopicPartition, tuple[int, int] | None]:
    """Return the first record at or after a time, per partition; None is no offset, and never becomes one.

    Raises:
        Unsafe: the brokers did not answer.
    """
    try:
        return admin.offsets_for_times(dict.fromkeys(partitions, time_us))
    except SourceUnavailable as error:
        raise Unsafe(
            f"offsets at {format_time(time_us)}: {error} Without an answer nothing is assumed; nothing was written."
        ) from error


def plan(
    admin: Admin,
    current: Mapping[TopicPartition, int],
    partitions: Sequence[TopicPartition],
    target: Target,
    now_us: int,
) -> list[Move]:
    """Return where each partition would be moved to.

    Args:
        admin: connected.
        current: the offsets of the group.
        partitions: of the scope, which exist.
        target: where to.
        now_us: microseconds since the Unix epoch.

    Raises:
        Unsafe: an offset cannot be known: no answer, no record at or after the time, or no current offset to start from.
        UsageError: the target's value is none.
    """
    wanted: dict[TopicPartition, int] = {}
    times: dict[TopicPartition, int] = {}
    topics = sorted({topic for topic, _ in partitions})
    begins, ends = admin.beginning_offsets(topics), admin.end_offsets(topics)
    match target.name:
        case "to-earliest":
            wanted = {tp: begins[tp] for tp in partitions}
        case "to-latest":
            wanted = {tp: ends[tp] for tp in partitions}
        case "to-offset":
            wanted = dict.fromkeys(partitions, _whole(target, least=0))
        case "to-current" | "shift-by":
            shift = 0 if target.name == "to-current" else _whole(target)
            without = [tp for tp in partitions if tp not in current]
            if without:
                raise Unsafe(
                    f"--{target.name}: no current offset of {listed(without)}. Leave them out, or name another target for them."
                )
            wanted = {tp: current[tp] + shift for tp in partitions}
        case _:
            time_us = parse_when(target, now_us)
            found = offsets_at(admin, partitions, time_us)
            if unknown := [tp for tp in partitions if found.get(tp) is None]:
                raise Unsafe(
                    f"{target.shown()}: no record at or after {format_time(time_us)} in {listed(unknown)}, so there is no offset for it: "
                    "that is taken neither for the end nor for the beginning. Name the other partitions with --topic, "
                    "and move these with --to-latest or --to-offset. Nothing was written."
                )
            for tp in partitions:
                wanted[tp], times[tp] = found[tp] or (0, 0)
    return moves(current, wanted, begins, ends, times)


def moves(
    current: Mapping[TopicPartition, int],
    wanted: Mapping[TopicPartition, int],
    begins: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    times: Mapping[TopicPartition, int] = {},
) -> list[Move]:
    """Return moves to what is wanted, kept inside of what is retained."""
    found = []
    for tp in sorted(wanted):
        proposed = min(max(wanted[tp], begins[tp]), ends[tp])
        clamped = (
            "no"
            if proposed == wanted[tp]
            else "to earliest"
            if wanted[tp] < proposed
            else "to latest"
        )
        found.append(
            Move(
                topic=tp[0],
                partition=tp[1],
                current=current.get(tp),
                proposed=proposed,
                clamped=clamped,
                time_us=times.get(tp),
            )
        )
    return found


def read_csv(path: Path, group: str) -> dict[TopicPartition, int]:
    """Return the offsets of a plan in Kafka's CSV: `topic,partition,offset`, or `group,topic,partition,offset` with only this group.

    Raises:
        UsageError: it cannot be read; names file, line and what was expected.
    """
    wanted: dict[TopicPartition, int] = {}
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"--from-file: {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    for number, fields in enumerate(lines, 1):
        if not fields:
            continue
        named, fields = (fields[0], fields[1:]) if len(fields) == 4 else (group, fields)
        if (
            len(fields) != 3
            or not fields[1].strip().isdecimal()
            or not fields[2].strip().isdecimal()
        ):
            raise UsageError(
                f"--from-file: {path}:{number}: got {','.join(fields)!r}, expected topic,partition,offset without a header"
            )
        if named != group:
            raise UsageError(
                f"--from-file: {path}:{number}: is for group {named!r}, not {group!r}. Give one file to each group."
            )
        tp = (fields[0], int(fields[1]))
        if tp in wanted:
            raise UsageError(f"--from-file: {path}:{number}: {tp[0]}[{tp[1]}] stands there twice")
        wanted[tp] = int(fields[2])
    if not wanted:
        raise UsageError(f"--from-file: {path}: no line in it")
    return wanted


def to_csv(offsets: Mapping[TopicPartition, int]) -> list[str]:
    """Return a plan as Kafka's tool reads it."""
    return [
        f"{topic},{partition},{offset}" for (topic, partition), offset in sorted(offsets.items())
    ]


def partitions_of(
    scope: Scope, counts: Mapping[str, int], known: Iterable[TopicPartition]
) -> list[TopicPartition]:
    """Return the partitions of a scope.

    Args:
        scope: topics with or without partition numbers, or all that the group has.
        counts: topic -> partition count.
        known: partitions that the group has offsets of.

    Raises:
        UsageError: a topic or partition does not exist, or the group has none.
    """
    found: set[TopicPartition] = set()
    for text in scope.topics:
        topic, colon, numbers = text.partition(":")
        if topic not in counts:
            raise UsageError(
                f"--topic: {topic!r} does not exist. There are: {', '.join(sorted(counts)) or 'none'}"
            )
        if not re.fullmatch(r"[0-9]+(,[0-9]+)*", numbers if colon else "0"):
            raise UsageError(f"--topic: got {text!r}, expected TOPIC or TOPIC:0,1,2")
        chosen = (
            [int(number) for number in numbers.split(",")] if colon else list(range(counts[topic]))
        )
        if wrong := [number for number in chosen if number >= counts[topic]]:
            raise UsageError(
                f"--topic: {topic} has no partition {wrong[0]}; it has 0 to {counts[topic] - 1}"
            )
        found |= {(topic, number) for number in chosen}
    if scope.all_topics:
        found |= {tp for tp in known if tp[0] in counts}
        if not found:
            raise UsageError(
                "--all-topics: the group has no offsets yet. Name topics with --topic."
            )
    return sorted(found)


def one_of(what: str, named: Sequence[str], known: Sequence[str]) -> str:
    """Return what is wrong when not exactly one of several options was given."""
    got = " and ".join(named) if named else "none"
    return f"{what}: got {got}, expected exactly one of {', '.join(known)}"


def listed(partitions: Iterable[TopicPartition]) -> str:
    """Return partitions as they are printed: `clicks[0], clicks[3]`."""
    return ", ".join(f"{topic}[{partition}]" for topic, partition in sorted(partitions))


def by_topic(offsets: Mapping[TopicPartition, int]) -> dict[str, dict[str, int]]:
    """Return offsets as JSON has them: topic -> partition, as text -> offset."""
    nested = Offsets(offsets).nested()
    return {topic: {str(p): at for p, at in parts.items()} for topic, parts in nested.items()}


def _whole(target: Target, *, least: int | None = None) -> int:
    if not re.fullmatch(r"[+-]?[0-9]+", target.value) or (
        least is not None and int(target.value) < least
    ):
        raise UsageError(
            f"--{target.name}: got {target.value!r}, expected a whole number{'' if least is None else f' >= {least}'}"
        )
    return int(target.value)
