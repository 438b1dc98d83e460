"""A shop's log in memory, as a source that is always ahead: lists of ten, clicks, purchases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry

from consumers.dead_letter import DeadLetters
from consumers.events import encode_click, encode_exposure, encode_item, encode_purchase
from consumers.joining.join import JoinConfig
from consumers.pipeline import BatchConfig, Pipeline, Topics
from consumers.source import Record
from consumers.telemetry import Telemetry
from weighting.provenance import TopicPartition
from weighting.sample import Attribute

_START_US = 1_700_000_000_000_000
_SECOND_US = 1_000_000
_NUM_HITS = 10
_TOPICS = Topics()
_JOIN = JoinConfig(
    click_window_us=20 * _SECOND_US,
    observation_window_us=40 * _SECOND_US,
    attribution_window_us=600 * _SECOND_US,
    grace_us=5 * _SECOND_US,
)
_WORDS = (
    "red blue shoe shoes lamp desk oak steel small large running garden phone case cotton men "
    "women wool jacket summer winter light grand silk"
).split()


def shop(
    num_lists: int, *, num_items: int = 5000, num_queries: int = 500
) -> dict[str, list[bytes]]:
    """Return the values of each topic, in order of event time; keys do not matter to one partition.

    A list a second by a client of its own. Of its items .9 are clicked on average, most at the top;
    one click in seven is a purchase. Some clicks and purchases come after their windows.
    """
    random = Random(7)
    queries = [" ".join(random.sample(_WORDS, 3)) for _ in range(num_queries)]
    written: dict[str, list[tuple[int, bytes]]] = {topic: [] for topic in _TOPICS.kinds()}
    assert _TOPICS.items is not None
    assert _TOPICS.exposures is not None
    for n in range(num_items):
        attributes: Mapping[str, Attribute] = {"category": f"c{n % 23}", "brand": f"b{n % 60}"}
        text = " ".join(random.choices(_WORDS, k=9))
        item = encode_item(object_id=f"SKU-{n}", text=text, attributes=attributes)
        written[_TOPICS.items].append((_START_US, item))
    for number in range(num_lists):
        at, client, query_id = _START_US + number * _SECOND_US, f"c-{number}", f"{number:032x}"
        hits = [f"SKU-{n}" for n in random.sample(range(num_items), _NUM_HITS)]
        query = random.choice(queries)
        exposure = encode_exposure(
            query_id=query_id, client_id=client, time_us=at, user_query=query, hits=hits
        )
        written[_TOPICS.exposures].append((at, exposure))
        for position, hit in enumerate(hits, 1):
            if random.random() > 0.3 / position:
                continue
            clicked = at + random.randrange(1, 25) * _SECOND_US
            of: dict[str, Any] = {"query_id": query_id, "client_id": client, "object_id": hit}
            click = encode_click(**of, time_us=clicked, event_id=f"k{number}-{position}")
            written[_TOPICS.clicks].append((clicked, click))
            if random.random() < 1 / 7:
                bought = clicked + random.randrange(1, 60) * _SECOND_US
                purchase = encode_purchase(**of, time_us=bought, event_id=f"p{number}-{position}")
                written[_TOPICS.purchases].append((bought, purchase))
    return {topic: [value for _, value in sorted(found)] for topic, found in written.items()}


class MemoryLog:
    """One partition per topic; a poll takes about as much event time of each."""

    def __init__(self, values: Mapping[str, list[bytes]]) -> None:
        """Begin at the first record of each topic."""
        self._values = values
        self._positions = dict.fromkeys(values, 0)
        self._paused: set[str] = set()

    @property
    def exhausted(self) -> bool:
        """Whether every record was read."""
        return all(self._positions[t] >= len(values) for t, values in self._values.items())

    def assignment(self) -> list[TopicPartition]:
        """Partition 0 of each topic."""
        return sorted((topic, 0) for topic in self._values)

    def partition_counts(self) -> dict[str, int]:
        """One each."""
        return dict.fromkeys(self._values, 1)

    def poll(self, timeout_seconds: float, max_records: int | None = None) -> list[Record]:
        """Return the next records: the same share of each topic that is not paused."""
        most = max_records or 1000
        open_topics = {t: v for t, v in self._values.items() if t not in self._paused}
        total = max(1, sum(map(len, open_topics.values())))
        records: list[Record] = []
        for topic, values in open_topics.items():
            start = self._positions[topic]
            end = min(len(values), start + max(1, most * len(values) // total))
            self._positions[topic] = end
            records += [
                Record(topic, 0, offset, _START_US, b"client", values[offset], ())
                for offset in range(start, end)
            ]
        return records

    def position(self, topic: str, partition: int) -> int:
        """Return the next offset."""
        return self._positions[topic]

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Continue there."""
        self._positions[topic] = offset

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver nothing of these."""
        self._paused.update(topic for topic, _ in partitions)

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver these again."""
        self._paused.difference_update(topic for topic, _ in partitions)

    def beginning_offsets(self) -> dict[TopicPartition, int]:
        """Zero."""
        return dict.fromkeys(self.assignment(), 0)

    def end_offsets(self) -> dict[TopicPartition, int]:
        """All is there from the start."""
        return {(topic, 0): len(values) for topic, values in self._values.items()}

    def log_ends(self, ends: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """No transaction is open."""
        return dict(ends)

    def close(self) -> None:
        """Nothing is open."""


class _Nowhere:
    def send(self, *_: object) -> None:
        raise AssertionError("this log has no dead letters")

    def flush(self) -> None:
        pass


def pipeline(log: MemoryLog, batch_size: int) -> Pipeline:
    """Return the product's pipeline over the log."""
    telemetry = Telemetry(CollectorRegistry())
    return Pipeline(
        log,
        topics=_TOPICS,
        join=_JOIN,
        batch=BatchConfig(size=batch_size, flush_seconds=1e9),
        clock=lambda: _START_US / 1e6,
        dead_letters=DeadLetters(_Nowhere(), _TOPICS.dead_letter, telemetry),
        telemetry=telemetry,
    )
