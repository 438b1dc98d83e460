"""Learning a batch at once: what stays as it is list by list, and what does not."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.weighting.streams import SECOND, ClickLog, events, sample, stream
from weighting.caps import CapsConfig
from weighting.config import WeigherConfig
from weighting.constraints import SettingError
from weighting.errors import WeightError
from weighting.estimators.conditional import ConditionalConfig
from weighting.features import FieldConfig
from weighting.sample import Sample
from weighting.tasks import CLICK, PURCHASE
from weighting.weigher import Weigher
from weighting.weighted import COLUMNS, WeightedBatch

Array = NDArray[np.float64]
SMALL = ConditionalConfig(fields=FieldConfig(hash_bits=12))
SMALL_CAPS = CapsConfig(hash_bits=10)
PREDICTED = ("p_positive", "examination", "pair_memory_logit", "pair_memory_base")


def weigher(update_per: str = "batch", **options: object) -> Weigher:
    options = {"conditional": SMALL, "caps": SMALL_CAPS, "exponent": 1.0, **options}
    return Weigher(WeigherConfig(update_per=update_per, **options))  # type: ignore[arg-type]


def run(weigher: Weigher, samples: list[Sample], size: int = 64) -> list[WeightedBatch]:
    return [weigher.weigh(samples[i : i + size]) for i in range(0, len(samples), size)]


def bits(batches: list[WeightedBatch]) -> list[bytes]:
    return [getattr(batch, name).tobytes() for batch in batches for name in COLUMNS]


def flat(number: int, seed: int) -> list[Sample]:
    return [s for each in events(number, seed) for s in each]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 1000))
def test_no_label_of_a_batch_changes_what_is_predicted_in_it(index: int, seed: int) -> None:
    samples = flat(60, seed)
    free = [i for i, s in enumerate(samples) if s.copy_kind == "first"]
    index = free[index % len(free)]
    flipped = list(samples)
    flipped[index] = msgspec.structs.replace(samples[index], label=1 - samples[index].label)
    one, other = weigher(), weigher()
    for each in (one, other):
        run(each, stream(200, seed))
    first, second = one.weigh(samples), other.weigh(flipped)
    for name in (*PREDICTED, "shown_examination", "discount"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes(), name
    others = np.arange(len(samples)) != index
    for name in ("correction", "raw", "p_y_given_x", "p_y"):
        a, b = getattr(first, name)[others], getattr(second, name)[others]
        assert a.tobytes() == b.tobytes(), name
    assert one.snapshot() != other.snapshot()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 300), st.sampled_from([0.5, 1.0, 2.0, -0.5]))
def test_weights_are_finite_and_those_of_what_counts_are_positive(
    seed: int, size: int, exponent: float
) -> None:
    for batch in run(weigher(exponent=exponent), flat(150, seed), size):
        assert np.isfinite(batch.weight).all()
        assert (batch.weight[batch.correction > 0] > 0).all()
        assert (batch.weight >= 0).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 8), st.integers(0, 100))
def test_a_restored_weigher_goes_on_with_the_same_bits(cut: int, seed: int) -> None:
    """What is kept of items besides the state decides nothing."""
    samples = [
        msgspec.structs.replace(s, attributes={"category": "shoes", "new": i % 2 == 0 or 1})
        for i, s in enumerate(flat(120, seed))
    ]
    whole, resumed = weigher(), weigher()
    run(whole, samples[: cut * 32], 32)
    resumed.restore(whole.snapshot())
    assert resumed.snapshot() == whole.snapshot()
    rest = samples[cut * 32 :]
    assert bits(run(whole, rest, 32)) == bits(run(resumed, rest, 32))
    assert resumed.snapshot() == whole.snapshot()


@pytest.mark.parametrize(("before", "after"), [("list", "batch"), ("batch", "list")])
def test_the_state_is_carried_over_when_the_setting_changes(before: str, after: str) -> None:
    first, second = weigher(before), weigher(after)
    run(first, flat(150, 3))
    second.restore(first.snapshot())
    assert second.snapshot() == first.snapshot()
    probe = flat(1, 0)[:1]
    one, other = first.weigh(probe), second.weigh(probe)
    for name in PREDICTED:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12)


def test_a_batch_of_one_list_is_predicted_as_list_by_list_and_learned_alike() -> None:
    """The first list to rounding; later ones as far as one step for ten is like ten steps."""
    by_list, at_once = weigher("list"), weigher("batch")
    for number, own in enumerate(ClickLog(seed=2).lists(300)):
        shown = [msgspec.structs.replace(s, list_id=str(number)) for s in own]
        one, other = by_list.weigh(shown), at_once.weigh(shown)
        if not number:
            for name in COLUMNS:
                a, b = getattr(one, name), getattr(other, name)
                np.testing.assert_allclose(a, b, rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(one.p_positive, other.p_positive, rtol=0.25, atol=0.02)
    assert at_once.prior(CLICK) == pytest.approx(by_list.prior(CLICK), rel=1e-6)


def test_a_batch_of_one_sample_is_learned_as_list_by_list() -> None:
    by_list, at_once = weigher("list"), weigher("batch")
    for s in stream(300, 4):
        one, other = by_list.weigh([s]), at_once.weigh([s])
        for name in PREDICTED:
            a, b = getattr(one, name), getattr(other, name)
            np.testing.assert_allclose(a, b, rtol=5e-3, err_msg=name)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_of_samples_in_a_batch_counts_only_for_rounding(
    seed: int, draw: random.Random
) -> None:
    """At one time and without caps, which count in stream order."""
    rng = np.random.default_rng(seed)
    caps = CapsConfig(client_item=0.0, client=0.0, item=1.0, hash_bits=10)
    samples = [
        sample(
            int(rng.random() < 0.3),
            query=f"query {rng.integers(5)}",
            item_id=f"SKU-{rng.integers(20)}",
            position=int(rng.integers(1, 11)),
            at=int(rng.integers(100)) * SECOND,
            offset=i,
        )
        for i in range(80)
    ]
    shuffled = list(samples)
    draw.shuffle(shuffled)
    one, other = weigher(caps=caps), weigher(caps=caps)
    probe = stream(200, seed)
    for each, own in ((one, samples), (other, shuffled)):
        each.weigh([msgspec.structs.replace(s, list_id="") for s in own])
    first, second = one.weigh(probe), other.weigh(probe)
    for name in PREDICTED:
        a, b = getattr(first, name), getattr(second, name)
        np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=name)


def test_it_learns_a_click_log_about_as_well_as_list_by_list() -> None:
    """In batches of six lists, from clicks on places that are examined less and less."""
    found = {}
    for update_per in ("list", "batch"):
        log, own = ClickLog(seed=1), weigher(update_per)
        shown = [s for each in log.lists(1500) for s in each]
        run(own, shown, 60)
        queries = range(log.num_queries)
        scores = [own.pair_memory_logits(CLICK, f"query {q}", log.docs(q)) for q in queries]
        found[update_per] = log.ndcg(np.stack(scores))
    assert found["batch"] > 0.8
    assert found["batch"] == pytest.approx(found["list"], abs=0.02)


def test_a_refused_sample_leaves_the_state_as_it_was() -> None:
    trained = weigher()
    run(trained, stream(100))
    before = trained.snapshot()
    with pytest.raises(WeightError, match="label: got 2"):
        trained.weigh([sample(1), sample(2)])
    assert trained.snapshot() == before


def test_purchases_are_told_how_probable_it_was_that_their_place_was_examined() -> None:
    """From the state before the batch, also where the batch has shown lists."""
    trained = weigher()
    run(trained, flat(200, 1))
    bought = sample(1, task=PURCHASE, position=7)
    alone = weigher()
    alone.restore(trained.snapshot())
    expected = alone.weigh([bought]).shown_examination[0]
    among = trained.weigh([*next(ClickLog().lists(1)), bought]).shown_examination[-1]
    assert 0 < among == expected < 1


def test_attribute_shares_are_learned_a_batch_at_once_too() -> None:
    own = weigher(scheme="attribute_share")
    clicks = [
        msgspec.structs.replace(
            sample(
                int(place == 2), item_id=f"{number}-{place}", position=place, at=number * SECOND
            ),
            list_id=f"list {number}",
            attributes={"brand": "Alba" if place == 2 else f"b{place}"},
        )
        for number in range(60)
        for place in range(1, 5)
    ]
    batches = run(own, clicks, 40)
    chosen = [batch.raw[batch.label > 0].mean() for batch in batches]
    assert chosen[-1] > 1.2 * chosen[0]


def test_only_the_built_in_model_learns_a_batch_at_once() -> None:
    with pytest.raises(SettingError) as refused:
        WeigherConfig(update_per="batch", conditional=ConditionalConfig(model="naive_bayes"))
    expected = "got 'batch', expected list with conditional.model='naive_bayes'"
    assert str(refused.value) == f"weighting.update_per: {expected}"


def test_versions_of_before_have_the_settings_of_before() -> None:
    assert "update_per" not in WeigherConfig().on_disk()
    written = WeigherConfig(update_per="batch")
    assert written.on_disk()["update_per"] == "batch"
    assert WeigherConfig.from_disk(written.on_disk()) == written
