"""One client or record with a wrong clock changes its own outcome and no other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumers.events import encode_click, encode_exposure, encode_purchase
from consumers.joining.partition_clock import PartitionClock
from consumers.pipeline import BatchConfig, Topics
from tests.consumers.bench import Bench
from tests.consumers.shop import SECOND, START_US, TOPICS, WINDOWS, partition_of
from tests.consumers.single import buy, click, describe, show, tick
from tests.consumers.single import empty as empty_log
from tests.fakes.clock import ManualClock
from tests.fakes.log import Log
from weighting.sample import Batch, Sample, Signal

YEAR_US = 365 * 86_400 * SECOND
WRONG = "c-wrong"
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

ERRORS_US = st.one_of(
    st.integers(-10 * YEAR_US, 10 * YEAR_US),
    st.integers(-60 * SECOND, 60 * SECOND),
    st.sampled_from([360, 3540, 3600, 86_400]).map(lambda seconds: seconds * SECOND),
    st.sampled_from([-10 * YEAR_US, -YEAR_US, YEAR_US, 10 * YEAR_US]),
)


@dataclass(frozen=True)
class Write:
    """An event: where it lies in the log, and when it happened."""

    place_us: int
    topic: str
    client: str
    query_id: str
    time_us: int

    def value(self, shift_us: int) -> bytes:
        time_us = self.time_us + shift_us
        if self.topic == "exposures":
            return encode_exposure(
                query_id=self.query_id,
                client_id=self.client,
                time_us=time_us,
                user_query="shoes",
                hits=("A", "B"),
            )
        encode = encode_click if self.topic == "clicks" else encode_purchase
        return encode(
            query_id=self.query_id,
            client_id=self.client,
            object_id="A",
            time_us=time_us,
            event_id=f"{self.topic} {self.query_id}",
        )


def session(random: Random, client: str, at_us: int, n: int) -> Iterator[Write]:
    """A list, perhaps a click, perhaps a purchase; in the log within half of the grace."""
    for topic, chance in (("exposures", 1.0), ("clicks", 0.6), ("purchases", 0.5)):
        if random.random() > chance:
            return
        place_us = at_us + random.randrange(WINDOWS.grace_us // 2)
        yield Write(place_us, topic, client, f"q-{client}-{n}", at_us)
        at_us += random.randrange(SECOND // 10, 40 * SECOND)


def traffic(seed: int, *, num_clients: int, place: str, burst: int) -> list[Write]:
    """Sessions of a few minutes; the wrong client comes first, last, or all the time."""
    random = Random(seed)
    writes: list[Write] = []
    for n in range(80):
        at_us = START_US + n * 2 * SECOND + random.randrange(SECOND)
        writes += session(random, f"c-{random.randrange(num_clients)}", at_us, n)
        if place == "everywhere" and n % 9 == 4:
            writes += session(random, WRONG, at_us, n)
    starts = {"first": START_US - 60 * SECOND, "middle": START_US + 100 * SECOND}
    start_us = starts.get(place, START_US + 300 * SECOND)
    for n in range(burst if place != "everywhere" else 0):
        writes += session(random, WRONG, start_us + n * SECOND // 10, 1000 + n)
    return sorted(writes, key=lambda write: write.place_us)


def others(
    writes: list[Write],
    errors_us: list[int],
    *,
    num_partitions: int,
    pause_every: int,
    archive: bool,
    polls: int,
) -> tuple[dict[str, Sample], Bench]:
    """Samples of all clients but the wrong one, read live with pauses in which all is idle."""
    log = Log([(topic, p) for topic in TOPICS for p in range(num_partitions)])
    reader = log.reader(max_records=20, random=Random(polls))
    wall = 20 * YEAR_US / SECOND if archive else 0.0  # the log is read long after it was written
    clock = ManualClock(START_US / SECOND - 60 + wall)
    bench = Bench(reader, clock=clock, batch=BatchConfig(size=9, flush_seconds=1e9))
    batches = bench.pipeline.batches()
    samples: list[Sample] = []

    def read() -> None:
        while (batch := next(batches)) is not Signal.IDLE or not reader.exhausted:
            samples.extend(batch.samples if isinstance(batch, Batch) else ())

    paused = 0.0
    for n, (write, error_us) in enumerate(zip(writes, errors_us, strict=True)):
        clock.seconds = max(clock.seconds, write.place_us / SECOND + paused + wall)
        value = write.value(error_us + int(paused * SECOND))
        partition = partition_of(write.client, num_partitions)
        log.append(write.topic, partition, value, key=write.client.encode())
        read()
        if pause_every and n % pause_every == pause_every - 1:
            for _ in range(4):
                read()
                clock.advance(11)
            paused += 44
    read()
    samples += [sample for batch in bench.pipeline.drain(2**60) for sample in batch.samples]
    assert len({sample.sample_id for sample in samples}) == len(samples)
    return {s.sample_id: s for s in samples if WRONG not in s.list_id}, bench


@SLOW
@given(
    seed=st.integers(0, 10_000),
    error_us=ERRORS_US,
    one_record=st.booleans(),
    num_clients=st.sampled_from([1, 2, 3, 5, 12, 60]),
    place=st.sampled_from(["first", "middle", "last", "everywhere"]),
    burst=st.sampled_from([1, 3, 60]),
    num_partitions=st.integers(1, 3),
    pause_every=st.sampled_from([0, 20, 90]),
    archive=st.booleans(),
    polls=st.integers(0, 100),
)
def test_the_samples_of_all_other_clients_are_the_same_with_and_without_the_error(
    seed: int,
    error_us: int,
    one_record: bool,
    num_clients: int,
    place: str,
    burst: int,
    num_partitions: int,
    pause_every: int,
    archive: bool,
    polls: int,
) -> None:
    writes = traffic(seed, num_clients=num_clients, place=place, burst=burst)
    wrong = [n for n, write in enumerate(writes) if write.client == WRONG]
    wrong = wrong[len(wrong) // 2 :][:1] if one_record else wrong
    errors_us = [error_us if n in set(wrong) else 0 for n in range(len(writes))]
    right, _ = others(
        writes,
        [0] * len(writes),
        num_partitions=num_partitions,
        pause_every=pause_every,
        archive=archive,
        polls=polls,
    )
    found, _ = others(
        writes,
        errors_us,
        num_partitions=num_partitions,
        pause_every=pause_every,
        archive=archive,
        polls=polls + 1,
    )
    assert len(right) >= 160
    assert found == right


# --- what is seen of it ---------------------------------------------------------------------------


def crowded(error_us: int, topic: str = "clicks") -> Log:
    """One event with a wrong clock, among those of twenty clients."""
    log = empty_log()
    for n in range(20):
        show(log, f"q-{n}", n, client=f"c-{n}")
        if n == 10:
            value = encode_click(
                client_id=WRONG, object_id="A", time_us=START_US + n * SECOND + error_us
            )
            log.append(topic, 0, value, key=WRONG.encode())
        tick(log, n)
        for m in range(4):
            other = encode_click(
                client_id=f"d-{m}",
                object_id="B",
                time_us=START_US + n * SECOND,
                event_id=f"{n} {m}",
            )
            log.append(topic, 0, other, key=f"d-{m}".encode())
    return log


@pytest.mark.parametrize(
    ("error_us", "direction"),
    [(10 * YEAR_US, "ahead"), (360 * SECOND, "ahead"), (-10 * YEAR_US, "behind")],
)
def test_a_wrong_time_is_counted_told_once_a_minute_and_estimated(
    error_us: int, direction: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(crowded(error_us))
    samples = bench.run()
    (sample,) = [s for s in samples if s.item_id == "A" and s.task == "purchase"]
    assert abs(sample.shown_us - (START_US + 10 * SECOND)) <= 2 * SECOND, "the time at its arrival"
    assert sample.elapsed_us == WINDOWS.observation_window_us or direction == "behind"
    assert bench.count("event_clock_corrected_total", topic="clicks", direction=direction) == 1
    assert bench.count("event_clock_corrected_total") == 1
    for _ in range(3):
        bench.pipeline._reporting.wrong_clocks(bench.clock.seconds)
    told = [record for record in caplog.records if "event times were wrong" in record.message]
    assert len(told) == 1
    assert f"clicks {direction}" in told[0].message


def test_a_burst_from_the_future_does_not_wait_for_it() -> None:
    log = empty_log()
    for n in range(300):
        value = encode_click(client_id=WRONG, object_id="A", time_us=START_US + 9 * YEAR_US + n)
        log.append("clicks", 0, value, key=WRONG.encode())
    for n in range(30):
        tick(log, n)
        for client in ("a", "b", "c"):
            show(log, f"q-{client}-{n}", n, client=client)
            value = encode_click(
                client_id=client, object_id="A", time_us=START_US + n * SECOND, event_id=f"{n}"
            )
            log.append("clicks", 0, value, key=client.encode())
    bench = Bench(log)
    list(bench.live())
    assert bench.count("event_clock_corrected_total", topic="clicks", direction="ahead") == 300
    pending = [event[0] for event in bench.pipeline._assembler.join._pending]
    assert max(pending) < START_US + YEAR_US


def test_one_client_is_learned_from_when_all_is_quiet_and_the_wall_clock_agrees() -> None:
    log, clock = empty_log(), ManualClock(START_US / SECOND)
    show(log, "q", 0)
    bench = Bench(log, clock=clock, batch=BatchConfig(size=1))
    batches = bench.pipeline.batches()
    for _ in range(30):
        assert next(batches) is Signal.IDLE
        clock.advance(1)
    show(log, "future", 3600)
    show(log, "later", 30)
    batches_seen = []
    for _ in range(60):
        batches_seen.append(next(batches))
        clock.advance(1)
    found = [batch for batch in batches_seen if isinstance(batch, Batch)]
    assert {s.list_id for batch in found for s in batch.samples} == {"q"}
    assert [poll.wall_us > 0 for poll in found[0].polls][-1]


def test_an_item_update_from_the_future_waits_no_longer_than_the_attribution_window() -> None:
    log = empty_log(items=True)
    describe(log, "A", "first", 0)
    show(log, "q", 0)
    for topic in ("exposures", "clicks", "purchases"):
        tick(log, 100, topic)
    bench = Bench(log, topics=Topics(), batch=BatchConfig(size=1))
    samples = [sample for batch in bench.live() for sample in batch.samples]
    describe(log, "A", "second", 9 * YEAR_US / SECOND)
    waits = WINDOWS.attribution_window_us / SECOND
    show(log, "r", 100 + waits + 1)
    samples += bench.run()
    texts = {s.list_id: s.text for s in samples if s.item_id == "A"}
    assert texts == {"q": "first", "r": "second"}


# --- few clients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error_seconds", [-3600, -315_360_000, 3600])
def test_a_wrong_clock_beside_one_right_one_holds_nobody_back_while_the_shop_runs(
    error_seconds: int,
) -> None:
    def samples(error: int) -> int:
        log, clock = empty_log(), ManualClock(START_US / SECOND)
        bench = Bench(log, clock=clock, batch=BatchConfig(size=1))
        batches, found = bench.pipeline.batches(), 0
        for second in range(0, 300, 5):
            clock.seconds = START_US / SECOND + second
            for n in range(20):
                show(log, f"q{n}-{second}", second, client=f"c{n}")
            click(log, f"q1-{second}", "A", second, client=f"c{second % 20}")
            if second % 30 == 0:  # purchases have these two clients only
                buy(log, None, "A", second, client="c1")
                buy(log, None, "A", second + error, client="wrong")
            for batch in islice(batches, 600):
                if not isinstance(batch, Batch):
                    break
                found += len(batch.samples)
        return found

    assert samples(error_seconds) == samples(0) > 1000


def test_events_of_others_that_are_late_say_nothing_about_the_present() -> None:
    clock = PartitionClock(10 * SECOND, 0.0)
    for n in range(20):
        clock.observe(f"c{n}", (1000 + n) * SECOND, 0.0)
    stream_us = clock.stream_us
    for n in range(100):
        clock.observe(f"late{n}", 800 * SECOND, 0.0)
    assert clock.stream_us == stream_us
    assert not clock.is_ahead(1025 * SECOND)


def test_a_burst_of_a_fast_clock_is_corrected_although_there_are_few_others() -> None:
    clock = PartitionClock(10 * SECOND, 0.0)
    corrected = 0
    for n in range(3000):
        clock.observe("fast", 10**16 + n, 0.0)
        clock.doubt("fast", 10**16 + n, n)
        clock.observe(f"c{n % 2}", n * SECOND, 0.0)
        corrected += len(clock.contradicted())
    assert corrected >= 3000 - 200
    assert len(clock.doubted) <= 200
