"""Telemetry of one pipeline: counts after each poll, lag about once a second."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from datetime import UTC, datetime

from consumers.assembler import Assembler
from consumers.errors import OffsetLost
from consumers.events import Kind
from consumers.joining.clock import BEGINNING_US
from consumers.reading.partition import Partition
from consumers.telemetry import Telemetry
from weighting.provenance import TopicPartition

_log = logging.getLogger(__name__)
_TRANSACTION_SECONDS = 10.0  # a transaction that is open for longer than most
_LOG_SECONDS = 60.0


class Reporting:
    """Series of the partitions and the join of one pipeline.

    Attributes:
        num_ready: samples that wait for a batch, when they were counted last.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        partitions: Mapping[TopicPartition, Partition],
        assembler: Assembler,
        *,
        grace_us: int,
        retention_seconds: Mapping[str, float],
    ) -> None:
        """Take what is reported; retention is that of topics where known."""
        self._telemetry = telemetry
        self._partitions = partitions
        self._assembler = assembler
        self._grace_us = grace_us
        self._retention_seconds = dict(retention_seconds)
        self._waiting_reported = False  # in this pause
        self._count_ready = True
        self.num_ready = 0
        # When records behind an open transaction were first seen, and where that was logged.
        self._waiting_since: dict[TopicPartition, float] = {}
        self._transactions_said: set[TopicPartition] = set()
        # Events with a wrong clock that no log line has told yet.
        self._corrected: Counter[tuple[str, str]] = Counter()
        self._corrected_logged = float("-inf")

    def lost(self, lost: OffsetLost) -> None:
        """Count records that can never be read."""
        self._telemetry.lost_records.labels(lost.topic).inc(lost.num_missing)

    def consumed(self, times_us: Mapping[str, int], now: float) -> None:
        """Report one poll; counts go to the audits of the partitions, too."""
        telemetry = self._telemetry
        for event, time_us in times_us.items():
            telemetry.event_age.labels(event).observe(max(now - time_us / 1e6, 0))
        for (topic, _), partition in self._partitions.items():
            counts = partition.counts
            for (event, outcome), count in counts.outcomes.items():
                telemetry.events.labels(topic, event, outcome).inc(count)
                partition.audit.count(outcome, count)
            telemetry.received_bytes.labels(topic).inc(counts.num_bytes)
            telemetry.clock_corrected.labels(topic, "ahead").inc(counts.num_ahead)
            telemetry.clock_corrected.labels(topic, "behind").inc(counts.num_behind)
            self._corrected[topic, "ahead"] += counts.num_ahead
            self._corrected[topic, "behind"] += counts.num_behind
            telemetry.cut_queries.labels(topic).inc(counts.num_cut)
            for (field, result), count in counts.repairs.items():
                telemetry.odd_fields.labels(topic, field, result).inc(count)
            counts.clear()

    def joined(self) -> None:
        """Report what the join did since the last call."""
        join, telemetry = self._assembler.join, self._telemetry
        tally = join.tally
        for (event, result), count in tally.results.items():
            telemetry.labels.labels(event, result).inc(count)
        for event, delay_us in tally.delays_us:
            telemetry.label_delay.labels(event).observe(delay_us / 1e6)
        telemetry.missing_texts.inc(tally.num_missing_texts)
        telemetry.cut_hits.inc(tally.num_cut_hits)
        tally.clear()
        telemetry.open_exposures.set(join.num_open_exposures)
        telemetry.open_clicks.set(join.num_open_clicks)
        telemetry.waiting_events.set(join.num_waiting)
        telemetry.pending_events.set(join.num_pending)
        if self._count_ready:
            self._count_ready = False
            self.num_ready = join.num_ready(self._assembler.watermarks.watermark_us)

    def offsets(self, ends: Mapping[TopicPartition, int], now: float) -> None:
        """Report how far every partition is behind the end of the log; from any thread.

        Also ask for a new count of the samples that are ready: it is too slow for every batch.
        """
        for tp, partition in list(self._partitions.items()):
            self._offsets(tp, partition, ends.get(tp), now)
        self._count_ready = True

    def snapshotted(self, num_bytes: int) -> None:
        """Report the size of a snapshot."""
        self._telemetry.state_bytes.set(num_bytes)

    def wrong_clocks(self, now: float) -> None:
        """Log at most once a minute how many event times were wrong."""
        if now - self._corrected_logged < _LOG_SECONDS or not any(self._corrected.values()):
            return
        self._corrected_logged = now
        counts = {f"{topic} {which}": num for (topic, which), num in self._corrected.items() if num}
        self._corrected.clear()
        message = "event times were wrong and estimated; `steelyard doctor` names a record: %s"
        _log.warning(message, counts)

    def lag(
        self,
        ends: Mapping[TopicPartition, int],
        log_ends: Mapping[TopicPartition, int],
        paused: Collection[TopicPartition],
        now: float,
    ) -> None:
        """Report how far every partition is behind its end offset.

        Args:
            ends: offsets up to which the partitions can be read now.
            log_ends: end offsets of the log, beyond them where a transaction is open.
            paused: partitions that wait for others.
            now: seconds on the injected clock.
        """
        self._transactions(ends, log_ends, now)
        telemetry, partitions = self._telemetry, self._partitions
        unaccounted = sum(each.audit.num_unaccounted for each in partitions.values())
        telemetry.unaccounted.set(unaccounted)
        dedups = {topic: each.dedup for (topic, _), each in partitions.items()}
        telemetry.dedup_ids.set(sum(map(len, dedups.values())))
        num_paused = Counter(topic for topic, _ in paused)
        for tp, partition in partitions.items():
            telemetry.paused_partitions.labels(tp[0]).set(num_paused[tp[0]])
            self._offsets(tp, partition, log_ends.get(tp), now)

    def added(self, ends: Mapping[TopicPartition, int], num_added: Mapping[str, int]) -> None:
        """Report the partitions that are not read yet: all of their records are lag."""
        for topic, num in num_added.items():
            self._telemetry.added_partitions.labels(topic).set(num)
        for (topic, partition), end in ends.items():
            if (topic, partition) not in self._partitions:
                labels = (topic, str(partition))
                self._telemetry.end_offset.labels(*labels).set(end)
                self._telemetry.lag_records.labels(*labels).set(end)

    def _transactions(
        self,
        ends: Mapping[TopicPartition, int],
        log_ends: Mapping[TopicPartition, int],
        now: float,
    ) -> None:
        """Report records behind open transactions, and log once where some wait for long."""
        waiting = {tp: log_ends[tp] - end for tp, end in ends.items() if log_ends[tp] > end}
        for topic, partition in ends:
            series = self._telemetry.waiting_for_transaction.labels(topic, str(partition))
            series.set(waiting.get((topic, partition), 0))
        self._waiting_since = {tp: self._waiting_since.get(tp, now) for tp in waiting}
        self._transactions_said &= set(waiting)
        for tp, since in self._waiting_since.items():
            if now - since < _TRANSACTION_SECONDS or tp in self._transactions_said:
                continue
            self._transactions_said.add(tp)
            details = {"partition": f"{tp[0]}[{tp[1]}]", "waiting_for_transaction": waiting[tp]}
            _log.warning("records wait for the end of an open transaction", extra=details)

    def _offsets(
        self, tp: TopicPartition, partition: Partition, end: int | None, now: float
    ) -> None:
        telemetry, labels = self._telemetry, (tp[0], str(tp[1]))
        telemetry.next_offset.labels(*labels).set(partition.next_offset)
        if partition.kind is not Kind.ITEM:
            watermark_us = self._assembler.watermarks.own_watermark(tp)
            if watermark_us > BEGINNING_US:
                telemetry.watermark.labels(*labels).set(watermark_us / 1e6)
        if end is None:
            return
        lag = max(end - partition.next_offset, 0)
        behind = 0.0
        if lag and partition.newest_record_us > 0:
            behind = max(now - partition.newest_record_us / 1e6, 0)
        telemetry.end_offset.labels(*labels).set(end)
        telemetry.lag_records.labels(*labels).set(lag)
        telemetry.lag_seconds.labels(*labels).set(behind)
        if tp[0] in self._retention_seconds:
            headroom = self._retention_seconds[tp[0]] - behind
            telemetry.retention_headroom.labels(*labels).set(headroom)

    def waiting(self) -> None:
        """Log once per pause which event would close the lists that are open.

        Event time moves with events only.
        """
        if not self._assembler.watermarks.all_idle:
            self._waiting_reported = False
            return
        if self._waiting_reported:
            return
        self._waiting_reported = True
        num_lists, key_us = self._assembler.join.waiting_lists()
        if num_lists:
            later_than = datetime.fromtimestamp((key_us + self._grace_us) / 1e6, UTC).isoformat()
            details = {"later_than": later_than, "open_lists": num_lists}
            _log.info("everything is read; waiting for an event", extra=details)
