from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from random import Random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumers.errors import OffsetLost, PartitionsMismatch, SnapshotRefused
from consumers.events import encode_click, encode_exposure, encode_item, encode_purchase
from consumers.pipeline import BatchConfig, Topics
from consumers.telemetry import RESULTS
from tests.consumers.bench import Bench
from tests.consumers.oracle import Outcome, oracle
from tests.consumers.shop import MALFORMED, SECOND, START_US, TOPICS, WINDOWS, shop
from tests.fakes.clock import ManualClock
from tests.fakes.log import Log
from weighting.sample import Batch, Sample, Signal
from weighting.tasks import PURCHASE

SLOW = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
OUTCOMES = ("accepted", "duplicate", "ignored", "invalid", "late", "miskeyed")


def expected(log: Log) -> Outcome:
    return oracle(
        log.records,
        click_window_us=WINDOWS.click_window_us,
        observation_window_us=WINDOWS.observation_window_us,
        attribution_window_us=WINDOWS.attribution_window_us,
        grace_us=WINDOWS.grace_us,
    )


def empty(num_partitions: int = 1, *, items: bool = False) -> Log:
    topics = (*TOPICS, "items") if items else TOPICS
    return Log([(topic, p) for topic in topics for p in range(num_partitions)])


def show(
    log: Log, query_id: str, at: float, *, client: str = "c", hits: tuple[str, ...] = ("A", "B")
) -> None:
    time_us = START_US + int(at * SECOND)
    value = encode_exposure(
        query_id=query_id, client_id=client, time_us=time_us, user_query="shoes", hits=hits
    )
    log.append("exposures", 0, value, key=client.encode(), timestamp_us=time_us)


def click(
    log: Log,
    query_id: str | None,
    item: str,
    at: float,
    *,
    client: str = "c",
    event_id: str | None = None,
) -> None:
    time_us = START_US + int(at * SECOND)
    value = encode_click(
        query_id=query_id, client_id=client, object_id=item, time_us=time_us, event_id=event_id
    )
    log.append("clicks", 0, value, key=client.encode(), timestamp_us=time_us)


def buy(log: Log, query_id: str | None, item: str, at: float, *, client: str = "c") -> None:
    time_us = START_US + int(at * SECOND)
    value = encode_purchase(query_id=query_id, client_id=client, object_id=item, time_us=time_us)
    log.append("purchases", 0, value, key=client.encode(), timestamp_us=time_us)


# --- exactly the samples of the log -------------------------------------------------------------------------------------------------


@SLOW
@given(
    seed=st.integers(0, 10_000),
    pace=st.sampled_from([1.0, 20.0]),
    polls=st.integers(0, 10_000),
    most=st.integers(1, 200),
    size=st.integers(1, 100),
    parts=st.integers(1, 3),
)
def test_any_interleaving_of_polls_and_any_batch_size_gives_the_samples_of_the_oracle(
    seed: int, pace: float, polls: int, most: int, size: int, parts: int
) -> None:
    log = shop(seed, 250, num_partitions=parts, seconds_between=pace)
    bench = Bench(
        log.reader(max_records=most, random=Random(polls)),
        batch=BatchConfig(size=size, flush_seconds=1e9),
    )
    samples = bench.run()
    wanted = expected(log)
    assert len(samples) == len(wanted.samples)
    assert {s.sample_id: s for s in samples} == wanted.samples
    aside = [headers["steelyard-position"].decode() for _, _, _, headers in bench.shelf.sent]
    assert sorted(aside) == sorted(
        f"{topic}[{p}]@{offset}" for topic, p, offset in wanted.unreadable
    )
    assert bench.count("consumer_events_total", outcome="invalid") == len(wanted.unreadable)
    assert bench.count("consumer_events_total", outcome="duplicate") == wanted.num_duplicates
    assert bench.count("consumer_events_total", outcome="late") == wanted.num_late


@SLOW
@given(seed=st.integers(0, 10_000), first=st.integers(0, 10_000), second=st.integers(0, 10_000))
def test_the_order_of_samples_does_not_depend_on_the_order_of_polls(
    seed: int, first: int, second: int
) -> None:
    log = shop(seed, 150)
    runs = [
        Bench(log.reader(max_records=40, random=Random(order))).run() for order in (first, second)
    ]
    assert runs[0] == runs[1]


def test_the_invented_log_has_what_it_is_meant_to_have() -> None:
    log = shop(1, 3000)
    wanted = expected(log)
    num_records = sum(map(len, log.records.values()))
    assert 0.005 < len(wanted.unreadable) / num_records < 0.02
    assert 0.05 < wanted.num_duplicates / num_records < 0.15
    assert 0.01 < wanted.num_late / num_records < 0.04
    kinds = {(s.task, s.copy_kind, s.label, s.inferred) for s in wanted.samples.values()}
    assert len(kinds) == 11, (
        "every kind of sample occurs: first negative, first positive, late positive, inferred or not"
    )


@SLOW
@given(seed=st.integers(0, 10_000), most=st.integers(1, 100))
def test_every_record_has_exactly_one_outcome(seed: int, most: int) -> None:
    log = shop(seed, 150)
    bench = Bench(log.reader(max_records=most))
    bench.run()
    assert sum(
        bench.count("consumer_events_total", outcome=outcome) for outcome in OUTCOMES
    ) == sum(map(len, log.records.values()))


# --- resume -------------------------------------------------------------------------------------------------------------------------


@SLOW
@given(
    seed=st.integers(0, 10_000),
    pace=st.sampled_from([1.0, 20.0]),
    most=st.sampled_from([40, 60, 1_000_000]),
    cut=st.integers(0, 60),
    before=st.integers(0, 10_000),
    after=st.integers(0, 10_000),
    size=st.integers(1, 40),
)
def test_a_snapshot_resumed_in_a_fresh_pipeline_gives_the_identical_remaining_samples(
    seed: int, pace: float, most: int, cut: int, before: int, after: int, size: int
) -> None:
    log = shop(seed, 200, seconds_between=pace)
    batch, join = (
        BatchConfig(size=size, flush_seconds=1e9),
        dataclasses.replace(WINDOWS, max_pending=most),
    )
    unbroken = Bench(log.reader(max_records=30, random=Random(before)), batch=batch, join=join)
    whole = unbroken.run()

    first = Bench(log.reader(max_records=30, random=Random(before)), batch=batch, join=join)
    done: list[Sample] = []
    for _, yielded in zip(range(cut), first.pipeline.batches(), strict=False):
        done += yielded.samples if isinstance(yielded, Batch) else ()
    parts, offsets = first.pipeline.snapshot(), first.pipeline.next_offsets()

    second = Bench(log.reader(max_records=30, random=Random(after)), batch=batch, join=join)
    second.pipeline.restore(parts, offsets)
    assert second.pipeline.snapshot() == parts, "equal state gives equal bytes"
    assert done + second.run() == whole
    first.pipeline._reporting.joined()
    for event, results in RESULTS.items():
        for result in results:
            counts = [
                bench.count("join_labels_total", event=event, result=result)
                for bench in (unbroken, first, second)
            ]
            assert counts[0] == counts[1] + counts[2], (event, result)


@SLOW
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 40))
def test_slices_cover_every_record_once_across_a_resume(seed: int, cut: int) -> None:
    log = shop(seed, 150)
    first = Bench(log.reader(max_records=30))
    batches: list[Batch] = []
    for _, yielded in zip(range(cut), first.pipeline.batches(), strict=False):
        batches += [yielded] if isinstance(yielded, Batch) else []
    second = Bench(log.reader(max_records=30))
    second.pipeline.restore(first.pipeline.snapshot(), first.pipeline.next_offsets())
    batches += list(second.live())
    batches += list(second.pipeline.drain(2**60))
    reached = dict.fromkeys(log.records, 0)
    for batch in batches:
        for part in (part for poll in batch.polls for part in poll.slices):
            assert part.start == reached[part.topic, part.partition]
            assert part.num_records == part.end - part.start
            reached[part.topic, part.partition] = part.end
    assert reached == {tp: len(records) for tp, records in log.records.items()}


def test_a_snapshot_of_other_partitions_is_refused() -> None:
    one, two = Bench(shop(1, 20, num_partitions=1)), Bench(shop(1, 20, num_partitions=2))
    with pytest.raises(SnapshotRefused, match="partition counts must be those of the checkpoint"):
        two.pipeline.restore(one.pipeline.snapshot(), one.pipeline.next_offsets())


def test_a_snapshot_that_is_not_one_is_refused() -> None:
    bench = Bench(shop(1, 20))
    parts = dict.fromkeys(bench.pipeline.snapshot(), b"\x01")
    with pytest.raises(SnapshotRefused, match="cannot be read"):
        Bench(shop(1, 20)).pipeline.restore(parts, bench.pipeline.next_offsets())


def test_a_snapshot_of_another_format_is_refused() -> None:
    bench = Bench(shop(1, 20))
    parts = bench.pipeline.snapshot()
    state = msgspec.msgpack.decode(parts["rank-0"])
    state[0] += 1
    parts["rank-0"] = msgspec.msgpack.encode(state)
    with pytest.raises(SnapshotRefused, match=r"has the format 3, and this code reads 2\. Migrate"):
        Bench(shop(1, 20)).pipeline.restore(parts, bench.pipeline.next_offsets())


def test_resuming_where_records_were_deleted_names_partition_offset_and_retained_range() -> None:
    log = shop(1, 100)
    first = Bench(log.reader())
    parts, offsets = first.pipeline.snapshot(), first.pipeline.next_offsets()
    reader = log.reader()
    reader.beginnings["clicks", 1] = 7
    second = Bench(reader)
    second.pipeline.restore(parts, offsets)
    end = len(log.records["clicks", 1])
    with pytest.raises(
        OffsetLost,
        match=rf"clicks\[1\]: next offset 0 is outside of the retained range \[7, {end}\); 7 records were deleted",
    ):
        next(second.pipeline.batches())
    assert second.count("consumer_lost_records_total", topic="clicks") == 7


def test_resuming_beyond_the_end_of_the_log_is_refused() -> None:
    bench = Bench(shop(1, 100))
    bench.run()
    parts, offsets = bench.pipeline.snapshot(), bench.pipeline.next_offsets()
    recreated = Bench(empty(2))
    recreated.pipeline.restore(parts, offsets)
    with pytest.raises(OffsetLost, match="truncated or the topic was recreated"):
        next(recreated.pipeline.batches())


# --- poison -------------------------------------------------------------------------------------------------------------------------


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
    click(log, None, "Z", 1000)
    bench = Bench(log, clock=clock, batch=BatchConfig(size=1))
    batches = bench.pipeline.batches()
    samples: list[Sample] = []
    for n in range(100):
        log.append("purchases", 0, MALFORMED[n % len(MALFORMED)], key=b"c")
        batch = next(batches)
        samples += batch.samples if isinstance(batch, Batch) else ()
        clock.advance(1)
    assert {s.list_id for s in samples} == {"q"}


# --- counted by name ----------------------------------------------------------------------------------------------------------------


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
    click(log, None, "B", 700)
    click(log, None, "A", 1400, event_id="e")
    bench = Bench(log)
    assert len(bench.run()) == 3


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


def test_a_clock_a_year_ahead_is_clamped_and_does_not_move_the_watermark() -> None:
    log = empty()
    value = encode_click(client_id="c", object_id="A", time_us=START_US + 365 * 86_400 * SECOND)
    log.append("clicks", 0, value, key=b"c", timestamp_us=START_US)
    bench = Bench(log)
    (sample,) = bench.run()
    assert sample.shown_us == START_US
    assert bench.count("event_clock_clamped_total", topic="clicks") == 1


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


# --- batches ------------------------------------------------------------------------------------------------------------------------


def test_a_batch_closes_at_the_first_event_boundary_with_enough_samples() -> None:
    log = empty()
    for n in range(5):
        show(log, f"q{n}", n * 100, hits=("A", "B", "C"))
    bench = Bench(log, batch=BatchConfig(size=4, flush_seconds=1e9))
    sizes = [len(batch.samples) for batch in (*bench.live(), *bench.pipeline.drain(2**60))]
    assert sizes == [6, 6, 3]


def test_samples_that_wait_are_flushed_by_the_clock() -> None:
    log, clock = empty(), ManualClock()
    show(log, "q", 0)
    bench = Bench(log, clock=clock, batch=BatchConfig(size=100, flush_seconds=2))
    batches = bench.pipeline.batches()
    assert next(batches) is Signal.IDLE
    show(log, "r", 100)
    for topic in ("clicks", "purchases"):
        log.append(
            topic,
            0,
            b'{"action_name":"view","client_id":"c","timestamp":"2023-11-14T22:15:00Z"}',
            key=b"c",
        )
    assert next(batches) is Signal.IDLE
    clock.advance(2)
    batch = next(batches)
    assert isinstance(batch, Batch)
    assert batch.cause == "flush"
    assert len(batch.samples) == 2


def test_drain_closes_only_windows_that_end_by_the_newest_event() -> None:
    log = empty()
    show(log, "old", 0)
    show(log, "new", 25)
    samples = Bench(log).run(until_us=None)
    assert {s.list_id for s in samples} == {"old"}


def test_nothing_ready_is_idle_so_that_the_caller_can_do_other_things() -> None:
    batches = Bench(empty()).pipeline.batches()
    assert [next(batches) for _ in range(3)] == [Signal.IDLE] * 3


def test_partition_counts_that_differ_are_refused_by_name() -> None:
    log = Log([("clicks", 0), ("clicks", 1), ("exposures", 0), ("exposures", 1), ("purchases", 0)])
    with pytest.raises(PartitionsMismatch, match="clicks has 2, exposures has 2, purchases has 1"):
        Bench(log)


# --- idleness and bounds ------------------------------------------------------------------------------------------------------------


def test_a_quiet_partition_holds_samples_back_until_the_idle_timeout_and_no_longer() -> None:
    log, clock = empty(), ManualClock()
    show(log, "q", 0)
    show(log, "r", 1000)
    bench = Bench(log, clock=clock, batch=BatchConfig(size=1))
    batches = bench.pipeline.batches()
    for _ in range(29):
        assert next(batches) is Signal.IDLE
        clock.advance(1)
    clock.advance(1)
    batch = next(batches)
    assert isinstance(batch, Batch)
    assert {s.list_id for s in batch.samples} == {"q"}


def test_a_pause_with_open_lists_is_told_once_with_the_event_that_would_close_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, clock = empty(), ManualClock()
    for at in (0, 3, 50):  # the first two are closed by the third, which waits
        show(log, f"q{at}", at)
    bench = Bench(log, clock=clock, batch=BatchConfig(size=1))
    batches = bench.pipeline.batches()
    caplog.set_level("INFO", "consumers.reporting")

    def pause() -> list[tuple[str, int]]:
        caplog.clear()
        for _ in range(100):
            next(batches)
            clock.advance(1)
        return [
            (vars(record)["later_than"], vars(record)["open_lists"]) for record in caplog.records
        ]

    at_us = START_US + 50 * SECOND + WINDOWS.click_window_us + WINDOWS.grace_us
    ((told, num_lists),) = pause()
    assert (datetime.fromisoformat(told), num_lists) == (
        datetime.fromtimestamp(at_us / 1e6, UTC),
        1,
    )
    assert pause() == []
    click(log, None, "A", (at_us - START_US) / SECOND)  # not later
    ((again, num_lists),) = pause()
    assert (again, num_lists) == (told, 1)
    click(log, None, "B", (at_us - START_US) / SECOND + 0.001)
    assert pause() == []
    assert bench.pipeline._assembler.join.waiting_lists()[0] == 0


def test_brokers_that_do_not_answer_are_not_mistaken_for_idleness() -> None:
    log, clock = empty(), ManualClock()
    show(log, "q", 0)
    show(log, "r", 1000)
    bench = Bench(log, clock=clock, batch=BatchConfig(size=1))
    batches = bench.pipeline.batches()
    assert next(batches) is Signal.IDLE
    log.available = False
    for _ in range(10):
        clock.advance(60)
        assert next(batches) is Signal.IDLE
    log.available = True
    clock.advance(1)
    assert isinstance(next(batches), Batch)


def test_partitions_that_run_ahead_are_paused_until_the_others_follow() -> None:
    log = shop(3, 2000)
    for tp in list(log.records):
        if tp[0] == "purchases":
            del log.records[tp][:]
    bench = Bench(log.reader(max_records=60), join=dataclasses.replace(WINDOWS, max_pending=1000))
    most = 0
    paused = False
    for batch in bench.pipeline.batches():
        most = max(most, bench.pipeline._assembler.join.num_pending)
        paused = paused or bool(bench.log.paused)
        bench.clock.advance(1)
        if batch is Signal.IDLE and bench.log.exhausted:
            break
    assert paused
    assert most <= 100 + 60


def test_pausing_changes_no_sample() -> None:
    log = shop(4, 400)
    bench = Bench(log.reader(max_records=50, random=Random(1)))
    bench.pipeline._schedule._max_pending = 10
    samples: list[Sample] = []
    for batch in bench.pipeline.batches():
        samples += batch.samples if isinstance(batch, Batch) else ()
        bench.clock.advance(
            1
        )  # a partition that is read to its end must not hold the paused ones for ever
        if batch is Signal.IDLE and bench.log.exhausted:
            break
    samples += [sample for batch in bench.pipeline.drain(2**60) for sample in batch.samples]
    assert {s.sample_id: s for s in samples} == expected(log).samples


# --- items --------------------------------------------------------------------------------------------------------------------------


def describe(log: Log, item: str, text: str | None, at: float) -> None:
    time_us = START_US + int(at * SECOND)
    value = (
        None
        if text is None
        else encode_item(object_id=item, text=text, time_us=time_us, attributes={"brand": text[:1]})
    )
    log.append("items", 0, value, key=item.encode(), timestamp_us=time_us)


def with_items(log: Log) -> Bench:
    return Bench(log, topics=Topics())


def test_items_are_read_to_their_end_before_any_event() -> None:
    log = empty(items=True)
    show(log, "q", 0)
    for n in range(1200):
        describe(log, f"other-{n}", "x", 0)
    describe(log, "A", "a shoe", 50)
    bench = with_items(log)
    assert next(bench.pipeline.batches()) is Signal.IDLE
    assert {
        tp: offset for tp, offset in bench.pipeline.next_offsets().items() if tp[0] != "items"
    } == {(t, 0): 0 for t in TOPICS}
    samples = with_items(log.reader()).run()
    assert {s.item_id: s.text for s in samples} == {"A": "a shoe", "B": ""}
    assert samples[0].attributes == {"brand": "a"}


def test_an_exposure_has_the_text_of_its_own_moment() -> None:
    log = empty(items=True)
    describe(log, "A", "first", 0)
    describe(log, "A", "second", 15)
    describe(log, "A", None, 25)
    for at in (10, 20, 30):
        show(log, f"q{at}", at, hits=("A",))
    assert [s.text for s in with_items(log).run()] == ["first", "second", ""]


def test_a_missing_text_is_counted_and_the_candidate_kept() -> None:
    log = empty(items=True)
    describe(log, "A", "a shoe", 0)
    show(log, "q", 1, hits=("A", "B", "C"))
    bench = with_items(log)
    assert len(bench.run()) == 3
    assert bench.count("join_missing_texts_total") == 2


def test_items_that_wait_for_their_time_survive_a_snapshot() -> None:
    log = empty(items=True)
    describe(log, "A", "first", 0)
    describe(log, "A", "second", 15)
    show(log, "q", 10, hits=("A",))
    first = with_items(log.reader())
    for _ in zip(range(2), first.pipeline.batches(), strict=False):
        pass
    second = with_items(log.reader())
    second.pipeline.restore(first.pipeline.snapshot(), first.pipeline.next_offsets())
    show(log, "r", 20, hits=("A",))
    assert [s.text for s in second.run()] == ["first", "second"]


def test_clicks_and_purchases_alone_make_purchase_samples() -> None:
    log = Log([("clicks", 0), ("purchases", 0)])
    click(log, None, "A", 0)
    buy(log, None, "A", 10)
    bench = Bench(log, topics=Topics(exposures=None, items=None))
    (sample,) = bench.run()
    assert (sample.task, sample.label, sample.position, sample.list_size) == (
        PURCHASE,
        1,
        None,
        0,
    )
