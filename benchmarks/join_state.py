"""Memory of the join for clients that never come back, and time per event of keys that all share.

    python -m benchmarks.join_state [--events N] [--hits N] [--clicks RATIO]

Lists of unique clients, queries and items are decoded, deduplicated, joined and observed, none of
them final: what a day's visitors leave in the learner. Memory is that of the second half. Then
lists, clicks and purchases of one query id and one client, few and many: the time per event must
not grow. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import msgspec
from prometheus_client import CollectorRegistry

from consumers.assembler import Assembler
from consumers.dead_letter import DeadLetters
from consumers.events import Kind, encode_click, encode_exposure, encode_purchase
from consumers.joining.dedup import Dedup
from consumers.joining.join import JoinConfig
from consumers.reading.partition import Collaborators, Partition
from consumers.source import Record
from consumers.telemetry import Telemetry

START_US = 1_700_000_000_000_000
SECOND = 1_000_000
JOIN = JoinConfig(grace_us=5 * SECOND)
TOPICS = {"exposures": Kind.EXPOSURE, "clicks": Kind.CLICK, "purchases": Kind.PURCHASE}


class _Nowhere:
    def send(self, *_: object) -> None:
        raise AssertionError("this log has no dead letters")

    def flush(self) -> None:
        pass


class Ingest:
    """Decoding, deduplication and join, without a log."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.assembler = Assembler(
            [(topic, 0) for topic in TOPICS], join=JOIN, batch_size=256, now=0.0
        )
        self._offsets = dict.fromkeys(TOPICS, 0)
        telemetry = Telemetry(CollectorRegistry())
        shared = Collaborators(
            watermarks=self.assembler.watermarks,
            push=self.assembler.join.push,
            correct=self.assembler.join.correct,
            max_item_wait_us=JOIN.attribution_window_us,
            dead_letters=DeadLetters(_Nowhere(), "dead", telemetry),
            excluded=None,
        )
        self._partitions = {
            topic: Partition((topic, 0), kind, Dedup(JOIN.attribution_window_us), shared)
            for topic, kind in TOPICS.items()
        }

    def take(self, events: Iterator[tuple[str, int, str, bytes]]) -> int:
        """Take events in, and return their number."""
        num, time_us, offsets = 0, START_US, self._offsets
        waiting: dict[str, list[Record]] = {topic: [] for topic in TOPICS}
        for topic, time_us, client, value in events:
            num += 1
            record = Record(topic, 0, offsets[topic], time_us, client.encode(), value, ())
            offsets[topic] += 1
            waiting[topic].append(record)
            if num % 500 == 0:
                self._poll(waiting, time_us)
        self._poll(waiting, time_us)
        return num

    def _poll(self, waiting: dict[str, list[Record]], watermark_us: int) -> None:
        for topic, records in waiting.items():
            if records:
                self._partitions[topic].consume(records, 0.0)
                records.clear()
        join = self.assembler.join
        self.assembler.watermarks.advance_to(watermark_us - JOIN.grace_us)
        while join.advance(self.assembler.watermarks.watermark_us, 256):
            join.samples.clear()
        join.samples.clear()
        join.tally.clear()


def visitors(
    num_events: int, num_hits: int, clicks: float
) -> Iterator[tuple[str, int, str, bytes]]:
    """Yield lists of unique clients, queries and items, and clicks on some of them."""
    random, num = Random(7), 0
    while num < num_events:
        time_us = START_US + num * 10_000
        client, query_id = f"c-{random.getrandbits(64):016x}", f"{random.getrandbits(128):032x}"
        hits = [f"SKU-{num:07d}-{n}" for n in range(num_hits)]
        shown = encode_exposure(
            query_id=query_id,
            client_id=client,
            time_us=time_us,
            user_query=f"red running shoes {num}",
            hits=hits,
        )
        num += 1
        yield "exposures", time_us, client, shown
        if random.random() < clicks:
            clicked = encode_click(
                query_id=query_id,
                client_id=client,
                object_id=hits[0],
                time_us=time_us + 1,
                event_id=f"{random.getrandbits(100):026x}",
                ordinal=1,
            )
            num += 1
            yield "clicks", time_us + 1, client, clicked


def same(num_lists: int) -> Iterator[tuple[str, int, str, bytes]]:
    """Yield lists of one query id, and clicks and purchases of one client on one item."""
    for n in range(num_lists):
        time_us, client = START_US + n * 1000, f"c-{n}"
        shown = encode_exposure(
            query_id="constant",
            client_id=client,
            time_us=time_us,
            user_query="shoes",
            hits=[f"SKU-{n}"],
            event_id=f"x{n}",
        )
        yield "exposures", time_us, client, shown
        clicked = encode_click(
            client_id="anonymous", object_id="top", time_us=time_us, event_id=f"c{n}"
        )
        yield "clicks", time_us, "anonymous", clicked
        bought = encode_purchase(
            client_id="anonymous", object_id="top", time_us=time_us, event_id=f"p{n}"
        )
        yield "purchases", time_us, "anonymous", bought


def resident_bytes() -> int:
    """Return the resident size of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=150_000, help="of each half")
    parser.add_argument("--hits", type=int, default=1)
    parser.add_argument("--clicks", type=float, default=0.0)
    arguments = parser.parse_args()
    ingest = Ingest()
    events = visitors(2 * arguments.events, arguments.hits, arguments.clicks)
    num_events = ingest.take(islice(events, arguments.events))
    gc.collect()
    before = resident_bytes()
    num_later = ingest.take(events)
    gc.collect()
    megabytes = (resident_bytes() - before) / 1e6 * 100_000 / num_later
    num_events += num_later
    join = ingest.assembler.join
    began = time.process_time()
    num_bytes = len(msgspec.msgpack.encode(join.snapshot(0)))
    snapshot_seconds = time.process_time() - began
    print(f"{megabytes:.0f} MB per 100,000 events, {arguments.hits} hits a list")
    report: dict[str, object] = {
        "benchmark": "join_state",
        "num_events": num_events,
        "hits": arguments.hits,
        "num_open": join.num_open_exposures + join.num_open_clicks,
        "megabytes_per_100000": round(megabytes, 1),
        "snapshot_bytes_per_event": round(num_bytes / num_events),
        "snapshot_us_per_event": round(snapshot_seconds / num_events * 1e6, 1),
        "python": platform.python_version(),
    }
    del ingest, join
    for num_lists in (5_000, 10_000, 20_000):
        ingest = Ingest()
        sent = list(same(num_lists))
        began = time.process_time()
        ingest.take(iter(sent))
        each = (time.process_time() - began) / len(sent) * 1e6
        print(f"{each:.1f} us per event at {len(sent):,} events of one query id and one client")
        report[f"us_per_event_{len(sent)}"] = round(each, 1)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
