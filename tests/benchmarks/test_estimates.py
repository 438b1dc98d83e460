"""The page of what learning a batch at once costs: paired predictions, batches of whole lists."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import estimates, weigh
from benchmarks.importance_streams import KINDS, Stream


def test_batches_are_whole_lists_in_order() -> None:
    lists = [shown.samples for shown in Stream(KINDS["clean"], num_lists=12, seed=0).lists()]
    found = list(estimates.batches(lists, 25))
    assert [len(batch) for batch in found] == [30, 30, 30, 30]
    assert [s for batch in found for s in batch] == [s for own in lists for s in own]
    assert [len(batch) for batch in estimates.batches(lists, 50)] == [50, 50, 20]


def test_a_difference_is_the_mean_over_samples_with_an_interval_over_lists() -> None:
    lists = np.repeat(np.arange(30.0), 4)
    mean, low, high = estimates.paired(np.where(lists < 15, 1.0, 0.0), lists)
    assert (mean, low < 0.5 < high) == (0.5, True)
    assert estimates.paired(np.full(120, 0.25), lists) == [0.25, 0.25, 0.25]


def test_both_kinds_are_compared_on_one_stream(capsys: pytest.CaptureFixture[str]) -> None:
    estimates.main(["--lists", "60", "--kind", "clean", "--batch-size", "100"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["streams"]["clean"]
    assert found["samples"] == 600
    losses = [found[kind]["log_loss"] for kind in estimates.UPDATES]
    assert found["batch_less_list"][0] == pytest.approx(losses[1] - losses[0], abs=2e-5)
    assert losses[0] != losses[1]


def test_weighing_is_timed_for_both_kinds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["weigh", "--num-samples", "200", "--repeats", "2"])
    weigh.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {kind: len(own) for kind, own in found["us_per_sample"].items()} == {
        "list": 2,
        "batch": 2,
    }
    assert all(ratio > 0 for ratio in found["list_over_batch"])
