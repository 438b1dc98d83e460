"""The host benchmark: a log in memory that becomes samples, and parts that all cost something."""

from __future__ import annotations

from benchmarks.host import batches, parts, samples_per_second
from benchmarks.host_log import shop
from learner.config import LearnerConfig
from weighting.sample import CopyKind

TINY = {"model": "random:1x32", "batch_size": 40, "max_tokens": 16}


def test_lists_of_the_log_become_samples_with_clicks_and_texts() -> None:
    values = shop(120, num_items=50)
    found = [s for batch in batches(values, LearnerConfig(**TINY)) for s in batch.samples]  # type: ignore[arg-type]
    shown = {(s.list_id, s.item_id) for s in found if s.task == "click"}
    assert len(shown) > 400
    for task in ("click", "purchase"):
        assert {s.label for s in found if s.task == task} == {0, 1}
    assert {s.copy_kind for s in found} == set(CopyKind)
    assert all(s.text and s.attributes for s in found)


def test_every_part_is_measured_and_running_ahead_learns_the_same() -> None:
    values = shop(120, num_items=50)
    found = parts(values, LearnerConfig(**TINY))  # type: ignore[arg-type]
    assert set(found) == {
        *("decode and join", "tokenise", "encode ahead", "weigh"),
        *("prequential", "residual", "report", "model"),
    }
    assert min(found.values()) > 0
    losses = [
        samples_per_second(values, LearnerConfig(**TINY, run_ahead=ahead))[1]  # type: ignore[arg-type]
        for ahead in (False, True)
    ]
    assert losses[0] == losses[1] > 0
