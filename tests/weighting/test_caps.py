"""Caps: what repetition, one-item lists and long lists count for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weighting.streams import DAY, SECOND, sample
from weighting.caps import CAPS, Caps, CapsConfig
from weighting.config import WeigherConfig
from weighting.estimators.fading_table import FadingTable
from weighting.sample import Sample, client_hash
from weighting.tasks import CLICK, PURCHASE, TASKS
from weighting.weigher import Weigher
from weighting.weighted import COLUMNS

SMALL = 10


def caps(**changes: float) -> Caps:
    return Caps(TASKS[CLICK], CapsConfig(**{"hash_bits": SMALL, **changes}))  # type: ignore[arg-type]


def shown(
    number: int, items: Sequence[str], *, client: str = "c-1", at: int = 0, label: int = 0
) -> list[Sample]:
    """Samples of one list."""
    return [
        msgspec.structs.replace(
            sample(label, item_id=item, position=place, at=at, client=client_hash(client)),
            sample_id=f"{number}/{place}",
            list_id=f"list {number}",
            list_size=len(items),
        )
        for place, item in enumerate(items, 1)
    ]


def factor(own: Caps, name: str, samples: Sequence[Sample]) -> list[float]:
    found: list[float] = own.learn(samples)[:, CAPS.index(name)].tolist()
    return found


lists_of_a_shop = st.lists(
    st.tuples(
        st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4),
        st.sampled_from(["c-1", "c-2", ""]),
        st.integers(0, 40 * DAY),
    ),
    min_size=1,
    max_size=30,
)


def stream(rows: list[tuple[list[str], str, int]]) -> list[list[Sample]]:
    """Lists in event order."""
    times = sorted(at for _, _, at in rows)
    return [
        shown(number, items, client=client, at=at)
        for number, ((items, client, _), at) in enumerate(zip(rows, times, strict=True))
    ]


def test_showings_of_an_item_to_one_client_count_up_to_the_cap() -> None:
    own = caps(client_item=2.5)
    repeated = [factor(own, "client_item", shown(n, ["target"]))[0] for n in range(5)]
    assert repeated == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert factor(own, "client_item", shown(5, ["other", "target"])) == [1.0, 0.0]
    assert factor(own, "client_item", shown(6, ["target"], client="c-2")) == [1.0]


def test_what_a_client_has_used_is_half_free_after_a_half_life() -> None:
    own = caps(client_item=2.0, half_life_seconds=DAY / SECOND)
    for n in range(9):
        own.learn(shown(n, ["target"]))
    later = factor(own, "client_item", shown(9, ["target"], at=DAY))
    assert later == pytest.approx([1.0])
    again = factor(own, "client_item", shown(10, ["target"], at=DAY))
    assert again == pytest.approx([0.0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 3), min_size=1, max_size=60), st.floats(0.5, 5))
def test_no_client_ever_has_more_than_the_cap_in_fading_counts(
    gaps: list[float], most: float
) -> None:
    own = caps(client_item=most, half_life_seconds=DAY / SECOND)
    mass, at = 0.0, 0
    for number, gap in enumerate(gaps):
        at += int(gap * DAY)
        (found,) = factor(own, "client_item", shown(number, ["target"], at=at))
        mass = mass * 2.0**-gap + found
        assert 0 <= found <= 1
        assert mass <= most + 1e-6


def test_a_list_counts_once_for_its_client_and_all_its_samples_alike() -> None:
    own = caps(client=1.5, client_item=0)
    lists = [factor(own, "client", shown(n, [f"{n}a", f"{n}b", f"{n}c"])) for n in range(3)]
    assert lists == [[1.0] * 3, [0.5] * 3, [0.0] * 3]
    assert factor(own, "client", shown(3, ["x"], client="c-2")) == [1.0]


def test_a_client_that_is_not_known_is_not_capped() -> None:
    own = caps(client=1.0, client_item=1.0)
    for n in range(3):
        found = own.learn(shown(n, ["target"], client=""))
        assert found[0, [CAPS.index("client"), CAPS.index("client_item")]].tolist() == [1.0, 1.0]


def test_one_item_is_about_its_share_of_what_is_learned_at_most() -> None:
    own, counted, total = caps(item=0.2, client_item=0), 0.0, 0.0
    for n in range(4000):
        hot, other = factor(own, "item", shown(n, ["hot", f"other {n % 50}"], client=f"c-{n}"))
        if n >= 2000:
            counted += hot
            total += hot + other
    # d = s (T + 1000) / m with m = T / 2, T from 4000 to 8000; in full it would be 1 / 2 of all
    assert counted / 2000 == pytest.approx(0.4 * (1 + math.log(2) / 4), rel=0.01)
    assert counted / total < 0.33


def test_a_long_list_counts_like_one_of_the_longest_length_that_counts_in_full() -> None:
    own = caps(long_list=4)
    assert factor(own, "long_list", shown(0, ["a", "b", "c", "d"])) == [1.0] * 4
    assert sum(factor(own, "long_list", shown(1, [str(i) for i in range(16)]))) == 4.0


def test_only_a_click_of_a_list_of_one_has_no_competitor() -> None:
    own = caps(one_item_list=0.25)
    assert factor(own, "one_item_list", shown(0, ["a"])) == [0.25]
    assert factor(own, "one_item_list", shown(1, ["a", "b"])) == [1.0, 1.0]
    purchases = Caps(TASKS[PURCHASE], CapsConfig(hash_bits=SMALL, one_item_list=0.25))
    bought = [msgspec.structs.replace(s, task=PURCHASE) for s in shown(2, ["a"])]
    assert factor(purchases, "one_item_list", bought) == [1.0]


def test_late_positives_have_a_bucket_of_their_own() -> None:
    own = caps(client_item=1.0)
    (first,) = shown(0, ["target"])
    late = msgspec.structs.replace(sample(1, item_id="target", late=True), client=first.client)
    assert factor(own, "client_item", [first, late, late]) == [1.0, 1.0, 0.0]


@settings(max_examples=30, deadline=None)
@given(lists_of_a_shop, st.integers(1, 5))
def test_discounts_are_the_same_bits_under_every_division_into_batches(
    rows: list[tuple[list[str], str, int]], size: int
) -> None:
    lists = stream(rows)
    one, other = (
        caps(client_item=1.5, client=3, item=0.01),
        caps(client_item=1.5, client=3, item=0.01),
    )
    whole = one.learn([s for own in lists for s in own])
    parts = [
        other.learn([s for own in lists[i : i + size] for s in own])
        for i in range(0, len(lists), size)
    ]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    assert msgspec.msgpack.encode(other.snapshot()) == msgspec.msgpack.encode(one.snapshot())
    assert ((whole >= 0) & (whole <= 1)).all()


@settings(max_examples=30, deadline=None)
@given(lists_of_a_shop, st.integers(0, 30))
def test_a_restored_one_goes_on_with_the_same_bits(
    rows: list[tuple[list[str], str, int]], cut: int
) -> None:
    lists = stream(rows)
    one, other = caps(client_item=1.5, client=3), caps(client_item=1.5, client=3)
    one.learn([s for own in lists[:cut] for s in own])
    other.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(one.snapshot())))
    rest = [s for own in lists[cut:] for s in own]
    assert one.learn(rest).tobytes() == other.learn(rest).tobytes()


@settings(max_examples=30, deadline=None)
@given(lists_of_a_shop, st.integers(0, 2**32))
def test_a_discount_does_not_depend_on_any_label(
    rows: list[tuple[list[str], str, int]], labels: int
) -> None:
    samples = [s for own in stream(rows) for s in own]
    flipped = [
        msgspec.structs.replace(s, label=labels >> i % 32 & 1) for i, s in enumerate(samples)
    ]
    one, other = caps(client_item=1.5, client=3), caps(client_item=1.5, client=3)
    assert one.learn(samples).tobytes() == other.learn(flipped).tobytes()


def test_the_order_within_a_list_of_distinct_items_does_not_count() -> None:
    items = [str(i) for i in range(6)]
    one, other = caps(client_item=1.5), caps(client_item=1.5)
    for n in range(3):
        there = dict(zip(items, one.learn(shown(n, items)).tolist(), strict=True))
        back = dict(zip(items[::-1], other.learn(shown(n, items[::-1])).tolist(), strict=True))
        assert there == back


def test_a_rate_keeps_its_expectation_where_one_client_sees_an_item_again_and_again() -> None:
    """Weights are known before the label, so clicks and showings shrink alike."""
    draw, own = np.random.default_rng(0), caps(client_item=3.0, half_life_seconds=DAY / SECOND)
    clicks = showings = 0.0
    for n in range(20_000):
        client = f"c-{min(int(draw.pareto(0.5)), 500)}"
        d = own.learn(shown(n, ["item"], client=client, at=n * 60 * SECOND))[0]
        d = d[CAPS.index("client_item")]
        clicks += d * float(draw.random() < 0.3)
        showings += d
    assert 200 < showings < 10_000
    assert clicks / showings == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / showings))


def test_a_sample_counts_for_its_discount_in_correction_and_weight() -> None:
    config = CapsConfig(hash_bits=SMALL, client_item=1.0)
    once, twice = (Weigher(WeigherConfig(caps=config, exponent=0.0)) for _ in range(2))
    target, others = shown(0, ["target", "b"], label=1), shown(1, ["target", "c"], label=1)
    one = once.weigh(target)
    both = twice.weigh([*target, *others])
    assert both.discount.tolist() == [1.0, 1.0, 0.0, 1.0]
    assert both.correction.tolist() == both.weight.tolist() == [1.0, 1.0, 0.0, 1.0]
    assert both.num_discounted == {**dict.fromkeys(CAPS, 0), "client_item": 1}
    assert one.num_discounted == dict.fromkeys(CAPS, 0)


def test_what_counts_for_nothing_teaches_nothing() -> None:
    config = CapsConfig(hash_bits=SMALL, client_item=1.0, client=0, item=1.0)
    own = Weigher(WeigherConfig(caps=config))
    own.weigh(shown(0, ["target"], label=1))
    before = own.snapshot()
    own.weigh(shown(1, ["target"], label=1))
    assert own.snapshot() == before


def test_without_caps_every_sample_counts_in_full() -> None:
    off = CapsConfig(client_item=0, client=0, item=1.0, long_list=0, one_item_list=1.0)
    own = Weigher(WeigherConfig(caps=off))
    batch = own.weigh([s for n in range(50) for s in shown(n, ["target"])])
    assert set(batch.discount.tolist()) == {1.0}
    assert "discount" in COLUMNS


def test_a_mass_that_grew_by_repetition_outlasts_keys_that_come_once() -> None:
    table = FadingTable(hash_bits=4, half_life_seconds=DAY / SECOND)
    for _ in range(3):
        table.add(client_hash("attacker"), 1.0, 0)
    for i in range(1000):
        table.add(client_hash(f"shopper {i}"), 1.0, i)
    assert table.get(client_hash("attacker"), 1000) == pytest.approx(3.0, rel=1e-6)
    assert len(table.snapshot()["row"]) == 4 * 16


def test_time_never_runs_backwards_in_the_table() -> None:
    table = FadingTable(hash_bits=4, half_life_seconds=1.0)
    table.add(5, 1.0, SECOND)
    table.add(5, 1.0, 0)
    assert table.get(5, 0) == 2.0
    assert table.get(5, 2 * SECOND) == 1.0
