"""Faults of records: poison, and floods of it."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest

from consumers.errors import DeadLetterFlood
from consumers.events import encode_click
from consumers.pipeline import Topics
from deploy.cli.exit_codes import UNSAFE, exit_code
from tests.consumers.bench import Bench
from tests.consumers.shop import SECOND, START_US, WINDOWS
from tests.fakes.log import Log

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
