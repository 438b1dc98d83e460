"""An invented log of exposures, clicks and purchases.

It has disorder, slow clocks, returns, late events, duplicates, and records that cannot be read.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from random import Random

from consumers.events import Candidate, encode_click, encode_exposure, encode_purchase
from consumers.joining.join import JoinConfig
from tests.fakes.log import Log

SECOND = 1_000_000
START_US = 1_700_000_000 * SECOND
TOPICS = ("clicks", "exposures", "purchases")
MALFORMED = (
    b"{",
    b'{"a":1}',
    b"\xff\xfe",
    None,
    b"\x00\x00\x00\x00\x01avro",
    b'{"x":' + b"[" * 100_000,
    b"",
)

#: Windows that a log of a few hundred seconds can fill.
WINDOWS = JoinConfig(
    click_window_us=20 * SECOND,
    observation_window_us=60 * SECOND,
    attribution_window_us=600 * SECOND,
    grace_us=5 * SECOND,
    idle_timeout_us=30 * SECOND,
)

Write = tuple[float, str, str, bytes | None]  # place in the log, topic, client, value


def writes(
    random: Random, num_events: int, *, seconds_between: float = 1.0, candidates: int = 4
) -> Iterator[Write]:
    """Yield about `num_events` records; their order of appending is that of the first field."""
    num, time_us = 0, START_US
    while num < num_events:
        time_us += int(random.expovariate(1 / seconds_between) * SECOND)
        client, query_id = (
            f"c-{random.randrange(40 + num_events // 50)}",
            f"q-{random.getrandbits(64):016x}",
        )
        hits = random.sample([f"SKU-{n:03d}" for n in range(60)], candidates)
        inline = [Candidate(hit, f"text of {hit}") for hit in hits if random.random() < 0.9]
        happened = [
            (
                time_us,
                "exposures",
                encode_exposure(
                    query_id=query_id,
                    client_id=client,
                    time_us=time_us,
                    user_query="shoes",
                    hits=hits,
                    candidates=inline,
                    scenario=("search", "recommendation", None)[int(query_id[-1], 16) % 3],
                ),
            )
        ]
        for hit in hits:
            if random.random() < 0.3:
                click_us = time_us + int(random.expovariate(1 / 15) * SECOND)
                known = query_id if random.random() < 0.8 else None
                event_id = f"e-{random.getrandbits(64):016x}" if random.random() < 0.9 else None
                click = encode_click(
                    query_id=known,
                    client_id=client,
                    object_id=hit,
                    time_us=_stamped(random, click_us),
                    event_id=event_id,
                )
                happened.append((click_us, "clicks", click))
                if random.random() < 0.4:
                    bought_us = click_us + int(random.expovariate(1 / 150) * SECOND)
                    known = query_id if random.random() < 0.8 else None
                    event_id = f"e-{random.getrandbits(64):016x}"
                    number = int(event_id[-3:], 16)
                    purchase = encode_purchase(
                        query_id=known,
                        client_id=client,
                        object_id=hit,
                        time_us=_stamped(random, bought_us),
                        event_id=event_id,
                        price=None if number % 5 == 0 else number / 16,
                        quantity=None if number % 2 else 1 + number % 3,
                    )
                    happened.append((bought_us, "purchases", purchase))
                    if random.random() < 0.25:
                        returned_us = bought_us + int(random.expovariate(1 / 60) * SECOND)
                        value = encode_purchase(
                            query_id=known,
                            client_id=client,
                            object_id=hit,
                            time_us=_stamped(random, returned_us),
                            event_id=event_id,
                            quantity=-1,
                        )
                        happened.append((returned_us, "purchases", value))
        for at_us, topic, value in happened:
            num += 1
            place = at_us + random.uniform(0, 3 * SECOND)
            if random.random() < 0.02:
                place += random.uniform(10, 60) * SECOND
            yield place, topic, client, value
            if (random.random() < 0.1 and b"event_id" in value) or (
                topic == "exposures" and random.random() < 0.1
            ):
                yield place + random.uniform(0, 10 * SECOND), topic, client, value
            if random.random() < 0.01:
                yield place, topic, client, random.choice(MALFORMED)


def _stamped(random: Random, time_us: int) -> int:
    """The time of a clock that is slow now and then, within the grace and beyond."""
    slow = random.random() < 0.15
    return time_us - int(random.uniform(0, 12) * SECOND) if slow else time_us


def partition_of(client: str, num_partitions: int) -> int:
    return zlib.crc32(client.encode()) % num_partitions


def shop(
    seed: int, num_events: int, *, num_partitions: int = 2, seconds_between: float = 1.0
) -> Log:
    """A log that a shop has written."""
    log = Log([(topic, p) for topic in TOPICS for p in range(num_partitions)])
    written = sorted(
        writes(Random(seed), num_events, seconds_between=seconds_between), key=lambda w: w[0]
    )
    for place, topic, client, value in written:
        log.append(
            topic,
            partition_of(client, num_partitions),
            value,
            key=client.encode(),
            timestamp_us=int(place) + SECOND,
        )
    return log
