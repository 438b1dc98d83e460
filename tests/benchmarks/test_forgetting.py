"""The forgetting benchmark: two streams one after the other, and paired differences."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.forgetting import Figures, main, row


def test_forgetting_is_the_fall_of_the_first_task_paired_by_query() -> None:
    draw = np.random.default_rng(0)
    learned, second = draw.random(60), draw.random(60)
    without = Figures(learned=learned, kept=learned - 0.2, second=second)
    found = row(Figures(learned=learned, kept=learned - 0.05, second=second - 0.01), without)
    assert found["forgetting"] == pytest.approx([0.05] * 3)
    assert found["forgetting_less_without"] == pytest.approx([-0.15] * 3)
    assert found["first_kept_over_without"] == pytest.approx([0.15] * 3)
    assert found["second_over_without"] == pytest.approx([-0.01] * 3)
    assert found["first_kept"] == pytest.approx(learned.mean() - 0.05, abs=1e-4)


def test_it_runs_and_prints_a_row_per_condition(capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "--set",
        "learner.model=random:1x32",
        "--set",
        "learner.lr=1e-3",
        "--lists",
        "40",
        "--queries",
        "12",
    ]
    assert main([*small, "--tuning", "full", "--share", "0.5"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = [(own["l2_sp"], own["share"], own["lists_kept"] > 0) for own in report["conditions"]]
    assert found == [(True, 0, False), (True, 0.5, True), (False, 0, False), (False, 0.5, True)]
    for own in report["conditions"]:
        assert np.isfinite(own["encoder"]["forgetting"]).all()
    off, on = report["conditions"][2:]
    assert off["encoder"]["first_kept"] != on["encoder"]["first_kept"]


def test_real_tasks_need_the_folder_of_their_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tasks", "shops"]) == 2
    assert "--source" in capsys.readouterr().err
