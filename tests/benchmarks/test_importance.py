"""The page of where weights pay: its streams are as described, its differences are paired."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import importance
from benchmarks.importance_streams import KINDS, Kind, Shown, Stream


def shown(kind: Kind, number: int, seed: int = 0) -> list[Shown]:
    return list(Stream(kind, num_lists=number, seed=seed).lists())


def click_rate(kind: Kind) -> float:
    lists = shown(kind, 400)
    return float(np.mean([s.label for each in lists for s in each.samples]))


def test_a_stream_is_a_function_of_its_seed() -> None:
    one, same, other = (shown(KINDS["bots"], 20, seed) for seed in (1, 1, 2))
    assert [each.samples for each in one] == [each.samples for each in same]
    assert [each.samples for each in one] != [each.samples for each in other]
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a.products, b.products)


def test_each_kind_has_its_own_trouble() -> None:
    rates = {name: click_rate(KINDS[name]) for name in ("clean", "accidents", "imbalance")}
    assert rates["imbalance"] < 0.5 * rates["clean"]
    assert rates["accidents"] > rates["clean"] + 0.005
    bots = [sum(s.label for s in each.samples) for each in shown(Kind(level=-20, bots=0.2), 500)]
    assert set(bots) == {0, 3}
    assert np.mean(np.array(bots) == 3) == pytest.approx(0.2, abs=0.06)
    assert len(shown(KINDS["few"], 100)) == 20


def test_drift_changes_what_is_worth_and_nothing_else_does() -> None:
    for kind, changes in (("drift", True), ("clean", False)):
        stream = Stream(KINDS[kind], num_lists=10, seed=3)
        before = stream.worth(stream.products)
        list(stream.lists())
        assert bool((before != stream.worth(stream.products)).any()) == changes


def test_clicks_are_as_probable_as_worth_and_place_say() -> None:
    stream = Stream(KINDS["clean"], num_lists=1500, seed=0)
    expected, clicks = np.zeros(10), np.zeros(10)
    for each in stream.lists():
        expected += stream.worth(each.products) / np.arange(1, 11)
        clicks += [s.label for s in each.samples]
    np.testing.assert_allclose(clicks, expected, atol=5 * np.sqrt(expected.max()))
    assert clicks.sum() == pytest.approx(expected.sum(), abs=4 * np.sqrt(expected.sum()))


def test_an_interval_is_of_differences_paired_by_seed() -> None:
    seeds = np.random.default_rng(0).normal(size=(20, 1))
    figures = seeds + np.array([0.0, 0.1, -0.2])
    found = importance.difference(figures)
    assert found == [[0.0, 0.0, 0.0], [0.1, 0.1, 0.1], [-0.2, -0.2, -0.2]]
    wide = importance.difference(np.array([[0.0, 1.0], [0.0, 3.0]]))[1]
    assert wide[0] == 2.0
    assert wide[1] < 0 < wide[2]


def test_the_benchmark_runs_and_its_last_line_is_an_object(
    capsys: pytest.CaptureFixture[str],
) -> None:
    importance.main(["--lists", "40", "--seeds", "2", "--kind", "clean"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = report["streams"]["clean"]
    assert sum(found["in_force"].values()) == 2
    assert 0 < found["ndcg"]["uniform"] <= 1
    assert set(found["log_loss"]["difference"]) == set(importance.SCHEMES[1:])
    ranked = [mean for mean, _, _ in found["ndcg"]["difference"].values()]
    assert any(ranked)  # the schemes are told apart
