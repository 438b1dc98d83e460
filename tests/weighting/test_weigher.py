"""The path of a batch: what a weigher promises whatever the stream does."""

from __future__ import annotations

import copy
import dataclasses
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logit

from tests.weighting.streams import DAY, SECOND, Doc, events, sample, stream
from weighting.caps import CapsConfig
from weighting.clip import ClipConfig
from weighting.config import WeigherConfig
from weighting.errors import SnapshotError, WeightError
from weighting.estimators.calibration import CalibrationConfig
from weighting.estimators.conditional import ConditionalConfig
from weighting.features import FieldConfig
from weighting.provenance import Position
from weighting.sample import Sample
from weighting.tasks import CLICK, PURCHASE
from weighting.weigher import Weigher
from weighting.weighted import COLUMNS, WeightedBatch

SMALL = ConditionalConfig(fields=FieldConfig(hash_bits=12))


def weigher(**options: object) -> Weigher:
    return Weigher(WeigherConfig(conditional=SMALL, **options))  # type: ignore[arg-type]


def run(weigher: Weigher, samples: list[Sample], size: int = 64) -> list[WeightedBatch]:
    return [weigher.weigh(samples[i : i + size]) for i in range(0, len(samples), size)]


def bits(batches: list[WeightedBatch]) -> list[bytes]:
    return [getattr(batch, name).tobytes() for batch in batches for name in COLUMNS]


def test_every_column_has_one_finite_value_per_sample_in_the_order_given() -> None:
    samples = stream(100)
    batch = weigher().weigh(samples)
    assert batch.samples == tuple(samples)
    for name in COLUMNS:
        column = getattr(batch, name)
        assert column.shape == (100,)
        assert np.isfinite(column).all()
    assert [batch.weight.dtype, batch.a.dtype, batch.b.dtype] == [np.float32] * 3


def test_prediction_is_possible_before_any_learning_and_starts_at_the_prior() -> None:
    fresh = weigher()
    batch = fresh.weigh([sample(1), sample(0, task=PURCHASE)])
    assert batch.p_positive == pytest.approx([0.1, 0.05])
    assert batch.p_y == pytest.approx([0.1, 0.95])
    assert np.isfinite(
        weigher().pair_memory_logits(CLICK, "never seen", [Doc("1"), Doc("", "text only")])
    ).all()


def test_predicting_changes_no_state() -> None:
    trained = weigher()
    run(trained, stream(300))
    before = trained.snapshot()
    first = trained.pair_memory_logits(
        CLICK, "query 1", [Doc("SKU-1"), Doc("new", "a new text", {"new": True})]
    )
    second = trained.pair_memory_logits(
        CLICK, "query 1", [Doc("SKU-1"), Doc("new", "a new text", {"new": True})]
    )
    trained.weigh([])
    assert trained.snapshot() == before
    assert first.tobytes() == second.tobytes()


def test_weighing_leaves_the_samples_as_they_were() -> None:
    samples = stream(50)
    before = copy.deepcopy(samples)
    weigher().weigh(samples)
    assert samples == before


def test_pair_memory_logits_are_what_the_batch_says_of_the_same_documents_as_if_shown_first() -> (
    None
):
    trained = weigher()
    run(trained, stream(600))
    s = sample(0, query="query 1", item_id="SKU-3", position=9)
    served = trained.pair_memory_logits(CLICK, s.query, [Doc(s.item_id, s.text, s.attributes)])
    batch = trained.weigh([s])
    assert batch.pair_memory_logit == pytest.approx(served)
    assert batch.pair_memory_logit[0] != batch.pair_memory_base[0]


def test_of_an_unknown_pair_the_pair_memory_says_its_base_to_the_bit() -> None:
    trained = weigher()
    run(trained, stream(600))
    base = trained.pair_memory_base(CLICK)
    assert trained.pair_memory_logits(CLICK, "never seen", [Doc("1")]).tolist() == [base]
    batch = trained.weigh([sample(0, query="never seen", item_id="1", position=7)])
    assert batch.pair_memory_logit.tolist() == batch.pair_memory_base.tolist() == [base]


def test_an_unknown_position_is_taken_as_examined() -> None:
    trained = weigher()
    run(trained, stream(600))
    batch = trained.weigh([sample(0, position=None), sample(0, position=1), sample(0, position=10)])
    assert batch.p_positive[0] == batch.p_positive[1] > batch.p_positive[2]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 49), st.integers(0, 1000))
def test_flipping_a_label_changes_no_probability_of_its_list(index: int, seed: int) -> None:
    samples = [s for s in stream(100, seed) if s.task == CLICK and s.copy_kind == "first"][:50]
    index %= len(samples)
    flipped = list(samples)
    flipped[index] = msgspec.structs.replace(samples[index], label=1 - samples[index].label)
    one, other = weigher().weigh(samples), weigher().weigh(flipped)
    for name in ("p_positive", "pair_memory_logit", "pair_memory_base"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    others = np.arange(len(samples)) != index
    for name in ("correction", "raw", "p_y", "p_y_given_x"):
        assert getattr(one, name)[others].tobytes() == getattr(other, name)[others].tobytes()
    assert one.p_y_given_x[index] == pytest.approx(1 - other.p_y_given_x[index])


def test_replaying_the_same_batches_gives_the_same_bits() -> None:
    first, second = weigher(), weigher()
    assert bits(run(first, stream(500))) == bits(run(second, stream(500)))
    assert first.snapshot() == second.snapshot()


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 8), st.integers(0, 100))
def test_a_restored_weigher_goes_on_with_the_same_bits(cut: int, seed: int) -> None:
    samples = stream(9 * 32, seed)
    whole = weigher()
    run(whole, samples[: cut * 32], 32)
    resumed = weigher()
    resumed.restore(whole.snapshot())
    assert resumed.snapshot() == whole.snapshot()
    rest = samples[cut * 32 :]
    assert bits(run(whole, rest, 32)) == bits(run(resumed, rest, 32))
    assert resumed.snapshot() == whole.snapshot()


def test_a_snapshot_of_other_settings_or_other_bytes_is_refused_and_changes_nothing() -> None:
    trained = weigher()
    run(trained, stream(100))
    before = trained.snapshot()
    other = Weigher(
        WeigherConfig(conditional=ConditionalConfig(fields=FieldConfig(hash_bits=13)))
    ).snapshot()
    older = msgspec.msgpack.encode({**msgspec.msgpack.decode(before), "format": 0})
    short = msgspec.msgpack.decode(before)
    short["tasks"]["click"]["conditional"]["model"]["table"]["mean"] = b""
    for data in (
        other,
        older,
        b"",
        b"\xc1",
        before[:-10],
        msgspec.msgpack.encode([]),
        msgspec.msgpack.encode(short),
    ):
        with pytest.raises(SnapshotError, match="snapshot"):
            trained.restore(data)
    assert trained.snapshot() == before


def test_new_vanished_and_strange_features_are_survived() -> None:
    strange = [
        sample(1, attributes={}, text="", query="", item_id=""),
        sample(
            0,
            attributes={
                "n": float("nan"),
                "i": float("inf"),
                "j": -float("inf"),
                "big": 10**400,
                "b": True,
                "s": "x" * 100_000,
            },
        ),
        sample(1, query="\ud800 ✨ 手机", text="手机 壳\x00", item_id="\udfff"),
        sample(0, attributes={f"a{i}": i for i in range(1000)}, position=10**9),
        sample(0, position=0),
        sample(1, position=-5),
    ]
    batch = weigher().weigh(strange * 3)
    assert np.isfinite(batch.weight).all()


def test_memory_is_bounded_by_the_hash_space() -> None:
    conditional = ConditionalConfig(fields=FieldConfig(hash_bits=6))
    tiny = Weigher(WeigherConfig(conditional=conditional, caps=CapsConfig(hash_bits=6)))
    run(
        tiny,
        [
            sample(i % 2, item_id=f"item {i}", query=f"query {i}", text=f"text {i}", offset=i)
            for i in range(500)
        ],
    )
    size = len(tiny.snapshot())
    run(
        tiny,
        [
            sample(i % 2, item_id=f"item {i}", query=f"query {i}", text=f"text {i}", offset=i)
            for i in range(500, 1000)
        ],
    )
    assert len(tiny.snapshot()) <= size + 100


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_the_pair_of_a_hard_label_is_its_weight_on_one_side(exponent: float) -> None:
    batch = weigher(exponent=exponent).weigh(stream(80))
    y = np.array([s.label for s in batch.samples])
    assert (batch.a == batch.weight * y).all()
    assert (batch.b == batch.weight * (1 - y)).all()


@given(st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_denoising_moves_the_target_towards_the_estimated_probability(d: float) -> None:
    batch = weigher(denoise=d).weigh(stream(40))
    y = np.array([s.label for s in batch.samples])
    target = (1 - d) * y + d * batch.p_positive
    np.testing.assert_allclose(batch.a, batch.weight * target, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(batch.a + batch.b, batch.weight, rtol=1e-5)


def test_with_exponent_zero_only_the_delay_correction_is_left() -> None:
    trained = weigher(exponent=0.0)
    for batch in run(trained, stream(300)):
        np.testing.assert_allclose(batch.weight, batch.correction, rtol=1e-6)


@pytest.mark.parametrize("cut", [1, 7, 320])
@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_a_stream_gives_the_same_bits_under_every_division_into_batches_of_whole_lists(
    cut: int, exponent: float
) -> None:
    """Of weights, probabilities and state: estimators, calibration, prior and normaliser."""
    emitted = events(320, seed=cut)
    assert {s.copy_kind for own in emitted for s in own} == {"first", "late_positive"}
    whole, divided = weigher(exponent=exponent), weigher(exponent=exponent)
    together = whole.weigh([s for own in emitted for s in own])
    parts = [
        divided.weigh([s for own in emitted[i : i + cut] for s in own])
        for i in range(0, len(emitted), cut)
    ]
    for name in (*COLUMNS, "shown_examination", "shown_discount"):
        column = np.concatenate([getattr(part, name) for part in parts])
        assert column.tobytes() == getattr(together, name).tobytes(), name
    assert divided.snapshot() == whole.snapshot()


def test_a_purchase_has_the_examination_probability_of_the_place_where_its_item_was_shown() -> None:
    """That of the click task after the lists before it, whatever comes after in the batch."""
    clicks = [
        msgspec.structs.replace(sample(int(i % 3 == 0), position=k), list_id=f"list {i}")
        for i in range(40)
        for k in (1, 4)
    ]
    bought = sample(1, task=PURCHASE, position=4)
    before, whole = weigher(), weigher()
    before.weigh(clicks[:40])
    examined = before.weigh([sample(0, position=4)]).examination[0]
    batch = whole.weigh([*clicks[:40], bought, *clicks[40:]])
    assert batch.shown_examination[40] == examined != 0.25
    assert batch.examination[40] == 1
    np.testing.assert_array_equal(batch.shown_examination[:40], batch.examination[:40])
    assert batch.shown_examination[-1] != examined


def test_a_purchase_counts_as_an_outcome_of_its_list_as_the_shown_items_do() -> None:
    def purchase(list_size: int) -> Sample:
        return msgspec.structs.replace(sample(1, task=PURCHASE), list_size=list_size)

    samples = [purchase(size) for size in (10, 0, 1, 400)] + [sample(0, position=1)]
    batch = weigher().weigh(samples)
    assert batch.shown_discount.tolist() == [1.0, 0.0, 0.1, 0.25, 1.0]


def test_samples_without_a_list_are_lists_of_their_own() -> None:
    both = [msgspec.structs.replace(sample(1, position=1, at=0), list_id="") for _ in range(2)]
    together, apart = weigher(), weigher()
    weighted = together.weigh(both)
    assert [float(apart.weigh([s]).weight[0]) for s in both] == weighted.weight.tolist()
    assert apart.snapshot() == together.snapshot()


def test_samples_of_one_list_are_predicted_from_one_state_and_the_next_list_from_the_next() -> None:
    def shown(list_id: str, label: int, item: str = "SKU-1") -> Sample:
        one = sample(label, item_id=item, position=1, at=0)
        return msgspec.structs.replace(one, list_id=list_id)

    batch = weigher().weigh([shown("a", 1), shown("a", 0), shown("b", 0), shown("b", 0)])
    p = batch.p_positive
    assert p[0] == p[1] < p[2] == p[3]
    assert batch.p_y[0] == batch.prior[CLICK]
    assert 1 - batch.p_y[2] > batch.prior[CLICK]


def test_a_click_weighs_the_same_alone_and_among_320() -> None:
    """Normalised within its batch it was 1.0 alone and 3.0 among 320."""
    samples = stream(600)
    place = next(i for i, s in enumerate(samples) if i > 300 and s.task == CLICK and s.label)
    alone, among = weigher(), weigher()
    run(alone, samples[:280], 70)
    run(among, samples[:280], 70)
    one = alone.weigh([samples[place]])
    many = among.weigh([samples[place], *samples[281:600]])
    assert one.weight[0] == many.weight[0]


def test_a_label_that_was_final_when_it_was_first_emitted_has_no_delay_correction() -> None:
    batch = weigher().weigh([sample(0, task=PURCHASE), sample(0, task=PURCHASE, window=7 * DAY)])
    assert batch.correction[0] < 1 == batch.correction[1]


def test_the_ratio_is_p_given_x_over_p_of_a_positive_label_or_one_shown_first() -> None:
    trained = weigher(exponent=1.0, clip=ClipConfig(normalise="raw", low=0, high=1e9, cap=1e9))
    for batch in run(trained, stream(400)):
        first = (batch.label > 0) | (batch.examination == 1)
        ratio = batch.correction * batch.p_y_given_x / batch.p_y
        np.testing.assert_allclose(batch.raw[first], ratio[first])
        assert not first.all()
        np.testing.assert_allclose(batch.weight, batch.raw, rtol=1e-6)


def test_tasks_in_one_batch_do_not_touch_each_other() -> None:
    samples = stream(200)
    together, alone = weigher(), weigher()
    batch = together.weigh(samples)
    clicks = [i for i, s in enumerate(samples) if s.task == CLICK]
    only = alone.weigh([samples[i] for i in clicks])
    for name in COLUMNS:
        assert getattr(batch, name)[clicks].tobytes() == getattr(only, name).tobytes()
    assert set(batch.prior) == set(batch.normalization_ratio) == {CLICK, PURCHASE}
    assert set(only.prior) == {CLICK}


@pytest.mark.parametrize(("label", "late"), [(2, False), (-1, False), (0, True)])
def test_a_label_that_is_none_is_refused_with_its_position_and_nothing_is_learned(
    label: int, late: bool
) -> None:
    fresh = weigher()
    before = fresh.snapshot()
    bad = sample(label, task=PURCHASE, late=late, offset=171_004)
    with pytest.raises(WeightError, match=r"clicks\[3\]@171004: label: got") as caught:
        fresh.weigh([sample(0), sample(1), bad])
    assert caught.value.where == Position("clicks", 3, 171_004)
    assert caught.value.value == label
    assert fresh.snapshot() == before


@pytest.mark.parametrize(
    "options",
    [
        {"denoise": -0.1},
        {"denoise": 1.5},
        {"denoise": math.nan},
        {"exponent": -0.95},
        {"exponent": math.nan},
    ],
)
def test_a_setting_without_meaning_is_refused_by_key(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        WeigherConfig(**options)  # type: ignore[arg-type]


def test_the_estimators_learn_the_true_rates_of_a_delayed_stream() -> None:
    """Half of the buyers come late: labels so far say .1, the truth is .2, per item .1 and .3."""
    rng = np.random.default_rng(1)
    trained = weigher(exponent=0.0)
    due: list[tuple[int, Sample]] = []
    samples = []
    for i in range(12_000):
        at, item = i * 30 * SECOND, i % 2
        buys = rng.random() < (0.1, 0.3)[item]
        late = buys and rng.random() < 0.5
        options = {"task": PURCHASE, "item_id": f"SKU-{item}", "position": None}
        samples.append((at, sample(int(buys and not late), at=at, **options)))  # type: ignore[arg-type]
        if late:
            copy = sample(1, late=True, at=at, window=3600 * SECOND, **options)  # type: ignore[arg-type]
            due.append((at + 3600 * SECOND, copy))
    ordered = [s for _, s in sorted(samples + due, key=lambda pair: pair[0])]
    run(trained, ordered)
    assert trained.delayed_positive_rate(PURCHASE) == pytest.approx(0.5, abs=0.05)
    assert trained.prior(PURCHASE) == pytest.approx(0.2, abs=0.03)
    low, high = trained.interval(PURCHASE)
    assert low < trained.prior(PURCHASE) < high
    probe = trained.weigh(
        [
            sample(0, task=PURCHASE, item_id=f"SKU-{i}", position=None, at=12_000 * 30 * SECOND)
            for i in (0, 1)
        ]
    )
    assert probe.p_positive == pytest.approx([0.1, 0.3], abs=0.04)
    assert probe.normalization_ratio[PURCHASE] == pytest.approx((1, 1), abs=0.15)


def test_probabilities_and_pair_memory_logits_are_calibrated_on_the_stream() -> None:
    stiff = CalibrationConfig(slope_deviation=1e-9, shift_deviation=1e-9)
    calibrated, plain = weigher(exponent=0.0), weigher(exponent=0.0, calibration=stiff)
    samples = [s for s in stream(2000) if s.task == CLICK and s.copy_kind == "first"]
    run(calibrated, samples)
    run(plain, samples)
    slope, shift = calibrated.calibration(CLICK)
    assert (slope, shift) != pytest.approx((1, 0), abs=1e-3)
    assert plain.calibration(CLICK) == pytest.approx((1, 0), abs=1e-6)
    one, other = calibrated.weigh(samples[:20]), plain.weigh(samples[:20])
    np.testing.assert_allclose(
        logit(one.p_positive), slope * logit(other.p_positive) + shift, atol=0.05
    )
    np.testing.assert_allclose(
        one.pair_memory_logit, slope * other.pair_memory_logit + shift, atol=0.05
    )


def test_a_weighted_batch_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        weigher().weigh([sample(0)]).exponent = 2.0  # type: ignore[misc]
