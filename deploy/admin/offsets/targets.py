"""Offsets to move to, in the words of `kafka-consumer-groups.sh`, and what they mean now.

A plan keeps to what is retained and says where it had to. An offset that cannot be known is
refused: it never becomes the end or the beginning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deploy.admin.brokers import Brokers, offsets_at
from deploy.admin.offsets.scopes import printed
from deploy.admin.options import one_of
from deploy.errors import Unsafe, UsageError
from deploy.settings.units import UNITS, format_time, parse_time
from weighting.provenance import Offsets, TopicPartition

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One of TARGETS, with its value."""

    name: str
    value: str = ""

    def shown(self) -> str:
        """Return it as it is typed."""
        return f"--{self.name} {self.value}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One partition of a plan.

    Attributes:
        topic: its topic.
        partition: its number.
        current: the group's offset, None where it has none.
        proposed: the offset to move to.
        clamped: no, to earliest, or to latest.
        time_us: record time at the proposed offset, where it was looked up.
    """

    topic: str
    partition: int
    current: int | None
    proposed: int
    clamped: str
    time_us: int | None

    @property
    def delta(self) -> int | None:
        """Number of offsets that it moves; below zero is backwards."""
        return None if self.current is None else self.proposed - self.current

    @property
    def num_reread(self) -> int:
        """Number of records that would be read again."""
        return max(-(self.delta or 0), 0)

    @property
    def num_skipped(self) -> int:
        """Number of records that would never be read."""
        return max(self.delta or 0, 0)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        at = None if self.time_us is None else format_time(self.time_us)
        return asdict(self) | {"delta": self.delta, "at": at}


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
        options = [f"--{name}" for name in named], [f"--{name}" for name in given]
        raise UsageError(one_of("target", *options))
    value = given[named[0]]
    return Target(name=named[0], value="" if value is True else str(value))


def parse_when(target: Target, now_us: int) -> int:
    """Return the time of `--to-datetime` or `--by-duration`, in microseconds since the Unix epoch.

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


def plan(
    brokers: Brokers,
    current: Mapping[TopicPartition, int],
    partitions: Sequence[TopicPartition],
    target: Target,
    now_us: int,
) -> list[Move]:
    """Return where each partition would be moved to.

    Args:
        brokers: connected.
        current: the offsets of the group.
        partitions: of the scope, which exist.
        target: where to.
        now_us: microseconds since the Unix epoch.

    Raises:
        Unsafe: an offset cannot be known: no answer, no record at or after the time, or no current
            offset to start from.
        UsageError: the target's value is none.
    """
    topics = sorted({topic for topic, _ in partitions})
    begins, ends = brokers.beginning_offsets(topics), brokers.end_offsets(topics)
    times: dict[TopicPartition, int] = {}
    match target.name:
        case "to-earliest":
            wanted = {tp: begins[tp] for tp in partitions}
        case "to-latest":
            wanted = {tp: ends[tp] for tp in partitions}
        case "to-offset":
            wanted = dict.fromkeys(partitions, _parse_whole(target, least=0))
        case "to-current" | "shift-by":
            wanted = _shifted(target, current, partitions)
        case _:
            found = _at_time(brokers, partitions, target, now_us)
            wanted = {tp: offset for tp, (offset, _) in found.items()}
            times = {tp: time_us for tp, (_, time_us) in found.items()}
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
        clamped = "no"
        if proposed != wanted[tp]:
            clamped = "to earliest" if wanted[tp] < proposed else "to latest"
        move = Move(
            topic=tp[0],
            partition=tp[1],
            current=current.get(tp),
            proposed=proposed,
            clamped=clamped,
            time_us=times.get(tp),
        )
        found.append(move)
    return found


def plan_json(offsets: Mapping[TopicPartition, int]) -> dict[str, dict[str, int]]:
    """Return offsets as plans have them, with partitions as text: JSON sorts keys as text."""
    nested = Offsets(offsets).nested()
    return {
        topic: {str(partition): offset for partition, offset in parts.items()}
        for topic, parts in nested.items()
    }


def _shifted(
    target: Target, current: Mapping[TopicPartition, int], partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    shift = 0 if target.name == "to-current" else _parse_whole(target)
    if without := [tp for tp in partitions if tp not in current]:
        raise Unsafe(
            f"--{target.name}: no current offset of {printed(without)}. Leave them out, or name "
            "another target for them."
        )
    return {tp: current[tp] + shift for tp in partitions}


def _at_time(
    brokers: Brokers, partitions: Sequence[TopicPartition], target: Target, now_us: int
) -> dict[TopicPartition, tuple[int, int]]:
    time_us = parse_when(target, now_us)
    found = offsets_at(brokers, partitions, time_us)
    known = {tp: at for tp in partitions if (at := found.get(tp)) is not None}
    if unknown := [tp for tp in partitions if tp not in known]:
        raise Unsafe(
            f"{target.shown()}: no record at or after {format_time(time_us)} in "
            f"{printed(unknown)}, so there is no offset for it: that is taken neither for the end "
            "nor for the beginning. Name the other partitions with --topic, and move these with "
            "--to-latest or --to-offset. Nothing was written."
        )
    return known


def _parse_whole(target: Target, *, least: int | None = None) -> int:
    whole = re.fullmatch(r"[+-]?[0-9]+", target.value)
    if not whole or (least is not None and int(target.value) < least):
        bound = "" if least is None else f" >= {least}"
        raise UsageError(f"--{target.name}: got {target.value!r}, expected a whole number{bound}")
    return int(target.value)
