"""Outcomes of single records: set aside, duplicate, miskeyed, ignored, cut."""

from __future__ import annotations

import pytest

from consumers.dead_letter import WINDOW_RECORDS
from consumers.events import encode_click, encode_exposure
from consumers.pipeline import BatchConfig
from tests.consumers.bench import Bench
from tests.consumers.shop import MALFORMED, SECOND, START_US
from tests.consumers.single import click, empty, show, tick
from tests.fakes.clock import ManualClock
from weighting.sample import Batch, Sample

# --- poison ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "stage", "reason"),
    [
        (b"{", "decode", "not_json"),
        (b"", "decode", "not_json"),
        (b"NaN", "decode", "not_json"),
        (b'{"client_id":"\xff"}', "decode", "not_utf8"),
        ('{"client_id":"c"}'.encode("utf-16"), "decode", "not_utf8"),
        ('{"client_id":"c"}'.encode("utf-16-le"), "decode", "not_utf8"),
        ('{"client_id":"c"}'.encode("utf-16-be"), "decode", "not_utf8"),
        (b'{"x":' + b"[" * 100_000, "decode", "too_deep"),
        (None, "decode", "null_value"),
        (b"\x00\x00\x00\x00\x07avro", "decode", "confluent_wire_format"),
        (b'{"action_name":"click"}', "schema", "schema"),
        (
            b'{"action_name":"click","client_id":"c","timestamp":"2026-11-23T22:08:34","event_attributes":{"object":{"object_id":"A"}}}',
            "schema",
            "naive_timestamp",
        ),
    ],
)
def test_what_cannot_be_read_is_set_aside_with_its_reason_and_reading_goes_on(
    value: bytes | None, stage: str, reason: str
) -> None:
    log = empty()
    click(log, None, "A", 0)
    log.append("clicks", 0, value, key=b"c")
    click(log, None, "B", 1)
    bench = Bench(log)
    assert {s.item_id for s in bench.run()} == {"A", "B"}
    ((topic, key, body, headers),) = bench.shelf.sent
    assert (topic, key, body) == ("steelyard.deadletter", b"clicks-0-1", value or b"")
    assert headers["steelyard-position"] == b"clicks[0]@1"
    assert headers["steelyard-stage"].decode() == stage
    assert headers["steelyard-reason"].decode() == reason
    assert headers["steelyard-error"]
    assert headers["steelyard-version"] == b"1"
    assert bench.count("deadletter_events_total", topic="clicks", reason=reason) == 1
    assert bench.count("consumer_events_total", topic="clicks", outcome="invalid") == 1


def test_a_dead_letter_always_fits_and_says_what_was_cut() -> None:
    log = empty()
    log.append("clicks", 0, b"x" * 5_000_000, key=b"c")
    bench = Bench(log)
    bench.run()
    ((_, _, body, headers),) = bench.shelf.sent
    assert body == b"x" * 512 * 1024
    assert headers["steelyard-size"] == b"5000000"


def test_poison_that_keeps_coming_does_not_hold_the_watermark_back() -> None:
    log, clock = empty(), ManualClock()
    show(log, "q", 0)
    tick(log, 1000)
    bench = Bench(log, clock=clock, batch=BatchConfig(size=1))
    batches = bench.pipeline.batches()
    samples: list[Sample] = []
    for n in range(100):
        log.append("purchases", 0, MALFORMED[n % len(MALFORMED)], key=b"c")
        batch = next(batches)
        samples += batch.samples if isinstance(batch, Batch) else ()
        clock.advance(1)
    assert {s.list_id for s in samples} == {"q"}


# --- counted by name ------------------------------------------------------------------------------


def test_an_event_whose_key_is_not_its_client_is_counted_and_still_used() -> None:
    log = empty()
    value = encode_click(client_id="c", object_id="A", time_us=START_US)
    for key in (b"other", None):
        log.append("clicks", 0, value, key=key, timestamp_us=START_US)
    bench = Bench(log)
    assert len(bench.run()) == 2
    assert bench.count("consumer_events_total", event="click", outcome="miskeyed") == 2


def test_the_same_event_id_counts_once() -> None:
    log = empty()
    click(log, None, "A", 0, event_id="e")
    click(log, None, "A", 0, event_id="e")
    bench = Bench(log)
    assert len(bench.run()) == 1
    assert bench.count("consumer_events_total", event="click", outcome="duplicate") == 1
    assert bench.count("consumer_events_total", event="click", outcome="accepted") == 1


def test_the_same_event_id_counts_again_beyond_the_window() -> None:
    log = empty()
    click(log, None, "A", 0, event_id="e")
    tick(log, 1400)
    click(log, None, "A", 1400, event_id="e")
    bench = Bench(log)
    assert len(bench.run()) == 2


def test_other_actions_are_ignored_whatever_they_carry_but_their_time_counts() -> None:
    log = empty()
    log.append(
        "clicks",
        0,
        b'{"action_name":"view","client_id":"c","timestamp":"2023-11-14T22:13:20Z","event_attributes":[]}',
        key=b"c",
    )
    bench = Bench(log)
    assert bench.run() == []
    assert bench.count("consumer_events_total", event="other", outcome="ignored") == 1
    assert bench.pipeline._assembler.watermarks.newest_us == START_US


def test_a_search_without_hits_is_no_sample_and_no_dead_letter_but_its_time_counts() -> None:
    log = empty()
    show(log, "q", 5, hits=())
    click(log, "q", "A", 1)
    bench = Bench(log)
    assert [sample.item_id for sample in bench.run()] == ["A"]
    assert bench.shelf.sent == []
    assert bench.count("consumer_events_total", event="exposure", outcome="no_hits") == 1
    assert bench.count("join_labels_total", event="click", result="orphan") == 1
    assert bench.pipeline._assembler.watermarks.newest_us == START_US + 5 * SECOND
    assert bench.pipeline._assembler.join.num_open_exposures == 0


def test_searches_that_found_nothing_never_stop_the_learner() -> None:
    log = empty()
    for n in range(WINDOW_RECORDS):
        show(log, f"q{n}", n, hits=())
    bench = Bench(log)
    assert bench.run() == []
    assert bench.count("consumer_events_total", outcome="no_hits") == WINDOW_RECORDS


def test_lines_of_one_order_under_one_event_id_are_all_counted() -> None:
    log = empty()
    for item in ("A", "B", "A"):
        click(log, None, item, 0, event_id="order-1")
    bench = Bench(log)
    assert {sample.item_id for sample in bench.run()} == {"A", "B"}
    assert bench.count("consumer_events_total", event="click", outcome="duplicate") == 1


def test_a_query_beyond_the_limit_is_cut_and_counted() -> None:
    log = empty()
    value = encode_exposure(
        query_id="q", client_id="c", time_us=START_US, user_query="x" * 5000, hits=("A",)
    )
    log.append("exposures", 0, value, key=b"c", timestamp_us=START_US)
    bench = Bench(log)
    (sample,) = bench.run()
    assert len(sample.query) == 4096
    assert bench.count("consumer_cut_queries_total", topic="exposures") == 1
