"""The online estimator: its river pipeline, what it remembers, and how well it ranks."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.weighting.streams import DAY, ClickLog, Doc, sample, stream
from weighting.config import WeigherConfig
from weighting.estimators.conditional import Conditional, ConditionalConfig
from weighting.estimators.logistic import DiagonalLogistic, sigmoid
from weighting.estimators.propensity import Propensity, PropensityConfig
from weighting.features import FieldConfig, Fields
from weighting.sample import Attribute, Sample
from weighting.tasks import CLICK
from weighting.weigher import Weigher

SMALL = ConditionalConfig(fields=FieldConfig(hash_bits=14))


def conditional(config: ConditionalConfig = SMALL) -> Conditional:
    return Conditional(config, initial=0.1, with_position=True)


def learn(model: Conditional, samples: list[Sample]) -> None:
    label = [float(s.label) for s in samples]
    model.learn(model.predict(samples), label, [1.0] * len(samples))


def test_a_batch_gives_the_numbers_of_the_river_pipeline_one_by_one() -> None:
    samples = stream(300)
    fast, reference = conditional(), conditional()
    weights = np.random.default_rng(0).uniform(0, 1, len(samples)).tolist()
    labels = [float(s.label) for s in samples]
    raw = [
        {"query": s.query, "id": s.item_id, "text": s.text, "attributes": s.attributes}
        for s in samples
    ]

    predictions = fast.predict(samples)
    for x, found in zip(raw, predictions, strict=True):
        p = reference.pipeline.predict_proba_one(x, examination=found.examination)[True]
        assert sigmoid(found.logit) == pytest.approx(p, rel=1e-9)

    fast.learn(predictions, labels, weights)
    for s, x, y, w, found in zip(samples, raw, labels, weights, predictions, strict=True):
        t, now = found.examination, s.emitted_us
        reference.pipeline.learn_one(x, bool(y), w=w, examination=t, time_us=now)
    assert fast.snapshot()["model"] == reference.snapshot()["model"]


def test_a_clone_of_the_river_pipeline_starts_untrained() -> None:
    model = conditional()
    x = {"query": "red shoes", "id": "SKU-7", "text": "", "attributes": {}}
    model.pipeline.learn_one(x, True)
    assert model.pipeline.predict_proba_one(x)[True] > 0.1
    assert model.pipeline.clone().predict_proba_one(x)[True] == pytest.approx(0.1)


def test_hashes_are_the_same_in_every_process() -> None:
    program = (
        "from weighting.features import Fields, FieldConfig;"
        "attributes = {'category': 'a', 'price': 9.5};"
        "x = Fields(FieldConfig()).fields('Red  shoes', 'SKU-7', 'Red shoe', attributes);"
        "print(sorted(x.items()))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    attributes: dict[str, Attribute] = {"category": "a", "price": 9.5}
    here = Fields(FieldConfig()).fields("Red  shoes", "SKU-7", "Red shoe", attributes)
    assert outputs == {f"{sorted(here.items())}\n"}


def test_each_text_of_a_list_is_a_feature_as_if_it_stood_alone() -> None:
    fields = Fields(FieldConfig())

    def of(value: list[str] | str) -> dict[int, float]:
        return fields.fields("shoes", "A", "a shoe", {"category": value, "price": 9.5})

    both, single = of(["new", "sale"]), of("new") | of("sale")
    assert both == single
    assert len(both) == len(of("new")) + 2, "itself, and under this query"
    assert of([]).items() < both.items()
    many = [str(n) for n in range(1000)]
    assert of(many) == of(many[:16])


def test_a_document_without_an_id_is_known_by_its_text() -> None:
    fields = Fields(FieldConfig())
    assert fields.fields("q", "", "one", {}) != fields.fields("q", "", "two", {})


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"hash_bits": 3}, "hash_bits"),
        ({"pair": -1.0}, "fields.pair"),
        ({"bias": math.nan}, "fields.bias"),
    ],
)
def test_impossible_fields_are_refused_by_key(values: dict[str, object], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        FieldConfig(**values)  # type: ignore[arg-type]


@settings(deadline=None)
@example(0.0, 119.0, False, 0.125)
@given(st.floats(-8, 8), st.floats(0, 1e6), st.booleans(), st.floats(0.01, 1))
def test_no_weight_makes_a_step_pass_its_own_mode(
    start: float, w: float, y: bool, theta: float
) -> None:
    model = DiagonalLogistic(hash_bits=2, offset=start)
    model.learn_one({0: 1.0, 1: 2.0}, y, w=w, examination=theta)
    m, s = model.belief_one({0: 1.0, 1: 2.0})
    assert math.isfinite(m)
    assert 0 < s <= 5
    assert m >= start if y else m <= start
    r = 1 / (1 + math.exp(-m))
    slope = 1 - r if y else -theta * r * (1 - r) / (1 - theta * r)
    assert m - start == pytest.approx(5 * w * slope, rel=1e-3, abs=1e-6)


def clicked(model: DiagonalLogistic, rate: float, days: range, *, per_day: int = 20) -> float:
    """Show one item at a click rate for some days; return the probability of a click after it."""
    for shown in range(days.start * per_day, days.stop * per_day):
        y = math.floor((shown + 1) * rate) > math.floor(shown * rate)
        model.learn_one({0: 1.0}, y, time_us=shown * DAY // per_day)
    return float(model.predict_proba_one({0: 1.0})[True])


@pytest.mark.parametrize("days", [10, 100, 1000])
def test_a_change_is_followed_within_three_half_lives_however_much_came_before(days: int) -> None:
    """Twenty showings a day: within 220 showings, where counting took as many as came before."""
    model = DiagonalLogistic(hash_bits=2, half_life_seconds=3.5 * 86_400)
    assert clicked(model, 0.3, range(days)) == pytest.approx(0.3, abs=0.03)
    assert clicked(model, 0.03, range(days, days + 11)) == pytest.approx(0.085, abs=0.005)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.floats(0.1, 3)), min_size=1),
    st.integers(-5, 5),
)
def test_without_time_in_between_it_is_the_plain_bayesian_update(
    samples: list[tuple[int, bool, float]], later: int
) -> None:
    """Also where a late sample comes: time never goes back."""
    fading = DiagonalLogistic(hash_bits=4, half_life_seconds=1e-3)
    keeping = DiagonalLogistic(hash_bits=4, half_life_seconds=math.inf)
    for bucket, y, w in samples:
        fading.learn_one({bucket: 1.0}, y, w=w, time_us=10 * DAY)
        keeping.learn_one({bucket: 1.0}, y, w=w, time_us=10 * DAY)
    last = samples[-1][0]
    fading.learn_one({last: 1.0}, True, time_us=10 * DAY - abs(later) * DAY)
    keeping.learn_one({last: 1.0}, True, time_us=10 * DAY)
    assert fading.snapshot() == keeping.snapshot()


@given(st.integers(0, 400), st.integers(1, 50))
def test_what_samples_added_to_the_precision_halves_every_half_life(days: int, num: int) -> None:
    model = DiagonalLogistic(hash_bits=2, half_life_seconds=86_400)
    for _ in range(num):
        model.learn_one({0: 1.0}, False, time_us=0)
    mean, learned = model.belief_one({0: 1.0})
    later, variance = model.belief_one({0: 1.0}, time_us=days * DAY)
    assert later == mean
    assert 1 / variance - 1 == pytest.approx((1 / learned - 1) * 2.0**-days, rel=1e-9, abs=1e-12)
    assert variance <= 1
    model.learn_one({3: 1.0}, False, time_us=days * DAY)  # the time of a read without one
    assert model.known(0) == model.known(3, 0) == pytest.approx(1 - variance)
    assert model.known(1) == model.known(1, 0) == 0.0


def test_reads_change_nothing_whatever_their_order_and_time() -> None:
    read, unread = conditional(), conditional()
    samples = stream(60)
    for i, s in enumerate(samples):
        for other in (samples[-1], samples[0], samples[i // 2]):
            read.predict([other])
        read.predict_first(s.query, [Doc(s.item_id)])
        learn(read, [s])
        learn(unread, [s])
    assert read.snapshot() == unread.snapshot()


def test_the_pair_memory_falls_silent_about_what_was_not_shown_for_long() -> None:
    model = conditional(replace(SMALL, half_life_seconds=86_400.0))
    learn(model, [sample(int(i % 5 == 0), item_id="liked") for i in range(200)])

    def liked() -> float:
        found, unknown = model.predict_first("red shoes", [Doc("liked"), Doc("unknown")])
        return float(found - unknown)

    before = liked()
    learn(model, [sample(0, query="lamps", item_id="other", at=30 * DAY)])
    assert 0 < liked() < 1e-3 * before


def test_positions_are_told_apart_from_items() -> None:
    """Once items have been shown at several positions, the position explains its own clicks."""
    log = ClickLog(num_queries=4, num_items=12)
    model = conditional()
    for shown in log.lists(1500):
        learn(model, shown)
    predictions = model.predict([sample(0, position=k) for k in (1, 2, 5, 10)])
    examination = [found.examination for found in predictions]
    assert examination == pytest.approx([1, 1 / 2, 1 / 5, 1 / 10], rel=0.35)


def test_propensity_is_clicks_over_what_the_first_position_would_have_got() -> None:
    propensity = Propensity(PropensityConfig(decline=0.0))
    for i in range(20_000):
        propensity.update(0, 3, float(i % 10 == 0), 1.0, 0.4)
    found = [propensity.get(k) for k in (1, 3, 4, None)]
    assert found == pytest.approx([1, 0.25, 1, 1], rel=0.01)


@pytest.mark.parametrize("days", [10, 100])
def test_an_examination_probability_follows_a_change_in_event_time(days: int) -> None:
    config = PropensityConfig(decline=0.0, pseudo_count=1.0, half_life_seconds=86_400.0)
    propensity = Propensity(config)

    def show(examined: float, days: range) -> float:
        for day in days:
            for i in range(100):
                propensity.update(day * DAY, 3, float(i < 40 * examined), 1.0, 0.4)
        return propensity.get(3)

    assert show(0.5, range(days)) == pytest.approx(0.5, abs=0.05)
    assert show(0.1, range(days, days + 5)) == pytest.approx(0.1, abs=0.05)


def test_the_pair_memory_ranks_a_position_biased_log_as_well_as_click_counts() -> None:
    log = ClickLog()
    weigher = Weigher(WeigherConfig(conditional=SMALL))
    lists = list(log.lists(4000))
    for i in range(0, len(lists), 8):
        weigher.weigh([s for shown in lists[i : i + 8] for s in shown])
    pair_memory = np.array(
        [
            weigher.pair_memory_logits(CLICK, f"query {q}", log.docs(q))
            for q in range(log.num_queries)
        ]
    )
    assert log.ndcg(pair_memory) >= log.ndcg(log.counts()) - 0.01


def test_the_pair_memory_says_nothing_about_what_it_never_saw_under_this_query() -> None:
    model = conditional(SMALL)
    learn(model, [sample(int(i % 5 == 0), item_id="liked") for i in range(200)])
    unseen = model.predict_first("red shoes", [Doc("unknown"), Doc("another")])
    elsewhere = model.predict_first("blue hats", [Doc("liked"), Doc("unknown")])
    liked, unknown = model.predict_first("red shoes", [Doc("liked"), Doc("unknown")])
    assert np.ptp(np.concatenate([unseen, elsewhere])) == 0
    assert liked > unknown
