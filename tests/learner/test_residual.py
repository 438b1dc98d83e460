"""Query residuals: learning, shrinkage, forgetting, restoring."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit

from learner.errors import Corrupt
from learner.item_counts import ItemCounts
from learner.residual import QueryResidual, ResidualConfig
from tests.weighting.test_query_key import SAME
from weighting.query_key import query_key

WIDTH = 16
SEVERAL = ("list 1", "list 2")
DAY = 86_400 * 1_000_000


def unit(draw: np.random.Generator, number: int) -> NDArray[np.float32]:
    vectors = draw.normal(size=(number, WIDTH))
    found: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found.astype(np.float32)


def learned(
    config: ResidualConfig | None = None,
    *,
    rounds: int = 40,
    query: str = "shoes",
    every_us: int = 0,
) -> tuple[QueryResidual, NDArray[np.float32]]:
    """Ten items, of which the first three are always clicked, ten exposures each round."""
    vectors = unit(np.random.default_rng(0), 10)
    residual = QueryResidual(WIDTH, config)
    for time_us in range(0, rounds * (every_us or 1), every_us or 1):
        residual.learn(
            query,
            [f"SKU-{i}" for i in range(10)],
            vectors,
            np.full(10, -2.0),
            [8.0] * 3 + [0.0] * 7,
            [10.0] * 10,
            lists=SEVERAL,
            time_us=time_us,
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
    assert residual.queries() == [query_key(asked_as)]


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
    residual.learn(
        "shoes", ["SKU-0"], vectors[:1], np.full(1, -2.0), [3.0], [0.0], lists=SEVERAL, time_us=0
    )
    assert not residual.get("shoes").any()
    items, base = ["SKU-0", "SKU-1"], np.full(2, -2.0)
    residual.learn("shoes", items, vectors, base, [0.0, 0.0], [4.0, 4.0], lists=SEVERAL, time_us=0)
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
    residual, vectors = learned(rounds=400)
    clicks, exposure = np.array([8.0] * 3 + [0.0] * 7) * 400, np.full(10, 10.0) * 400
    r = residual.get("shoes").astype(np.float64)
    p = expit(-2.0 + vectors @ r)
    gradient = (exposure * p - clicks) @ vectors + r
    assert np.linalg.norm(gradient) < 0.01 * np.linalg.norm(clicks @ vectors)


def test_zero_steps_switch_it_off() -> None:
    assert not learned(ResidualConfig(steps=0))[0].get("shoes").any()


def one_list(residual: QueryResidual, query: str, name: str, *, items: int = 2) -> None:
    """Show a query's items in one list and click the first."""
    residual.learn(
        query,
        [f"SKU-{i}" for i in range(items)],
        unit(np.random.default_rng(1), items),
        np.full(items, -2.0),
        [1.0] + [0.0] * (items - 1),
        [1.0] * items,
        lists=[name],
        time_us=0,
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=12))
def test_a_query_is_learned_from_its_second_list_on(shown: list[tuple[int, int]]) -> None:
    residual = QueryResidual(WIDTH)
    lists: dict[int, set[int]] = {}
    for query, name in shown:
        one_list(residual, f"query {query}", f"list {name}")
        lists.setdefault(query, set()).add(name)
    for query in range(4):
        learned_of = len(lists.get(query, ())) > 1
        assert residual.get(f"query {query}").any() == learned_of


def test_lists_of_queries_that_never_come_again_push_nothing_out() -> None:
    residual = QueryResidual(WIDTH, ResidualConfig(max_queries=50))
    for name in range(3):
        for query in range(50):
            one_list(residual, f"query {query}", f"{query}, {name}")
    before = residual.snapshot()[1]
    for n in range(2_000):
        one_list(residual, f"once {n}", f"once {n}")
    assert residual.snapshot()[1].tobytes() == before.tobytes()
    assert len(residual) == 50


def test_a_copy_stays_as_it_was_and_encodes_only_what_has_changed_since_the_last() -> None:
    residual = QueryResidual(WIDTH)
    for name in range(3):
        for query in range(20):
            one_list(residual, f"query {query}", f"{query}, {name}")
    first = residual.copy()
    encoded, vectors = first.encoded(), first.vectors()
    one_list(residual, "query 7", "another")
    second = residual.copy()
    assert first.encoded() == encoded
    assert first.vectors().tobytes() == vectors.tobytes()
    kept = {id(row) for row in first.counts}
    changed = [
        q for q, row in zip(second.queries, second.counts, strict=True) if id(row) not in kept
    ]
    assert changed == ["query 7"]
    again = QueryResidual(WIDTH)
    again.restore(second.encoded(), second.vectors())
    assert again.snapshot()[0] == residual.snapshot()[0]


def test_a_list_costs_as_much_as_it_is_long_whatever_was_counted_before() -> None:
    """Counted in steps of the interpreter, not in time."""

    def steps(known: int) -> int:
        counts, number = ItemCounts(), 0
        rows = [(1.0, 1.0)] * known
        names = [f"SKU-{i}" for i in range(known)]
        settings: dict[str, Any] = {"half_life_us": 1e12, "most": 10_000}
        counts.add(names, rows, time_us=0, **settings)

        def count(*_: Any) -> Any:
            nonlocal number
            number += 1
            return count

        sys.settrace(count)
        try:
            counts.add(names[:10], rows[:10], time_us=1, **settings)
        finally:
            sys.settrace(None)
        return number

    assert steps(8_000) == steps(100)


def test_the_sum_of_exposures_is_that_of_the_items_kept() -> None:
    draw = np.random.default_rng(0)
    counts = ItemCounts()
    for n in range(300):
        names = [f"SKU-{i}" for i in draw.permutation(40)[:8]]
        rows = draw.random((8, 2)).tolist()
        time_us = (n + int(draw.integers(-3, 4))) * DAY
        counts.add(names, rows, time_us=time_us, half_life_us=20 * DAY, most=25)
    everything = [f"SKU-{i}" for i in range(40)]
    zero = [(0.0, 0.0)] * 40
    assert len(counts) == 25
    found, total = counts.add(everything, zero, time_us=0, half_life_us=20 * DAY, most=40)
    assert sum(e for _, e in found) == pytest.approx(total)


def test_the_query_unseen_for_longest_is_forgotten_first() -> None:
    residual = QueryResidual(WIDTH, ResidualConfig(max_queries=3))
    vectors = unit(np.random.default_rng(0), 1)
    for query in ("a", "b", "c", "a", "d", "e"):
        residual.learn(
            query, ["SKU-1"], vectors, np.zeros(1), [1.0], [1.0], lists=SEVERAL, time_us=0
        )
        assert len(residual) <= 3
    assert residual.queries() == ["a", "d", "e"]


@pytest.mark.parametrize("days", [20, 400])
def test_a_change_of_taste_is_followed_in_days_however_many_came_before(days: int) -> None:
    config = ResidualConfig(half_life_seconds=86_400.0)
    residual, vectors = learned(config, rounds=days, every_us=DAY)
    before = residual.get("shoes") @ vectors[0]
    for day in range(8):  # the taste turns round
        residual.learn(
            "shoes",
            [f"SKU-{i}" for i in range(10)],
            vectors,
            np.full(10, -2.0),
            [0.0] * 7 + [8.0] * 3,
            [10.0] * 10,
            lists=SEVERAL,
            time_us=(days + day) * DAY,
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
            lists=[f"list {draw.integers(3)}"],
            time_us=int(draw.integers(20)) * DAY,
        )

    live = QueryResidual(
        WIDTH, ResidualConfig(max_queries=3, max_items=4, half_life_seconds=86_400.0)
    )
    for _ in range(rounds):
        more(live, draw)
    again = QueryResidual(WIDTH, live.config)
    again.restore(*live.snapshot())
    for _ in range(3):
        assert again.snapshot()[0] == live.snapshot()[0]
        assert again.snapshot()[1].tobytes() == live.snapshot()[1].tobytes()
        state = draw.bit_generator.state
        more(live, draw)
        draw.bit_generator.state = state
        more(again, draw)


def test_counts_and_vectors_that_do_not_belong_together_are_refused() -> None:
    counts, _ = learned()[0].snapshot()
    vectors = learned()[0].copy().vectors()
    with pytest.raises(Corrupt, match="residual: expected format 3, width 16"):
        QueryResidual(WIDTH).restore(counts, np.zeros((2, WIDTH), np.float32))
    with pytest.raises(Corrupt, match="width 8"):
        QueryResidual(8).restore(counts, vectors)
    message = r"learner\.residual\.steps: got -1, expected a whole number >= 0"
    with pytest.raises(ValueError, match=message):
        ResidualConfig(steps=-1)


def test_clicks_that_come_late_all_at_once_lift_no_rate_beyond_what_they_make_of_it() -> None:
    """300 showings without a click, then 60 clicks on the same: a fifth, and never nearly all."""
    residual, vectors = QueryResidual(WIDTH), unit(np.random.default_rng(0), 1)

    def learn(clicks: float, exposure: float) -> float:
        residual.learn(
            "shoes",
            ["a"],
            vectors,
            np.full(1, -2.2),
            [clicks],
            [exposure],
            lists=SEVERAL,
            time_us=0,
        )
        return float(expit(-2.2 + (vectors[0] * residual.get("shoes")).sum()))

    for _ in range(30):
        before = learn(0.0, 10.0)
    assert before < 0.05
    after = [learn(clicks, 0.0) for clicks in (60.0, 0.001, 0.001, 0.001)]
    assert max(after) < 0.4
    assert after[-1] == pytest.approx(0.2, abs=0.05)
