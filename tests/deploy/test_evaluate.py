"""`steelyard evaluate`: figures of a stretch of the stream are those of its samples alone."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from deploy.admin.evaluate import evaluate
from deploy.errors import UsageError
from deploy.settings.units import format_time
from learner.artifact import Store
from learner.evaluation.evaluation import Evaluation
from learner.evaluation.rankings import RATIOS
from learner.parts.attributes import figures
from learner.store.checkpoint import Checkpointer
from learner.version_layout import EVALUATIONS
from tests.fakes.disk import FaultyDisk
from tests.fakes.paper import Paper
from tests.learner.judging import Array, Shop, shop
from tests.learner.saving import cut, files, owner, start
from weighting.estimators.attribute_choice import Coefficients

SEEDS = (0, 1, 2)


def score_of(shown: Shop, knowing: float) -> Array:
    noise = np.random.default_rng(9).normal(size=shown.relevance.shape)
    score: Array = knowing * np.log(shown.relevance) + noise - 2
    return score


def versions(root: Path) -> Store:
    """Versions after one, two and three shops; what is served knows more each time."""
    evaluation, disk = Evaluation(), FaultyDisk()
    times = iter(range(1_700_000_000, 1_800_000_000, 60))
    learner = Checkpointer(root, disk, lambda: float(next(times)))
    start(learner, root, disk)
    for step, seed in enumerate(SEEDS, 1):
        shown = shop(400, seed=seed)
        shown.judge(score_of(shown, step - 1.0), into=evaluation)
        state = msgspec.msgpack.encode({"click": evaluation.snapshot()})
        learner.announce(learner.save({**files(step), EVALUATIONS: state}, cut(step)))
    return Store(root)


def test_what_came_before_is_left_out(tmp_path: Path) -> None:
    store, paper = versions(tmp_path), Paper()
    newest, (_, second, _) = store.version("v000004"), store.versions()[-3:]
    last = shop(400, seed=SEEDS[-1])
    alone = last.judge(score_of(last, 2.0)).get()
    for since in ("v000003", format_time(second.created_us)):
        assert evaluate(store, "@announced", since, paper.output(as_json=True)) == 0
        found = paper.objects[-1]
        assert (found["version"], found["since"]) == (newest.name, second.name)
        assert found["tasks"]["click"]["num_samples"] == alone["num_samples"]
        for figure in RATIOS[:-1]:  # the last one's baseline knows the positions by then
            for end in ("", "_low", "_high"):
                name = figure + end
                assert found["tasks"]["click"][name] == pytest.approx(alone[name]), name
    assert evaluate(store, "@announced", None, paper.output(as_json=True)) == 0
    whole = paper.objects[-1]["tasks"]["click"]
    assert whole["num_samples"] == 3 * alone["num_samples"]
    assert whole["within_list_auc"] < alone["within_list_auc"]


def test_the_table_shows_our_order_beside_the_shop_s(tmp_path: Path) -> None:
    store, paper = versions(tmp_path), Paper()
    assert evaluate(store, "@announced", None, paper.output()) == 0
    text = paper.text
    for name in ("ndcg ", "shown_ndcg ", "ndcg_gain ", "v000004, all samples"):
        assert name in text


def test_a_stretch_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    store, paper = versions(tmp_path), Paper()
    with pytest.raises(UsageError, match="v000002 does not continue v000004"):
        evaluate(store, "v000002", "v000004", paper.output())
    with pytest.raises(UsageError, match="v000004 has no samples after itself"):
        evaluate(store, "@announced", "2060-01-01", paper.output())
    with pytest.raises(UsageError, match="the oldest version that is kept was made at"):
        evaluate(store, "@announced", "2001-01-01T00:00:00Z", paper.output())


def test_a_state_of_another_format_is_refused_by_version(tmp_path: Path) -> None:
    learner = owner(tmp_path)
    state = msgspec.msgpack.encode({"click": b"\x81\xa6format\x02"})
    learner.announce(learner.save({**files(1), EVALUATIONS: state}, cut(1)))
    with pytest.raises(UsageError, match=r"v000002: evaluation snapshot: got format 2"):
        evaluate(Store(tmp_path), "@announced", None, Paper().output())


def test_it_says_how_much_each_attribute_counts(tmp_path: Path) -> None:
    learner, paper, report = owner(tmp_path), Paper(), tmp_path / "report.html"
    state = msgspec.msgpack.encode({"click": Evaluation().snapshot()})
    counts = {"brand": Coefficients(0.8, 0.1, -0.05, 0.25), "error:a": Coefficients(0, 1, 0, 1)}
    metadata = cut(1, evaluation={"click_log_loss": 0.25, **figures(counts)})
    learner.announce(learner.save({**files(1), EVALUATIONS: state}, metadata))
    store = Store(tmp_path)
    assert evaluate(store, "@announced", None, paper.output(), report=report) == 0
    assert "brand      any query   +0.80   0.60 to 1.00" in paper.text
    assert "brand      its words   -0.05   -0.54 to 0.44" in paper.text
    assert "brand, any query: +0.8000 (+0.6040 to +0.9960)" in report.read_text(encoding="utf-8")
    paper = Paper()
    evaluate(store, "@announced", None, paper.output(as_json=True))
    assert paper.objects[-1]["attributes"] == {n: c._asdict() for n, c in counts.items()}
