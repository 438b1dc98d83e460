"""The serving benchmark: its questions, its gates, and what it makes of seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import rank
from benchmarks.accelerating import timing
from benchmarks.answering.contender import CONTENDERS
from benchmarks.answering.model import write_model
from benchmarks.answering.questions import MOST_TOKENS, asked_again, questions
from benchmarks.answering.steelyard import Steelyard
from benchmarks.peers.child import Child
from learner.encoder.load import load_pretrained

_GRADES = [np.array([0.0, 0.2, 0.6, 1.0]), np.array([1.0, 0.0, 0.0, 0.6])]
_RIGHT = [grades.tolist() for grades in _GRADES]


def _judged(**changes: Any) -> dict[str, dict[str, Any]]:
    """Return answers of all contenders, perfect but for the changes."""
    perfect = {"scores": _RIGHT, "logits": _RIGHT}
    ours = {**perfect, "largest_change": 0.0}
    found = {n: ours if n.startswith("steelyard") else perfect for n in CONTENDERS}
    return found | {name: {**found[name], **change} for name, change in changes.items()}


def _failed(**changes: Any) -> list[str]:
    return [name for name, row in rank.gate(_judged(**changes), _GRADES).items() if not row["ok"]]


def test_a_title_has_as_many_tokens_as_words_of_the_stated_distribution() -> None:
    tokenizer = load_pretrained("minilm-l6:1").tokenizer
    titles = [title for own in questions(10, titles=100, seed=3) for title in own.titles]
    lengths = np.array([len(title.split()) for title in titles])
    assert lengths.tolist() == [len(tokenizer.tokenize(title)) for title in titles]
    assert lengths.mean() == pytest.approx(40, abs=2)
    assert lengths.max() <= MOST_TOKENS
    assert np.std(np.log(lengths)) == pytest.approx(0.6, abs=0.05)


def test_the_same_seed_asks_the_same_and_another_asks_of_other_titles() -> None:
    first, again, other = (questions(3, titles=20, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert not {t for q in first for t in q.titles} & {t for q in other for t in q.titles}


def test_asked_again_are_the_same_titles_under_another_query() -> None:
    own = questions(1, titles=20, seed=1)[0]
    again = asked_again(own, seed=5)
    assert again.titles == own.titles
    assert again.query != own.query


def test_a_title_of_the_kind_colour_and_material_asked_for_has_the_best_grade() -> None:
    for own in questions(5, titles=50, seed=4):
        colour, material, kind = own.query.split()
        for title, grade in zip(own.titles, own.grades, strict=True):
            words = title.split()
            assert (grade == 1) == all(word in words for word in (colour, material, kind))
            assert grade == 0 or kind in words


def test_perfect_answers_pass_every_gate() -> None:
    assert _failed() == []


def _backwards(rankings: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[-score for score in ranking] for ranking in rankings]


@pytest.mark.parametrize("name", sorted(set(rank.EXACT) - set(rank.EXACT.values())))
def test_another_order_than_in_float32_voids_a_contender(name: str) -> None:
    assert _failed(**{name: {"logits": _backwards(_RIGHT)}}) == [name]


def test_quality_has_moved_if_it_did_by_more_than_chance_explains() -> None:
    expected = np.linspace(0.2, 0.9, 8)
    assert not rank.moved(expected, expected)
    assert not rank.moved(expected * 0.995, expected)
    assert rank.moved(expected - 0.05, expected)
    assert not rank.moved(expected + 0.1 * np.array([1, -1, 1, -1, 1, -1, 1, 0]), expected)


def test_logits_that_only_order_alike_are_not_the_weights_of_the_peer() -> None:
    stretched = [[3 * score for score in ranking] for ranking in _RIGHT]
    assert _failed(steelyard_float32={"logits": stretched}) == ["steelyard_float32"]


def test_a_score_that_depends_on_its_neighbours_voids_the_contender() -> None:
    assert _failed(steelyard={"largest_change": 1e-4}) == ["steelyard"]


def _round(**milliseconds: tuple[float, float]) -> dict[str, dict[str, Any]]:
    """Return a round in which each contender takes a second, but for some: cold, warm."""
    found = {}
    for name in CONTENDERS:
        cold, warm = milliseconds.get(name, (1_000.0, 1_000.0))
        wall = {"cold": [cold / 1e3] * 3, "warm": [warm / 1e3] * 3}
        found[name] = {**wall, "cold_cpu": [6.0] * 3, "warm_cpu": [3.0] * 3}
    return found


def test_ratios_are_paired_by_round_and_above_one_where_ours_is_faster() -> None:
    rounds = [
        _round(steelyard_int8=(500 * load, 100 * load), openvino_int8=(150 * load, 120 * load))
        for load in (1, 3, 2)
    ]
    found = rank.report(rounds, rank.gate(_judged(), _GRADES))
    assert found["ratio_to_openvino_int8"] == pytest.approx(1.2)
    assert found["ratio_to_openvino_int8_interval"] == pytest.approx([1.2, 1.2])
    assert found["ratio_to_openvino_int8_cold"] == pytest.approx(0.3)
    assert found["ratio_to_openvino_int8_cpu"] == 1
    assert found["milliseconds"]["steelyard_int8"]["warm_p50"] == pytest.approx(200)
    assert found["void"] == []


def test_what_failed_its_gate_is_named() -> None:
    gates = rank.gate(_judged(openvino_int8={"logits": _backwards(_RIGHT)}), _GRADES)
    assert rank.report([_round()], gates)["void"] == ["openvino_int8"]


def test_the_interval_of_a_median_holds_it_and_grows_with_the_spread() -> None:
    narrow = timing.median_interval(np.array([1.0, 1.01, 0.99, 1.02, 0.98]))
    wide = timing.median_interval(np.array([1.0, 2.0, 0.5, 1.5, 0.7]))
    for middle, low, high in (narrow, wide):
        assert low <= middle <= high
    assert wide[2] - wide[1] > narrow[2] - narrow[1] > 0


def test_of_one_fit_there_are_two_precisions_and_equal_weights(tmp_path: Path) -> None:
    settings = {
        "learner.model": "minilm-l6:1",
        "learner.interaction": "cross_encoder",
        "learner.tuning": "full",
        "learner.batch_size": "8",
    }
    write_model(tmp_path, questions(4, titles=6, seed=0), settings)
    own = questions(2, titles=6, seed=1)
    exact, lowered = (Steelyard(tmp_path, name, threads=1) for name in ("float32", "bfloat16"))
    assert np.ptp(exact.logits(own[0])) > 0
    assert not np.array_equal(exact.cold(own[0]), lowered.cold(own[0]))
    np.testing.assert_allclose(exact.cold(own[0]), lowered.cold(own[0]), rtol=0.05)
    assert exact.largest_change(own) < 1e-6
    files = {path.name for path in (tmp_path / "plain").iterdir()}
    assert {"config.json", "head.json", "model.safetensors", "tokenizer.json"} <= files


def test_a_child_that_ends_is_named_with_its_code() -> None:
    child = Child("a peer", "this_module_is_not_there", [])
    with pytest.raises(SystemExit, match="a peer ended with code 1"), child:
        child.ask(1)


def test_a_child_answers_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys\nfor line in sys.stdin: print(f'{{\"said\": {line.strip()}}}', flush=True)\n"
    (tmp_path / "echo.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Child("echo", "echo", []) as child:
        assert [child.ask(number) for number in (1, 2)] == [{"said": 1}, {"said": 2}]
