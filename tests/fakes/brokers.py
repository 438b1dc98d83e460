"""A Kafka for the operator's commands, as values: offsets, times and groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from consumers.errors import SourceUnavailable
from weighting.provenance import TopicPartition


class Brokers:
    """Offsets, times and groups as given; a group has no members unless `states` says so.

    Attributes:
        times: offset and time found per partition; None where no record is as young.
    """

    def __init__(
        self, ends: Mapping[TopicPartition, int], begins: Mapping[TopicPartition, int] | None = None
    ) -> None:
        self.ends = dict(ends)
        self.begins = {**dict.fromkeys(ends, 0), **(begins or {})}
        self.times: dict[TopicPartition, tuple[int, int] | None] = {}
        self.silent = False
        self.stable: dict[TopicPartition, int] = {}
        self.groups: dict[str, dict[TopicPartition, int]] = {}
        self.states: dict[str, tuple[str, int]] = {}
        self.ids: dict[str, str] = {}
        self.deaf = False  #: takes commits and keeps nothing

    def topics(self) -> dict[str, int]:
        return {topic: sum(name == topic for name, _ in self.ends) for topic, _ in self.ends}

    def topic_ids(self) -> dict[str, str]:
        return self.ids

    def beginning_offsets(self, topics: Iterable[str]) -> dict[TopicPartition, int]:
        names = set(topics)
        return {tp: offset for tp, offset in self.begins.items() if tp[0] in names}

    def end_offsets(self, topics: Iterable[str]) -> dict[TopicPartition, int]:
        names = set(topics)
        return {tp: offset for tp, offset in self.ends.items() if tp[0] in names}

    def stable_offsets(self, topics: Iterable[str]) -> dict[TopicPartition, int]:
        names = set(topics)
        return {tp: self.stable.get(tp, end) for tp, end in self.ends.items() if tp[0] in names}

    def offsets_for_times(
        self, times_us: Mapping[TopicPartition, int], *, timeout_seconds: float = 10.0
    ) -> dict[TopicPartition, tuple[int, int] | None]:
        if self.silent:
            raise SourceUnavailable("h:1", timeout_seconds, "timed out")
        return {tp: self.times[tp] for tp in times_us}

    def committed(self, group: str) -> dict[TopicPartition, int]:
        return dict(self.groups.get(group, {}))

    def group_state(self, group: str) -> tuple[str, int]:
        return self.states.get(group, ("Empty" if group in self.groups else "Dead", 0))

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        if not self.deaf:
            self.groups.setdefault(group, {}).update(offsets)
