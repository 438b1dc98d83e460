"""Query residuals: learning, shrinkage, forgetting, restoring."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit

from learner.errors import Corrupt
from learner.residual import QueryResidual, ResidualConfig
from tests.weighting.test_query_key import SAME
from weighting.query_key import query_key

WIDTH = 16


def unit(draw: np.random.Generator, number: int) -> NDArray[np.float32]:
    vectors = draw.normal(size=(number, WIDTH))
    found: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found.astype(np.float32)


def learned(
    config: ResidualConfig | None = None, *, rounds: int = 40, query: str = "shoes"
) -> tuple[QueryResidual, NDArray[np.float32]]:
    """Ten items, of which the first three are always clicked, ten exposures each round."""
    vectors = unit(np.random.default_rng(0), 10)
    residual = QueryResidual(WIDTH, config)
    for _ in range(rounds):
        residual.learn(
            query,
            [f"SKU-{i}" for i in range(10)],
            vectors,
            np.full(10, -2.0),
            [8.0] * 3 + [0.0] * 7,
            [10.0] * 10,
        )
    return residual, vectors


def test_a_query_never_seen_has_no_residual() -> None:
    residual, _ = learned()
    assert not residual.get("lamps").any()
    assert len(residual) == 1


@pytest.mark.parametrize(("learned_as", "asked_as"), SAME)
def test_a_query_is_known_again_by_the_key_that_the_pair_memory_uses(
    learned_as: str, asked_as: str
) -> None:
    residual, _ = learned(query=learned_as)
    assert residual.get(asked_as).any()
    assert residual.get(asked_as).tobytes() == residual.get(learned_as).tobytes()
    assert residual.vectors()[0] == [query_key(asked_as)]


def test_what_was_learned_on_shown_items_lifts_items_that_resemble_them() -> None:
    residual, vectors = learned()
    draw = np.random.default_rng(1)
    r = residual.get("shoes")
    for clicked in vectors[:3]:
        similar = clicked + 0.05 * draw.normal(size=WIDTH)
        assert r @ similar > 0.5
        assert r @ similar > (vectors[3:] @ r).max()


def test_a_late_click_whose_showing_was_left_out_moves_nothing_and_is_remembered() -> None:
    vectors = unit(np.random.default_rng(0), 2)
    residual = QueryResidual(WIDTH)
    residual.learn("shoes", ["SKU-0"], vectors[:1], np.full(1, -2.0), [3.0], [0.0])
    assert not residual.get("shoes").any()
    residual.learn("shoes", ["SKU-0", "SKU-1"], vectors, np.full(2, -2.0), [0.0, 0.0], [4.0, 4.0])
    assert np.isfinite(residual.get("shoes")).all()
    assert residual.get("shoes") @ vectors[0] > residual.get("shoes") @ vectors[1]


def test_clicks_move_the_logit_towards_their_rate_and_shrinkage_keeps_it_short() -> None:
    lengths = []
    for shrinkage in (0.1, 10.0, 1000.0):
        residual, vectors = learned(ResidualConfig(shrinkage=shrinkage), rounds=200)
        p = expit(-2.0 + vectors @ residual.get("shoes"))
        if shrinkage == 0.1:
            np.testing.assert_allclose(p[:3], 0.8, atol=0.05)
        lengths.append(float(np.linalg.norm(residual.get("shoes"))))
    assert lengths == sorted(lengths, reverse=True)


def test_many_batches_end_at_the_maximum_of_the_posterior() -> None:
    residual, vectors = learned(ResidualConfig(max_exposure=1e9), rounds=400)
    clicks, exposure = np.array([8.0] * 3 + [0.0] * 7) * 400, np.full(10, 10.0) * 400
    r = residual.get("shoes").astype(np.float64)
    p = expit(-2.0 + vectors @ r)
    gradient = (exposure * p - clicks) @ vectors + r
    assert np.linalg.norm(gradient) < 0.01 * np.linalg.norm(clicks @ vectors)


def test_zero_steps_switch_it_off() -> None:
    assert not learned(ResidualConfig(steps=0))[0].get("shoes").any()


def test_the_query_unseen_for_longest_is_forgotten_first() -> None:
    residual = QueryResidual(WIDTH, ResidualConfig(max_queries=3))
    vectors = unit(np.random.default_rng(0), 1)
    for query in ("a", "b", "c", "a", "d", "e"):
        residual.learn(query, ["SKU-1"], vectors, np.zeros(1), [1.0], [1.0])
        assert len(residual) <= 3
    assert residual.vectors()[0] == ["a", "d", "e"]


def test_counts_fade_so_that_what_was_clicked_long_ago_stops_counting() -> None:
    residual, vectors = learned(ResidualConfig(max_exposure=50.0))
    before = residual.get("shoes") @ vectors[0]
    for _ in range(40):  # the taste turns round
        residual.learn(
            "shoes",
            [f"SKU-{i}" for i in range(10)],
            vectors,
            np.full(10, -2.0),
            [0.0] * 7 + [8.0] * 3,
            [10.0] * 10,
        )
    r = residual.get("shoes")
    assert r @ vectors[0] < before / 2
    assert (vectors[7:] @ r).min() > (vectors[:3] @ r).max()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_a_restored_residual_has_the_same_bytes_and_goes_on_in_the_same_way(
    rounds: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    vectors = unit(draw, 6)

    def more(residual: QueryResidual, draw: np.random.Generator) -> None:
        places = draw.permutation(6)[: int(draw.integers(1, 7))]
        query = f"query {draw.integers(4)}"
        clicks = draw.random(len(places))
        residual.learn(
            query,
            [f"SKU-{i}" for i in places],
            vectors[places],
            np.full(len(places), -1.0),
            clicks.tolist(),
            [1.0] * len(places),
        )

    live = QueryResidual(WIDTH, ResidualConfig(max_queries=3, max_exposure=3.0))
    for _ in range(rounds):
        more(live, draw)
    again = QueryResidual(WIDTH, live.config)
    again.restore(*live.snapshot())
    for _ in range(3):
        assert again.snapshot()[0] == live.snapshot()[0]
        assert again.vectors()[1].tobytes() == live.vectors()[1].tobytes()
        state = draw.bit_generator.state
        more(live, draw)
        draw.bit_generator.state = state
        more(again, draw)


def test_counts_and_vectors_that_do_not_belong_together_are_refused() -> None:
    counts, vectors = learned()[0].snapshot()
    with pytest.raises(Corrupt, match="residual: expected format 2, width 16"):
        QueryResidual(WIDTH).restore(counts, np.zeros((2, WIDTH), np.float32))
    with pytest.raises(Corrupt, match="width 8"):
        QueryResidual(8).restore(counts, vectors)
    message = r"learner\.residual\.steps: got -1, expected a whole number >= 0"
    with pytest.raises(ValueError, match=message):
        ResidualConfig(steps=-1)
