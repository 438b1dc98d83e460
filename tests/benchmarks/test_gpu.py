"""The checks of a GPU, on their twins, and that they see what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gpu
from benchmarks.accelerating import checks
from benchmarks.accelerating.found import Found
from benchmarks.accelerating.model import Shape, ragged
from benchmarks.accelerating.twin import Repeating
from learner.passes.varlen import text_by_text


def test_the_self_test_passes_on_its_twins_and_measures_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu", "--self-test", "--device", "cpu"])
    gpu.main()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("ok ") for line in lines) == len(checks.CHECKS)
    assert json.loads(lines[-1]) == {"self_test": "ok", **dict.fromkeys(gpu.FIGURES)}


def run(name: str) -> list[str]:
    said: list[str] = []
    assert not checks.run_all("cpu", said.append)
    return [line for line in said if line.startswith("FAILED") and name in line]


def test_a_kernel_that_looks_at_neighbours_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed(query: Tensor, key: Tensor, value: Tensor, bounds: Any, **options: Any) -> Tensor:
        found = text_by_text(query, key, value, bounds, **options)
        return found + value.abs().mean(0)

    monkeypatch.setattr(checks, "_kernel", lambda device: mixed)
    assert run("attention in one kernel")
    assert run("vectors of flat passes")


def test_captures_that_forget_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "Repeating", lambda: Repeating(forgets=True))
    (line,) = run("captured steps")
    assert "switched off" in line


def test_a_check_that_raises_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(device: str) -> Found:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setitem(checks.CHECKS, "attention in one kernel", raises)
    (line,) = run("attention")
    assert "illegal memory access" in line


def test_nan_is_no_agreement() -> None:
    assert not Found(float("nan"), 1.0).ok


def test_operations_are_those_of_the_formula() -> None:
    assert Shape(12, 768).flop([64]) / 64 == pytest.approx(516.7e6, rel=1e-3)
    batch = ragged(16_384, seed=0)
    assert sum(batch.lengths) == 16_384
    assert max(batch.lengths) <= 128
    assert torch.isfinite(batch.weights).all()
