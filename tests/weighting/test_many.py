"""Methods that take many samples at once, against those that take one after another."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.weighting.streams import DAY, SECOND, sample
from weighting.caps import Caps, CapsConfig
from weighting.delay_correction import delay_correction, delay_corrections
from weighting.estimators.calibration import Calibration, CalibrationConfig
from weighting.estimators.coefficient_table import OWN, CoefficientTable
from weighting.estimators.delayed_positives import DelayedPositiveRate
from weighting.estimators.drift import DriftConfig, DriftDetector, DriftWatch
from weighting.estimators.fading_table import FadingTable
from weighting.estimators.joint_logistic import JointLogistic
from weighting.estimators.logistic import DiagonalLogistic
from weighting.estimators.prior import Prior, PriorConfig
from weighting.estimators.propensity import Propensity, PropensityConfig, places
from weighting.features import FieldConfig, Fields
from weighting.field_columns import Columns, FieldColumns
from weighting.joint_caps import JointCaps
from weighting.sample import Attribute, Sample
from weighting.tasks import CLICK, TASKS

Array = NDArray[np.float64]
seeds = st.integers(0, 10_000)
few = settings(max_examples=40, deadline=None)
values = st.one_of(
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.0, 1.0, -0.0, 2.5, 2**60, float(2**60), 10**400, float("nan"), "1", "x"]),
    st.lists(st.sampled_from("abc"), max_size=4),
)
attributes = st.dictionaries(st.sampled_from(["category", "brand", "n", "flag"]), values)


def draws(seed: int, n: int = 30) -> tuple[NDArray[np.int64], Array, Array]:
    """Times in no order, labels, and weights, of which some are 0."""
    rng = np.random.default_rng(seed)
    time_us = rng.integers(0, 3 * DAY, n)
    weight = rng.uniform(0.1, 2, n) * (rng.random(n) < 0.9)
    return time_us, (rng.random(n) < 0.4).astype(np.float64), weight


def same(one: object, other: object) -> None:
    """Two snapshots: equal but for rounding."""
    if isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif one is None:
        assert other is None
    else:
        np.testing.assert_allclose(np.array(one), np.array(other), rtol=1e-9, atol=1e-12)


@few
@given(seeds)
def test_counts_of_many_are_those_of_one_after_another(seed: int) -> None:
    time_us, label, weight = draws(seed)
    place = np.random.default_rng(seed).integers(-2, 60, len(label)).tolist()
    place[3] = None
    priors, rates, positions = (
        (Prior(PriorConfig()), Prior(PriorConfig())),
        (DelayedPositiveRate(PriorConfig()), DelayedPositiveRate(PriorConfig())),
        (Propensity(PropensityConfig()), Propensity(PropensityConfig())),
    )
    for half in (slice(0, 10), slice(10, None)):
        t, y, w, k = time_us[half], label[half], weight[half], place[half]
        priors[0].update_many(t, w * y, w * (1 - y))
        rates[0].update_many(t, np.sign(w * y), w > 0.5)
        positions[0].update_many(t, places(k), y, w, w / 3)
        for at, one, own, where in zip(t.tolist(), y.tolist(), w.tolist(), k, strict=True):
            priors[1].update(at, own * one, own * (1 - one))
            rates[1].update(at, float(own * one > 0), own > 0.5)
            positions[1].update(at, where, one, own, own / 3)
        theta = positions[0].get_many(places(k)).tolist()
        assert theta == pytest.approx([positions[1].get(where) for where in k])
    for many, one_by_one in (priors, rates, positions):
        same(many.snapshot(), one_by_one.snapshot())


@few
@given(seeds)
def test_delay_corrections_of_many_are_those_of_each(seed: int) -> None:
    _, label, p = draws(seed)
    p = 0.01 + 0.4 * p
    each = [delay_correction(y, own, 0.3) for y, own in zip(label, p, strict=True)]
    assert delay_corrections(label, p, np.full(len(p), 0.3)).tolist() == each


@few
@given(seeds, st.integers(1, 9))
def test_changes_are_found_where_one_value_after_another_finds_them(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    level = np.repeat([1.0, 3.0, 0.5], 300)
    value, mass = (
        level + rng.normal(0, 0.1, 900),
        rng.uniform(0.1, 1, 900) * (rng.random(900) < 0.9),
    )
    times = np.arange(900)
    config = DriftConfig(block_samples=3, threshold=5.0)
    many, single = DriftDetector(config), DriftDetector(config)
    found = []
    for start in range(0, 900, size):
        own = slice(start, start + size)
        found += many.update_many(times[own], value[own], mass[own])
    each = [(int(t), single.update(v, m)) for t, v, m in zip(times, value, mass, strict=True)]
    expected = [(t, *levels) for t, levels in each if levels]
    assert len(expected) >= 2
    assert [f[0] for f in found] == [e[0] for e in expected]
    np.testing.assert_allclose(found, expected)


def test_a_watch_at_once_says_what_one_value_after_another_says() -> None:
    rng = np.random.default_rng(0)
    config = DriftConfig(block_samples=3, threshold=5.0)
    many, single = DriftWatch(config, at_once=True), DriftWatch(config)
    for start in range(0, 900, 60):
        label = (rng.random(60) < (0.1 if start < 450 else 0.9)).astype(np.float64)
        correction = (rng.random(60) < 0.8).astype(np.float64)
        columns = label, np.full(60, 0.3), rng.uniform(0.5, 1.5, 60), correction
        one = many.update(range(start, start + 60), *columns)
        other = single.update(range(start, start + 60), *columns)
        assert [(d.series, d.time_us) for d in one] == [(d.series, d.time_us) for d in other]
    assert many.num_changes() == single.num_changes()
    assert many.num_changes()["label"] > 0


@few
@given(seeds)
def test_calibration_moves_to_one_mode_whatever_the_order_and_as_for_one_sample(seed: int) -> None:
    time_us, label, weight = draws(seed)
    logit = np.random.default_rng(seed).normal(-1, 2, len(label))
    many, shuffled, single, twin = (Calibration(CalibrationConfig()) for _ in range(4))
    order = np.random.default_rng(seed + 1).permutation(len(label))
    many.learn_many(time_us, logit, label, weight)
    shuffled.learn_many(time_us[order], logit[order], label[order], weight[order])
    same(many.snapshot(), shuffled.snapshot())
    single.learn_one(0, float(logit[0]), float(label[0]), 1.0)
    twin.learn_many(np.zeros(1, dtype=np.int64), logit[:1], label[:1], np.ones(1))
    np.testing.assert_allclose(single.get(), twin.get(), rtol=1e-3, atol=1e-4)


@few
@given(seeds, st.integers(2, 6))
def test_rows_of_many_keys_are_those_of_each(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    table = CoefficientTable(bits, num_own=5, extra=("more",))
    hashed = rng.integers(0, 1 << 32, 3 << bits).tolist()
    for time_us, key in enumerate(hashed[: 2 << bits]):
        if table.rows([key])[0] == table.unknown:
            table.take(key, time_us)
    asked = [*hashed, *range(OWN, OWN + 5)]
    assert table.rows_many(np.array(asked, dtype=np.uint64)).tolist() == table.rows(asked)
    new = np.unique([key for key in hashed if table.rows([key])[0] == table.unknown][:7])
    in_use = np.array(table.rows(hashed[:3]))
    kept = [key for key in hashed[:3] if table.rows([key])[0] != table.unknown]
    taken = table.take_many(new.astype(np.uint64), 10_000, in_use)
    known = taken != table.unknown
    assert table.rows(new.tolist()) == taken.tolist()
    assert len(set(taken[known])) == known.sum()
    assert table.unknown not in table.rows(kept)
    row, which = table.different(in_use)
    assert sorted(row.tolist()) == sorted(set(in_use.tolist()))
    assert row[which].tolist() == in_use.tolist()
    assert (table.mean[table.unknown], table.variance[table.unknown]) == (0.0, 1.0)


@few
@given(seeds)
def test_masses_of_many_keys_are_those_of_each(seed: int) -> None:
    rng = np.random.default_rng(seed)
    many, single = (FadingTable(hash_bits=12, half_life_seconds=60.0) for _ in range(2))
    keys = rng.integers(0, 1 << 64, 20, dtype=np.uint64)
    for time_us in (0, 30 * SECOND, 20 * SECOND):
        own = rng.choice(keys, 15)
        masses = rng.uniform(0.1, 1, 15)
        many.add_many(own, masses, time_us)
        for key, mass in zip(own.tolist(), masses.tolist(), strict=True):
            single.add(key, mass, time_us)
        asked, times = rng.choice(keys, 30), rng.integers(0, 90 * SECOND, 30)
        each = [single.get(k, t) for k, t in zip(asked.tolist(), times.tolist(), strict=True)]
        np.testing.assert_allclose(many.get_many(asked, times), each, rtol=1e-12)


def test_the_least_masses_make_room_for_new_keys_of_one_set() -> None:
    table = FadingTable(hash_bits=2, half_life_seconds=60.0)
    old = (np.arange(1, 5, dtype=np.uint64) << np.uint64(32)) + np.uint64(7)
    table.add_many(old, np.array([4.0, 1.0, 3.0, 2.0]), 0)
    new = (np.arange(5, 7, dtype=np.uint64) << np.uint64(32)) + np.uint64(7)
    table.add_many(new, np.array([9.0, 8.0]), 0)
    now = np.zeros(6, dtype=np.int64)
    assert table.get_many(np.concatenate([old, new]), now).tolist() == [4, 0, 3, 0, 9, 8]


@few
@given(st.lists(st.tuples(attributes, st.booleans()), min_size=1, max_size=12))
def test_columns_are_the_fields_of_each_sample_whatever_was_seen_before(
    drawn: list[tuple[dict[str, Attribute], bool]],
) -> None:
    samples = [
        sample(
            query=f"red shoe {i % 3}",
            item_id="" if named else "SKU-1",
            text=f"Red lamp {i % 2}",
            attributes=own,
        )
        for i, (own, named) in enumerate(drawn)
    ]
    fields = Fields(FieldConfig(query=0.4))
    again = FieldColumns(fields)
    again.of(samples[::-1])
    once, x = FieldColumns(fields).of(samples), again.of(samples)
    for a, b in zip(once, x, strict=True):
        assert a.tobytes() == b.tobytes()
    for i, s in enumerate(samples):
        expected, pair = fields.fields_and_pair(s.query, s.item_id, s.text, s.attributes)
        own = x.sample == i
        found = dict(zip(x.keys[own].tolist(), x.values[own].tolist(), strict=True))
        assert found == expected
        assert (int(x.keys[x.query[i]]), int(x.keys[x.pair[i]])) == pair


def columns(fields: list[dict[int, float]]) -> Columns:
    """Columns of hand-made fields; the first stands for the query, the last for the pair."""
    ends = np.cumsum([len(own) for own in fields])
    return Columns(
        keys=np.array([key for own in fields for key in own], dtype=np.uint64),
        values=np.array([value for own in fields for value in own.values()]),
        sample=np.repeat(np.arange(len(fields)), [len(own) for own in fields]),
        query=ends - [len(own) for own in fields],
        pair=ends - 1,
    )


def learn(
    model: JointLogistic, fields: list[dict[int, float]], y: Array, w: Array, t: Array, at: int
) -> None:
    x, times = columns(fields), np.full(len(y), at)
    model.learn_many(x, model.rows_many(x), y, w, t, times)


def joint() -> JointLogistic:
    return JointLogistic(8, 3, offset=-1.0, half_life_seconds=86_400.0)


def drawn_fields(rng: np.random.Generator, n: int) -> list[dict[int, float]]:
    return [
        {OWN: 0.5, int(rng.integers(5)): 1.0, 10 + int(rng.integers(8)): float(rng.normal())}
        for _ in range(n)
    ]


@few
@given(seeds, st.floats(1e-3, 2), st.floats(0.05, 1))
def test_of_one_sample_both_logistic_regressions_learn_the_same(
    seed: int, weight: float, theta: float
) -> None:
    rng = np.random.default_rng(seed)
    many, single = joint(), DiagonalLogistic(8, 3, offset=-1.0, half_life_seconds=86_400.0)
    for i, x in enumerate(drawn_fields(rng, 12)):
        y = bool(rng.random() < 0.4)
        learn(many, [x], np.array([float(y)]), np.array([weight]), np.array([theta]), i * DAY)
        single.learn_one(x, y, weight, theta, i * DAY)
        m, s = many.belief_one(x)
        assert many.known(OWN, *x) == pytest.approx(single.known(OWN, *x), abs=5e-3)
        expected_m, expected_s = single.belief_one(x)
        assert m == pytest.approx(expected_m, rel=0.02, abs=0.02)
        assert s == pytest.approx(expected_s, rel=0.02)
        one = columns([x])
        rows = many.rows_many(one)
        assert many.logit_many(one, rows)[0] == pytest.approx(many.logit_one(x))
        assert many.known_many(one, rows)[0] == pytest.approx(many.known(*list(x)[::2]))


@few
@given(seeds)
def test_order_does_not_count_and_a_sample_that_is_there_twice_counts_twice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 20
    x, y = drawn_fields(rng, n), (rng.random(n) < 0.4).astype(np.float64)
    w, t = rng.uniform(0.2, 2, n), rng.uniform(0.1, 1, n)
    one, shuffled, twice, double = (joint() for _ in range(4))
    order = rng.permutation(n)
    learn(one, x, y, w, t, 0)
    learn(shuffled, [x[i] for i in order], y[order], w[order], t[order], 0)
    learn(twice, x + x, np.tile(y, 2), np.tile(w, 2), np.tile(t, 2), 0)
    learn(double, x, y, 2 * w, t, 0)
    for own in x:
        m, s = one.belief_one(own)
        assert shuffled.belief_one(own) == pytest.approx((m, s), rel=1e-9)
        both, spread = twice.belief_one(own)
        expected, most = double.belief_one(own)
        assert both == pytest.approx(expected, rel=0.01, abs=0.005)
        assert spread < 1.01 * most
    assert any(abs(twice.logit_one(own) - one.logit_one(own)) > 0.01 for own in x)


@few
@given(seeds)
def test_samples_of_weight_zero_among_others_change_nothing(seed: int) -> None:
    """Neither rows, nor how fast what they share fades."""
    rng = np.random.default_rng(seed)
    one, other = joint(), joint()
    for day in range(4):
        x = drawn_fields(rng, 8)
        y, t = (rng.random(8) < 0.4).astype(np.float64), rng.uniform(0.1, 1, 8)
        idle = [{OWN + 1: 1.0, 900 + day: 1.0}, *x[:2]]
        learn(one, x, y, np.ones(8), t, day * DAY)
        columns_of, weight = columns([*x, *idle]), np.repeat([1.0, 0.0], [8, 3])
        times = np.repeat([day * DAY, 9 * DAY], [8, 3])
        label, examined = np.append(y, [1.0] * 3), np.append(t, [1.0] * 3)
        rows = other.rows_many(columns_of)
        other.learn_many(columns_of, rows, label, weight, examined, times)
    assert other.snapshot() == one.snapshot()


@few
@given(seeds, st.sampled_from([1e-9, 1.0, 1e6, 1e12]))
def test_no_weight_makes_it_diverge(seed: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    model = joint()
    for i in range(5):
        n = 30
        y, t = (rng.random(n) < 0.5).astype(np.float64), rng.choice([1e-6, 0.5, 1.0], n)
        learn(model, drawn_fields(rng, n), y, np.full(n, weight), t, i)
        variance = np.array(model._table.variance)
        assert ((variance > 0) & (variance <= 1)).all()
        found = [model.logit_one(x) for x in drawn_fields(rng, 10)]
        assert np.isfinite(found).all()


def test_a_batch_with_more_keys_than_rows_leaves_the_others_unknown() -> None:
    model = JointLogistic(2, 1, offset=-1.0)
    x = [{OWN: 0.5, key: 1.0} for key in range(0, 40, 4)]
    learn(model, x, np.ones(10), np.ones(10), np.ones(10), 0)
    assert model.logit_one({1: 1.0}) == -1.0  # of what has no row nothing was learned
    assert sum(model.known(key) > 0 for key in range(0, 40, 4)) == 4
    assert model._table.mean[model._table.unknown] == 0.0


def shown(number: int, rng: np.random.Generator, at: int) -> list[Sample]:
    """A list of one client, now and then a late copy."""
    late = bool(rng.random() < 0.2)
    client, size = int(rng.integers(0, 4)), 1 if late else int(rng.integers(1, 5))
    return [
        msgspec.structs.replace(
            sample(int(late), late=late, item_id=f"SKU-{rng.integers(6)}", at=at, client=client),
            list_id=f"list {number}",
            list_size=size,
        )
        for _ in range(size)
    ]


@few
@given(seeds)
def test_caps_of_a_batch_at_one_time_are_those_of_its_lists_in_turn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = CapsConfig(client_item=1.7, client=3.5, item=0.001, long_list=3, hash_bits=12)
    many, single = (kind(TASKS[CLICK], config) for kind in (JointCaps, Caps))
    for batch in range(3):
        lists = [shown(10 * batch + i, rng, batch * DAY) for i in range(10)]
        samples = [s for own in lists for s in own]
        np.testing.assert_allclose(many.learn(samples), single.learn(samples), rtol=1e-9)
    one, other = (np.sort(np.frombuffer(own.snapshot()["mass"])) for own in (many, single))
    np.testing.assert_allclose(one, other)


def test_a_client_that_fills_a_batch_alone_counts_no_more_than_its_bound() -> None:
    config = CapsConfig(client_item=3.0, client=0.0, item=1.0, hash_bits=8)
    clicks = [
        msgspec.structs.replace(sample(1, client=9, at=i * SECOND), list_id=f"list {i}")
        for i in range(200)
    ]
    for size in (200, 50):
        caps = JointCaps(TASKS[CLICK], config)
        parts = [caps.learn(clicks[i : i + size]) for i in range(0, 200, size)]
        assert np.concatenate(parts)[:, 0].sum() == pytest.approx(3.0, abs=0.01)


def test_an_empty_batch_has_no_factors() -> None:
    assert JointCaps(TASKS[CLICK], CapsConfig(hash_bits=8)).learn([]).shape == (0, 5)
