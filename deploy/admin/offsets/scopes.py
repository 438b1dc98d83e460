"""Partitions that a command is about, in the options of `kafka-consumer-groups.sh`."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.admin.options import one_of
from deploy.errors import UsageError
from weighting.provenance import Offsets, TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """A choice of partitions; exactly one of the three is given.

    Attributes:
        topics: `clicks` for all its partitions, or `clicks:0,2`.
        all_topics: every partition that the group has an offset of.
        from_file: a CSV file that names partitions with their offsets.
    """

    topics: tuple[str, ...] = ()
    all_topics: bool = False
    from_file: Path | None = None


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


def partitions_of(
    scope: Scope, counts: Mapping[str, int], known: Iterable[TopicPartition]
) -> list[TopicPartition]:
    """Return the partitions of a scope, sorted.

    Args:
        scope: topics with or without partition numbers, or all that the group has.
        counts: topic -> partition count.
        known: partitions that the group has offsets of.

    Raises:
        UsageError: a topic or partition does not exist, or the group has none.
    """
    found: set[TopicPartition] = set()
    for text in scope.topics:
        found |= _partitions(text, counts)
    if scope.all_topics:
        found |= {tp for tp in known if tp[0] in counts}
        if not found:
            raise UsageError(
                "--all-topics: the group has no offsets yet. Name topics with --topic."
            )
    return sorted(found)


def printed(partitions: Iterable[TopicPartition]) -> str:
    """Return partitions as they are printed: `clicks[0], clicks[3]`."""
    return ", ".join(f"{topic}[{partition}]" for topic, partition in sorted(partitions))


def read_csv(path: Path, group: str) -> Offsets:
    """Read offsets in the CSV of Kafka's tool: [group,]topic,partition,offset.

    Raises:
        UsageError: it cannot be read, or is for another group; names file and line.
    """
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--from-file: {path}: {reason}") from error
    wanted: dict[TopicPartition, int] = {}
    for number, fields in enumerate(lines, 1):
        if not fields:
            continue
        tp, offset = _parse_line(fields, group, f"--from-file: {path}:{number}")
        if tp in wanted:
            raise UsageError(f"--from-file: {path}:{number}: {printed([tp])} is there twice")
        wanted[tp] = offset
    if not wanted:
        raise UsageError(f"--from-file: {path}: no line in it")
    return Offsets(wanted)


def to_csv(offsets: Mapping[TopicPartition, int]) -> list[str]:
    """Return offsets as lines that Kafka's tool reads."""
    return [f"{topic},{p},{offset}" for (topic, p), offset in sorted(offsets.items())]


def _partitions(text: str, counts: Mapping[str, int]) -> set[TopicPartition]:
    """Return what one `--topic TOPIC[:0,1,2]` names."""
    topic, colon, numbers = text.partition(":")
    if topic not in counts:
        there = ", ".join(sorted(counts)) or "none"
        raise UsageError(f"--topic: {topic!r} does not exist. There are: {there}")
    if not colon:
        return {(topic, number) for number in range(counts[topic])}
    if not re.fullmatch(r"[0-9]+(,[0-9]+)*", numbers):
        raise UsageError(f"--topic: got {text!r}, expected TOPIC or TOPIC:0,1,2")
    chosen = {int(number) for number in numbers.split(",")}
    if wrong := [number for number in sorted(chosen) if number >= counts[topic]]:
        raise UsageError(
            f"--topic: {topic} has no partition {wrong[0]}; it has 0 to {counts[topic] - 1}"
        )
    return {(topic, number) for number in chosen}


def _parse_line(fields: Sequence[str], group: str, place: str) -> tuple[TopicPartition, int]:
    named, rest = (fields[0], fields[1:]) if len(fields) == 4 else (group, fields)
    numbers = [text.strip() for text in rest[1:]]
    if len(rest) != 3 or not all(text.isdecimal() for text in numbers):
        raise UsageError(
            f"{place}: got {','.join(rest)!r}, expected topic,partition,offset without a header"
        )
    if named != group:
        raise UsageError(
            f"{place}: is for group {named!r}, not {group!r}. Give one file to each group."
        )
    partition, offset = map(int, numbers)
    return (rest[0], partition), offset
