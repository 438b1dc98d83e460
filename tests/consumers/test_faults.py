"""Faults of records and clocks: poison, floods of it, clocks that are a year off."""

from __future__ import annotations

import dataclasses
import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.codec import MAX_CLOCK_AHEAD_US
from consumers.errors import DeadLetterFlood
from consumers.events import encode_click
from consumers.pipeline import Topics
from deploy.cli.exit_codes import UNSAFE, exit_code
from tests.consumers.bench import Bench
from tests.consumers.shop import SECOND, START_US, WINDOWS
from tests.fakes.log import Log

YEAR_US = 365 * 86_400 * SECOND
TOPICS = Topics(exposures=None, items=None)
PARTITIONS = [(topic, p) for topic in ("clicks", "purchases") for p in range(2)]

#: What it is -> (value, stage, reason).
POISON: dict[str, tuple[bytes | None, str, str]] = {
    "bad JSON": (b'{"action_name": "click",', "decode", "not_json"),
    "wrong type": (b'{"action_name": "click", "client_id": 7}', "schema", "schema"),
    "NaN for an action": (b'{"action_name": NaN}', "schema", "schema"),
    "one megabyte of it": (b"x" * 1_000_000, "decode", "not_json"),
    "null": (None, "decode", "null_value"),
    "bad UTF-8": (b'{"action_name": "\xff\xfe"}', "decode", "not_utf8"),
    "brackets without end": (b'{"unknown":' + b"[" * 100_000, "decode", "too_deep"),
    "brackets where an object belongs": (
        b'{"event_attributes":' + b"[" * 100_000,
        "decode",
        "too_deep",
    ),
    "a torn string behind a wrong type": (b'{"client_id": 7, "x": "', "decode", "not_json"),
}


def click(n: int, time_us: int, client: str = "c-1") -> bytes:
    return encode_click(
        query_id=f"q-{n}", client_id=client, object_id="SKU-1", time_us=time_us, event_id=f"e-{n}"
    )


def poisoned(num_good: int = 60) -> Log:
    """Clicks, with every kind of poison among them."""
    log, poison = Log(PARTITIONS), list(POISON.values())
    for n in range(num_good):
        log.append(
            "clicks",
            0,
            click(n, START_US + n * SECOND),
            key=b"c-1",
            timestamp_us=START_US + n * SECOND,
        )
        if n % 6 == 5 and poison:
            log.append(
                "clicks", 0, poison.pop(0)[0], key=b"c-1", timestamp_us=START_US + n * SECOND
            )
    assert not poison
    return log


def test_each_kind_of_poison_is_set_aside_with_its_stage_and_all_others_are_used() -> None:
    bench = Bench(poisoned(), topics=TOPICS)
    samples = bench.run()
    aside = [
        (headers["steelyard-stage"].decode(), headers["steelyard-reason"].decode())
        for _, _, _, headers in bench.shelf.sent
    ]
    assert aside == [(stage, reason) for _, stage, reason in POISON.values()]
    assert {sample.list_id for sample in samples} == {f"q-{n}" for n in range(60)}
    for (_, _, value, headers), (poison, _, _) in zip(
        bench.shelf.sent, POISON.values(), strict=True
    ):
        assert value == (poison or b"")[: 512 * 1024]
        assert headers.get("steelyard-size") == (
            b"1000000" if len(poison or b"") == 1_000_000 else None
        )


@pytest.mark.parametrize("most", [1, 100, 3000])
def test_a_producer_gone_bad_ends_reading_within_ten_thousand_records(most: int) -> None:
    log, random = Log(PARTITIONS, max_records=most * len(PARTITIONS)), Random(4)
    for n in range(22_000):
        torn = n >= 12_000 and random.random() < 0.5
        value = b'{"torn' if torn else click(n, START_US + n * SECOND)
        log.append("clicks", n % 2, value, key=b"c-1", timestamp_us=START_US + n * SECOND)
    bench = Bench(log, topics=TOPICS, join=dataclasses.replace(WINDOWS, max_pending=10**6))
    with pytest.raises(
        DeadLetterFlood,
        match=r"topic 'clicks': [56]\d\d of the last 1\d\d\d\d records .* kafka\.dead_letters",
    ) as raised:
        bench.run()
    assert exit_code(raised.value) == UNSAFE
    assert sum(bench.pipeline.next_offsets().values()) <= 22_000


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), backwards=st.booleans())
def test_one_client_a_year_off_does_not_move_the_watermark_of_the_others(
    seed: int, backwards: bool
) -> None:
    """The bound is the append time plus five minutes, even if append times go back a minute."""
    random, log = Random(seed), Log(PARTITIONS, max_records=50)
    newest_append_us = 0
    for n in range(200):
        at_us = START_US + n * SECOND
        append_us = at_us - 60 * SECOND if backwards and random.random() < 0.2 else at_us
        newest_append_us = max(newest_append_us, append_us)
        liar = random.random() < 0.3
        time_us = at_us + random.choice([-YEAR_US, YEAR_US]) if liar else at_us
        client = "c-liar" if liar else "c-1"
        topic = "purchases" if n % 4 > 1 else "clicks"
        value = click(n, time_us, client).replace(
            b'"click"', b'"purchase"' if topic == "purchases" else b'"click"'
        )
        log.append(topic, n % 2, value, key=client.encode(), timestamp_us=append_us)
    bench = Bench(log, topics=TOPICS)
    samples = [sample for batch in bench.live() for sample in batch.samples]
    watermark_us = bench.pipeline.watermark_us()
    assert watermark_us is not None
    assert START_US - WINDOWS.grace_us <= watermark_us <= newest_append_us + MAX_CLOCK_AHEAD_US
    samples += [sample for batch in bench.pipeline.drain(2**60) for sample in batch.samples]
    read = [json.loads(r.value or b"") for records in log.records.values() for r in records]
    clicked = {
        event["query_id"]
        for event in read
        if event["client_id"] == "c-1" and event["action_name"] == "click"
    }
    assert clicked <= {sample.list_id for sample in samples}
    assert bench.count("event_clock_clamped_total") == sum(
        event["timestamp"][:4] > "2023" for event in read
    )
