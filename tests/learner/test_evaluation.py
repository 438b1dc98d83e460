"""Prequential figures against their definitions, spelled out pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit

from learner.evaluation.evaluation import Evaluation
from tests.learner.judging import judged

Array = NDArray[np.float64]
BIN = 0.05
streams = st.lists(st.tuples(st.integers(-190, 190), st.integers(0, 1)), min_size=1, max_size=300)


def centred(rows: list[tuple[int, int]]) -> tuple[Array, Array]:
    """Logits in the middle of a bin, so that bins lose nothing."""
    logit = np.array([(place + 0.5) * BIN for place, _ in rows])
    return logit, np.array([float(label) for _, label in rows])


def random_stream(number: int, seed: int = 0) -> tuple[Array, Array]:
    draw = np.random.default_rng(seed)
    logit = draw.normal(-1, 1.5, number)
    return logit, (draw.random(number) < expit(logit)).astype(np.float64)


def evaluated(
    logit: Array, label: Array, weight: Array | None = None, *, chunk: int = 10_000
) -> Evaluation:
    evaluation = Evaluation()
    weight = np.ones(len(logit)) if weight is None else weight
    for start in range(0, len(logit), chunk):
        end = start + chunk
        evaluation.update(judged(logit[start:end], label[start:end], weight[start:end]))
    return evaluation


@settings(deadline=None, max_examples=50)
@given(streams, st.integers(1, 70))
def test_auc_is_the_share_of_pairs_in_the_right_order_with_ties_as_one_half(
    rows: list[tuple[int, int]], chunk: int
) -> None:
    logit, label = centred(rows)
    found = evaluated(logit, label, chunk=chunk).get()
    positive, negative = logit[label == 1], logit[label == 0]
    if not len(positive) or not len(negative):
        assert "auc" not in found
        return
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative]
    assert found["auc"] == pytest.approx(np.mean(pairs), abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(-30, 30), st.integers(0, 1)), min_size=1, max_size=200))
def test_log_loss_and_calibration_ratio_are_those_of_the_formulas(
    rows: list[tuple[float, int]],
) -> None:
    logit, label = np.array([z for z, _ in rows]), np.array([float(y) for _, y in rows])
    found = evaluated(logit, label).get()
    loss = sum(math.log1p(math.exp(-z if y else z)) for z, y in rows) / len(rows)
    assert found["num_samples"] == len(rows)
    assert found["log_loss"] == pytest.approx(loss, rel=1e-9, abs=1e-12)
    rate = label.mean()
    assert found["positive_ratio"] == pytest.approx(rate)
    if 0 < rate < 1:
        predicted = sum(1 / (1 + math.exp(-z)) for z, _ in rows)
        assert found["predicted_to_observed"] == pytest.approx(predicted / label.sum())


def test_a_calibrated_score_has_no_calibration_error_and_a_shifted_one_has() -> None:
    logit, label = random_stream(40_000)
    good, bad = evaluated(logit, label).get(), evaluated(logit + 1, label).get()
    assert good["calibration_error"] < 0.02 < bad["calibration_error"]
    assert good["predicted_to_observed"] == pytest.approx(1, abs=0.05)
    found = evaluated(logit, label, chunk=77).latest_block().reliability()
    predicted, observed, number = found.predicted, found.observed, found.number
    np.testing.assert_allclose(predicted[number > 200], observed[number > 200], atol=0.1)


@pytest.mark.parametrize("chunk", [1, 64, 100, 1000, 100_000])
def test_merging_blocks_keeps_every_sample_once_whatever_the_size_of_an_update(chunk: int) -> None:
    logit, label = random_stream(30_000 if chunk > 1 else 12_000)
    evaluation = evaluated(logit, label, chunk=chunk)
    found = evaluation.get()
    assert found["num_samples"] == len(logit)
    assert found["positive_ratio"] == pytest.approx(label.mean())
    loss = np.logaddexp(0, np.where(label > 0, -logit, logit)).mean()
    assert found["log_loss"] == pytest.approx(loss)
    assert sum(part["num_samples"] for part in evaluation.quarters()) == len(logit)
    assert len(evaluation.snapshot()) < 1_000_000


def test_quarters_are_the_stream_in_order() -> None:
    logit, label = random_stream(20_000)
    logit[:10_000] = 0.0  # knows nothing at first
    quarters = evaluated(logit, label, chunk=320).quarters()
    assert [q["num_samples"] for q in quarters] == pytest.approx([5000] * 4, rel=0.15)
    assert [q["auc"] > 0.7 for q in quarters] == [False, False, True, True]


def test_the_latest_part_forgets_what_was_long_ago() -> None:
    logit, label = random_stream(20_000)
    logit[:15_000] = 0.0
    evaluation = evaluated(logit, label, chunk=320)
    assert evaluation.latest()["num_samples"] < 5000
    assert evaluation.latest()["auc"] > 0.75 > evaluation.get()["auc"]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 12_000), st.integers(1, 500))
def test_a_restored_evaluation_has_the_same_bytes_and_goes_on_in_the_same_way(
    number: int, more: int
) -> None:
    logit, label = random_stream(number)
    live, again = evaluated(logit, label, chunk=300), Evaluation()
    again.restore(live.snapshot())
    assert again.snapshot() == live.snapshot()
    for evaluation in (live, again):
        evaluation.update(judged(*random_stream(more, seed=1), np.full(more, 0.5)))
    assert again.snapshot() == live.snapshot()
    assert again.get() == live.get()


def test_a_snapshot_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluation snapshot: got format 2, expected 4"):
        Evaluation().restore(b"\x81\xa6format\x02")
