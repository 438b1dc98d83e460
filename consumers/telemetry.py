"""All Prometheus series of this folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from consumers.codec import REASONS
from consumers.events import Kind
from consumers.tolerant import FIELDS
from consumers.tolerant import RESULTS as REPAIR_RESULTS
from weighting.provenance import TopicPartition

#: Outcomes of a record, in order of precedence; each record has exactly one.
OUTCOMES = (
    "invalid",
    "excluded",
    "ignored",
    "no_hits",
    "duplicate",
    "miskeyed",
    "late",
    "accepted",
)

#: Results of an event in the join. An exposure ends matched, expired or evicted. A click is
#: matched, inferred, duplicate, orphan or beyond the cap of hits when it is settled; unless it is a
#: duplicate, it counts again as expired or evicted if it ends so. A purchase has one result, and so
#: has a return: matched or inferred when it took the label back, after_training when a positive
#: copy had been emitted. What is evicted while it waits has no other result.
RESULTS = {
    "exposure": ("matched", "expired", "evicted"),
    "click": ("matched", "inferred", "duplicate", "orphan", "beyond_cap", "expired", "evicted"),
    "purchase": ("matched", "inferred", "duplicate", "orphan", "late", "evicted"),
    "return": ("matched", "inferred", "after_training", "orphan", "late", "evicted"),
}

_EVENTS = {
    Kind.EXPOSURE: ("exposure",),
    Kind.CLICK: ("click", "purchase", "other"),
    Kind.PURCHASE: ("purchase", "click", "other"),
    Kind.ITEM: ("item",),
}

_DAY = 86_400
_AGE_BUCKETS = (1, 10, 60, 300, 1800, 3600, 21600, _DAY, 3 * _DAY, 7 * _DAY, 14 * _DAY, 30 * _DAY)


class Telemetry:
    """Series of consuming, joining, deduplicating and setting aside."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Declare every series in `registry`."""
        disable_created_metrics()  # type: ignore[no-untyped-call]

        def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(f"steelyard_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(f"steelyard_{name}", text, labels, registry=registry)

        def ages(name: str, text: str) -> Histogram:
            return Histogram(
                f"steelyard_{name}", text, ("event",), registry=registry, buckets=_AGE_BUCKETS
            )

        by_topic, by_partition = ("topic",), ("topic", "partition")
        self.events = counter(
            "consumer_events_total",
            "Records by what became of them.",
            ("topic", "event", "outcome"),
        )
        self.received_bytes = counter(
            "consumer_received_bytes_total", "Bytes of record values.", by_topic
        )
        self.lost_records = counter(
            "consumer_lost_records_total", "Records that can never be read.", by_topic
        )
        self.rebuilds = counter(
            "consumer_rebuilds_total",
            "Clients that replaced one which failed (poll) or stood still (stall).",
            ("cause",),
        )
        self.lag_records = gauge(
            "consumer_lag_records", "End offset minus next offset.", by_partition
        )
        self.lag_seconds = gauge(
            "consumer_lag_seconds",
            "Age of the newest record read while others wait; 0 when caught up.",
            by_partition,
        )
        self.next_offset = gauge(
            "consumer_next_offset", "Offset of the next record to read.", by_partition
        )
        self.committed_offset = gauge(
            "consumer_committed_offset", "Offset in the consumer group, advisory.", by_partition
        )
        self.end_offset = gauge(
            "consumer_end_offset", "Offset that the next record gets.", by_partition
        )
        self.retention_headroom = gauge(
            "consumer_retention_headroom_seconds",
            "How long until the broker may delete the next record; none where a topic is kept for "
            "ever, or that is unknown.",
            by_partition,
        )
        self.unaccounted = gauge(
            "records_unaccounted", "Records consumed of which nobody knows what became; must be 0."
        )
        self.watermark = gauge(
            "consumer_watermark_timestamp_seconds",
            "A partition's own watermark, in event time.",
            by_partition,
        )
        self.assigned_partitions = gauge(
            "consumer_assigned_partitions", "Partitions that are read.", by_topic
        )
        self.paused_partitions = gauge(
            "consumer_paused_partitions", "Partitions that wait for others.", by_topic
        )
        self.added_partitions = gauge(
            "consumer_added_partitions",
            "Partitions that were added to a topic and are not read yet.",
            by_topic,
        )
        self.waiting_for_transaction = gauge(
            "consumer_waiting_for_transaction_records",
            "Records behind an open transaction: in the lag, and not to be read before it ends.",
            by_partition,
        )
        self.event_age = ages(
            "event_age_seconds", "Event time to reading: the last event of its kind in each poll."
        )
        self.clock_corrected = counter(
            "event_clock_corrected_total",
            "Events whose time was wrong and was estimated: ahead of other clients, or behind.",
            ("topic", "direction"),
        )
        self.cut_queries = counter(
            "consumer_cut_queries_total", "Queries longer than the limit, cut.", by_topic
        )
        self.odd_fields = counter(
            "consumer_odd_fields_total",
            "Fields not as the schema says: repaired, or dropped and read as absent.",
            ("topic", "field", "result"),
        )
        self.dead_letters = counter(
            "deadletter_events_total", "Records set aside.", ("topic", "reason")
        )
        self.open_exposures = gauge("join_open_exposures", "Exposures whose clicks may still come.")
        self.open_clicks = gauge(
            "join_open_clicks", "Clicks whose purchase may still come, or is told from an orphan."
        )
        self.pending_events = gauge("join_pending_events", "Events that wait for the watermark.")
        self.waiting_events = gauge(
            "join_waiting_events", "Clicks and purchases whose list or click is not there yet."
        )
        self.cut_hits = counter(
            "join_cut_hits_total", "Hits of a list beyond `join.max_hits`, which were dropped."
        )
        self.state_bytes = gauge(
            "join_state_bytes", "Size of the last snapshot of the join, deduplication and clocks."
        )
        self.labels = counter(
            "join_labels_total", "Events by what became of them in the join.", ("event", "result")
        )
        self.missing_texts = counter(
            "join_missing_texts_total", "Items shown or clicked of which no text was known."
        )
        self.label_delay = ages(
            "join_delay_seconds", "Exposure to click, and click to purchase, in event time."
        )
        self.dedup_ids = gauge("dedup_ids", "Event ids that are remembered.")

        for cause in ("poll", "stall"):
            self.rebuilds.labels(cause)
        for event, results in RESULTS.items():
            for result in results:
                self.labels.labels(event, result)
        for event in ("click", "purchase"):
            self.label_delay.labels(event)
        for kind in ("exposure", "click", "purchase", "other"):
            self.event_age.labels(kind)

    def start(self, kinds: Mapping[str, Kind], partitions: Iterable[TopicPartition]) -> None:
        """Create every label combination, so that the first increase of each is seen."""
        for topic, kind in kinds.items():
            for event in _EVENTS[kind]:
                for outcome in OUTCOMES:
                    self.events.labels(topic, event, outcome)
            for reason in REASONS:
                self.dead_letters.labels(topic, reason)
            for field in FIELDS:
                for result in REPAIR_RESULTS:
                    self.odd_fields.labels(topic, field, result)
            for series in (
                self.received_bytes,
                self.lost_records,
                self.cut_queries,
            ):
                series.labels(topic)
            for direction in ("ahead", "behind"):
                self.clock_corrected.labels(topic, direction)
            self.paused_partitions.labels(topic).set(0)
            self.added_partitions.labels(topic).set(0)
            self.assigned_partitions.labels(topic).set(0)
        self.admit(partitions)

    def admit(self, partitions: Iterable[TopicPartition]) -> None:
        """Create the series of partitions that are read from now on."""
        for topic, partition in partitions:
            self.assigned_partitions.labels(topic).inc()
            for gauge in (
                self.lag_records,
                self.lag_seconds,
                self.next_offset,
                self.end_offset,
                self.waiting_for_transaction,
            ):
                gauge.labels(topic, str(partition))
