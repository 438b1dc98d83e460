"""Click fraud: what a few clients can do to one item is bounded."""

from __future__ import annotations

from functools import cache

import msgspec
import numpy as np
import pytest

from benchmarks.click_fraud import OFF, Target, run, traffic
from deploy.demo.shop import invented_shop
from deploy.settings.load import load

_SMALL = {"learner.model": "random:1x32", "learner.tuning": "frozen"}


@cache
def figures(attack: str, share: float) -> dict[str, dict[str, float]]:
    """Figures of 200 honest lists, and attackers among them; off and on."""
    report = run(load(None, {}, _SMALL), lists=200, share=share, seeds=1, attacks=(attack,))
    return report[attack]


def test_repeated_clicks_of_three_clients_count_for_a_few() -> None:
    honest, few, many = figures("none", 0.0), figures("lists", 0.1), figures("lists", 0.3)
    before = honest["on"]["p_click"]
    assert few["on"]["p_click"] - before < 0.5 * (few["off"]["p_click"] - before)
    # Four times the clicks do no more with the caps, as they do without them
    assert many["on"]["p_click"] < few["on"]["p_click"] + 0.1
    assert many["off"]["p_click"] > few["off"]["p_click"] + 0.1


def test_clicks_in_forged_lists_of_one_item_count_for_less_than_one_a_client() -> None:
    honest, forged = figures("none", 0.0)["on"], figures("one_item_lists", 0.1)
    assert forged["off"]["rank"] < 0.5 * honest["rank"]
    assert forged["on"]["rank"] > 0.6 * honest["rank"]


def test_attackers_have_their_share_and_click_nothing_but_their_item() -> None:
    world = invented_shop(seed=0)
    target = Target.of(world)
    visits = list(traffic(world, target, "lists", lists=1000, share=0.1, seed=0))
    attacks = [visit for visit, client in visits if client.startswith("bot")]
    assert len(attacks) / len(visits) == pytest.approx(0.1, abs=0.03)
    assert len({client for _, client in visits if client.startswith("bot")}) == 3
    for visit in attacks:
        clicked = [visit.query.products[i].id for i in visit.shown[visit.clicked]]
        assert clicked == [target.product.id]
        assert visit.query.grades[visit.shown[visit.clicked]].tolist() == [0.0]
    honest = [v for v, client in visits if not client.startswith("bot")]
    alone = [v for v, _ in traffic(world, target, "none", lists=1000, share=0.1, seed=0)]
    assert [v.shown.tolist() for v in honest] == [v.shown.tolist() for v in alone]
    assert all(np.array_equal(a.clicked, b.clicked) for a, b in zip(honest, alone, strict=True))


def test_off_takes_every_cap_away() -> None:
    assert msgspec.to_builtins(OFF) != {}
    off = run(load(None, {}, _SMALL), lists=30, share=0.5, seeds=1, attacks=("one_item_lists",))
    assert off["one_item_lists"]["off"]["discounted"] == 0
    assert off["one_item_lists"]["on"]["discounted"] > 0
