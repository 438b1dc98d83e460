"""Candidates of the weights compete on what the stream says of them, and the best is in force."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from tests.weighting.streams import SECOND, sample, stream
from weighting.competition import Change, CompetitionConfig, corrected_loss
from weighting.config import WeigherConfig
from weighting.constraints import SettingError
from weighting.delay_correction import delay_correction
from weighting.estimators.conditional import ConditionalConfig
from weighting.estimators.hedge import mix_regret
from weighting.estimators.stand_in import StandIns
from weighting.features import FieldConfig
from weighting.sample import Sample
from weighting.schemes.registry import SchemeName, parse_candidates
from weighting.tasks import CLICK
from weighting.weigher import Weigher
from weighting.weighted import COLUMNS, WeightedBatch

Array = NDArray[np.float64]
NAMES: tuple[SchemeName, ...] = ("uniform", "ratio", "softmax_share")
SMALL = ConditionalConfig(fields=FieldConfig(hash_bits=12))
SOON = CompetitionConfig(
    candidates="ratio:1, uniform, ratio:0.5", min_samples=100.0, margin=2.0, share=1e-3
)
WIDTH = 12
EFFECT = np.random.default_rng(0).normal(size=WIDTH)


def weigher(competition: CompetitionConfig = SOON) -> Weigher:
    config = WeigherConfig(exponent="auto", conditional=SMALL, competition=competition)
    return Weigher(config)


def lists(number: int, start: int = 0) -> Iterator[tuple[list[Sample], Array]]:
    """Shown lists of ten with the products of their vectors."""
    for i in range(start, start + number):
        draw = np.random.default_rng(i)
        products = draw.normal(size=(10, WIDTH)) / WIDTH
        clicked = draw.random(10) < expit(3 * products @ EFFECT - 1.5) / (1 + np.arange(10))
        samples = [
            sample(int(y), item_id=f"SKU-{draw.integers(40)}", position=k + 1, at=i * SECOND)
            for k, y in enumerate(clicked)
        ]
        yield [msgspec.structs.replace(s, list_id=f"list {i}") for s in samples], products


def run(
    own: Weigher, number: int, *, size: int = 4, start: int = 0
) -> tuple[list[WeightedBatch], list[Change]]:
    """Weigh and compete over lists, `size` of them a batch."""
    batches: list[WeightedBatch] = []
    changes: list[Change] = []
    pending = list(lists(number, start))
    for i in range(0, number, size):
        samples = [s for shown, _ in pending[i : i + size] for s in shown]
        batches.append(own.weigh(samples))
        products = np.concatenate([products for _, products in pending[i : i + size]])
        changes += own.compete(batches[-1], products)
    return batches, changes


def test_by_default_nothing_competes_and_the_settings_are_those_of_before() -> None:
    plain = Weigher(WeigherConfig(conditional=SMALL))
    batch = plain.weigh(stream(50))
    assert plain.competition is None
    assert batch.candidate_weight.shape == (0, 50)
    assert plain.compete(batch, np.zeros((50, 3))) == ()
    assert "competition" not in plain.config.on_disk()


def test_the_first_candidate_is_in_force_at_first_and_weighs_as_it_would_alone() -> None:
    own = weigher(CompetitionConfig(candidates="ratio:0.5, uniform"))
    alone = Weigher(WeigherConfig(exponent=0.5, conditional=SMALL))
    samples = stream(300)
    for start in range(0, 300, 50):
        ours, theirs = (each.weigh(samples[start : start + 50]) for each in (own, alone))
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        np.testing.assert_array_equal(ours.candidate_weight[0].astype(np.float32), ours.weight)
    assert own.exponent == pytest.approx(0.5)


def test_every_candidate_has_the_weights_that_it_would_have_alone() -> None:
    own = weigher(CompetitionConfig(candidates="uniform, ratio:1, softmax_share"))
    alone = [Weigher(WeigherConfig(scheme=name, exponent=1.0, conditional=SMALL)) for name in NAMES]
    for shown, _ in lists(30):
        batch = own.weigh(shown)
        for weight, each in zip(batch.candidate_weight, alone, strict=True):
            np.testing.assert_array_equal(weight.astype(np.float32), each.weigh(shown).weight)


def test_the_winner_is_the_one_whose_stand_in_would_have_lost_least() -> None:
    """Judged anew, by hand; Hedge's mixture is as good up to its bound, and the winner leads."""
    own = weigher()
    names = list(parse_candidates(SOON.candidates).values())
    batches, changes = run(own, 400, size=1)
    stand_ins = StandIns(len(names), level=np.log(0.1 / 0.9), half_life_samples=20_000.0)
    losses = []
    for (_, products), batch in zip(lists(400), batches, strict=True):
        z, prior = stand_ins.predict(products), batch.prior[CLICK]
        inverted = np.stack([s.invert(each, prior) for s, each in zip(names, z, strict=True)])
        f = batch.examination * expit(inverted)
        log_loss = -np.where(batch.label > 0, np.log(expit(inverted)), np.log1p(-f))
        losses.append((batch.correction * log_loss).sum(axis=1))
        stand_ins.learn(products, batch.label, batch.candidate_weight, batch.examination)
    judged = np.array(losses[10:])  # after 100 samples
    total = judged.sum(axis=0)
    assert np.ptp(total) > 10  # something was at stake
    assert own.competition
    assert own.competition.in_force == int(total.argmin())
    assert changes
    mixture, log_pi = 0.0, np.full(len(names), -np.log(len(names)))
    for loss in judged:
        mixture -= np.logaddexp.reduce(log_pi - loss)
        log_pi = log_pi - loss - np.logaddexp.reduce(log_pi - loss)
        log_pi = np.logaddexp(log_pi + np.log1p(-1e-3), np.log(1e-3 / len(names)))
    np.testing.assert_allclose(list(own.competition.probabilities().values()), np.exp(log_pi))
    assert mixture - total.min() <= mix_regret(len(names), len(judged), rate=1.0, share=1e-3)


def test_when_the_best_candidate_changes_the_one_in_force_follows() -> None:
    """First the second candidate's stand-in learns nothing, then the first's learns wrongly."""
    own = weigher(CompetitionConfig(candidates="uniform, ratio:0.1", min_samples=50, margin=3))
    in_force = []
    for number, (shown, products) in enumerate(lists(600)):
        batch = own.weigh(shown)
        useless = 1 if number < 200 else 0
        weight = batch.candidate_weight.copy()
        weight[useless] *= 0.0 if number < 200 else (1 - batch.label) * 3
        batch = dataclasses.replace(batch, candidate_weight=weight)
        own.compete(batch, products)
        assert own.competition
        in_force.append(own.competition.in_force)
    assert set(in_force[:200]) == {0}
    assert in_force[-1] == 1
    assert own.description()["num_changes"] == 1
    assert own.competition
    (change,) = own.competition.changes
    assert (change.before, change.after) == ("uniform", "ratio:0.1")
    assert change.lead >= 3
    assert change.time_us == in_force.index(1) * SECOND


def test_inversion_is_by_what_was_trained_under_and_undoes_a_residual_exactly() -> None:
    own = weigher(
        CompetitionConfig(candidates="uniform, ratio:1", min_samples=0, half_life_samples=400)
    )
    competition = own.competition
    assert competition
    assert own.exponent == 0
    run(own, 20)
    competition._choice.expert = 1
    before = own.exponent
    run(own, 40, start=20)  # one half-life
    assert before < own.exponent < 1
    z, r = np.array([0.3, -2.0]), np.array([0.5, 0.1])
    found = own.invert(z + (1 + own.exponent) * r, 0.2) - own.invert(z, 0.2)
    np.testing.assert_allclose(found, r)
    shares = competition._trained_under
    assert shares.sum() == pytest.approx(1)
    uniform, ratio = (scheme.invert(z, 0.2) for scheme in competition.candidates.values())
    np.testing.assert_allclose(own.invert(z, 0.2), shares[0] * uniform + shares[1] * ratio)


def test_batches_of_whole_lists_do_not_matter_while_the_one_in_force_stays() -> None:
    never = CompetitionConfig(margin=5.0, min_samples=100.0, share=1e-4)
    one, other = weigher(never), weigher(never)
    run(one, 60, size=1)
    run(other, 60, size=6)
    for each in (one, other):
        assert each.competition
        assert not each.competition.changes
    assert one.competition
    assert other.competition
    assert one.competition.probabilities() == other.competition.probabilities()


def test_a_restored_weigher_competes_as_the_original_to_the_bit() -> None:
    original = weigher()
    _, changes = run(original, 150)
    assert changes
    resumed = weigher()
    resumed.restore(original.snapshot())
    assert resumed.snapshot() == original.snapshot()
    assert resumed.exponent == original.exponent
    ours, theirs = (run(each, 50, start=150) for each in (original, resumed))
    assert ours[1] == theirs[1]
    for one, other in zip(ours[0], theirs[0], strict=True):
        assert one.weight.tobytes() == other.weight.tobytes()
    assert resumed.snapshot() == original.snapshot()


def test_other_candidates_begin_afresh_and_keep_the_estimators() -> None:
    original = weigher()
    run(original, 60)
    others = [
        weigher(CompetitionConfig(candidates="uniform, ratio:2")),
        Weigher(WeigherConfig(conditional=SMALL)),
    ]
    for other in others:
        other.restore(original.snapshot())
        assert other.prior(CLICK) == original.prior(CLICK)
    assert others[0].competition
    assert list(others[0].competition.probabilities().values()) == pytest.approx([0.5, 0.5])
    back = weigher()
    back.restore(others[1].snapshot())
    assert back.prior(CLICK) == original.prior(CLICK)


def test_a_manifest_tells_who_is_in_force_and_how_probable_each_is() -> None:
    own = weigher()
    run(own, 40)
    assert own.competition
    described = own.description()
    assert described["scheme"] == own.scheme.description()["scheme"]
    assert described["effective_exponent"] == own.exponent
    assert described["probability of ratio:1"] == own.competition.probabilities()["ratio:1"]


def test_the_loss_is_unbiased_by_delay_and_position() -> None:
    """Over all copies of an example with p, S and theta, p itself loses least."""
    p, rate, theta = 0.3, 0.6, np.array([0.4])
    candidates = np.linspace(0.05, 0.95, 91)
    z = np.log(candidates / (1 - candidates))[:, None]
    shown = theta[0] * p
    copies = [
        (1.0, shown * (1 - rate), 1.0),
        (0.0, 1 - shown * (1 - rate), delay_correction(0, shown, rate)),
        (1.0, shown * rate, 1.0),
    ]
    loss = np.zeros(len(candidates))
    for label, chance, correction in copies:
        loss += chance * corrected_loss(z, np.array([label]), np.array([correction]), theta)
    assert candidates[loss.argmin()] == pytest.approx(p)


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        ({"candidates": "uniform"}, "two or more different candidates"),
        ({"candidates": "uniform, uniform"}, "two or more different candidates"),
        ({"candidates": "uniform, median:1"}, "'median:1'"),
        ({"candidates": "uniform, ratio:-1"}, "'ratio:-1'"),
        ({"candidates": "uniform, ratio:x"}, "'ratio:x'"),
        ({"margin": 12.0}, r"margin: got 12.0, expected a number < log"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_key(
    changed: dict[str, object], refusal: str
) -> None:
    with pytest.raises(SettingError, match=refusal):
        CompetitionConfig(**changed)  # type: ignore[arg-type]
