"""Questions that operator commands ask of the brokers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from consumers.errors import SourceUnavailable
from deploy.errors import Unsafe
from deploy.settings.units import format_time
from weighting.provenance import TopicPartition


class Brokers(Protocol):
    """A cluster and its consumer groups; `consumers.kafka.admin.KafkaAdmin` once started."""

    def topics(self) -> dict[str, int]:
        """Return every topic with its partition count."""

    def topic_ids(self) -> dict[str, str]:
        """Return the id of every topic."""

    def beginning_offsets(self, topics: Iterable[str]) -> dict[TopicPartition, int]:
        """Return the oldest retained offsets."""

    def end_offsets(self, topics: Iterable[str]) -> dict[TopicPartition, int]:
        """Return the offsets that the next records get."""

    def stable_offsets(self, topics: Iterable[str]) -> dict[TopicPartition, int]:
        """Return the last stable offsets; behind them records wait for an open transaction."""

    def offsets_for_times(
        self, times_us: Mapping[TopicPartition, int], *, timeout_seconds: float = 10.0
    ) -> dict[TopicPartition, Any]:
        """Return the first record at or after each time, None where there is none.

        A record is (offset, record time in microseconds).
        """

    def committed(self, group: str) -> dict[TopicPartition, int]:
        """Return the committed offsets of a group."""

    def group_state(self, group: str) -> tuple[str, int]:
        """Return the state of a group and its number of members."""

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Write offsets into a group without members."""


def offsets_at(
    brokers: Brokers, partitions: Iterable[TopicPartition], time_us: int
) -> dict[TopicPartition, tuple[int, int] | None]:
    """Return the first record at or after a time, per partition; None never becomes an offset.

    Raises:
        Unsafe: the brokers did not answer.
    """
    try:
        return brokers.offsets_for_times(dict.fromkeys(partitions, time_us))
    except SourceUnavailable as error:
        raise Unsafe(
            f"offsets at {format_time(time_us)}: {error} Without an answer nothing is assumed; "
            "nothing was written."
        ) from error
