"""Tracking: real files read back, no step twice, no byte of a version, errors that only count."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.errors import TrackerMissing
from learner.request import Document, ScoringInput
from learner.scorer import load_scorer
from learner.tracking.background import Background
from learner.tracking.config import TrackingConfig
from learner.tracking.record import Record
from learner.tracking.recorder import Recorder
from learner.tracking.start import start_recorder
from learner.tracking.table import table
from learner.tracking.tensorboard import TensorBoardTracker
from learner.trainer import Trainer
from learner.training.explained import ExplainedItem, ExplainedList
from learner.training_step import StepReport
from tests.fakes.clock import ManualClock
from tests.learner.tracked import Broken, Stuck, counted, events, offline_runs, record, scalars
from tests.learner.training import batches, lists, published, reader, trainer

STREAM = batches(6)
OFTEN = {"every_steps": 2, "details_every_steps": 4, "lists": 2}


def started(to: str, learner: Trainer, root: Path) -> Recorder:
    config = TrackingConfig(to=to, **OFTEN)  # type: ignore[arg-type]
    return start_recorder(config, learner, kind="learn", root=root, clock=ManualClock())


def tracked(
    to: str, learner: Trainer, root: Path, stream: Sequence[int] = range(6)
) -> list[StepReport]:
    """Take steps and track them."""
    recorder, reports = started(to, learner, root), []
    for number in stream:
        reports.append(learner.step(STREAM[number]))
        recorder.stepped(reports[-1])
    recorder.close(120.0)
    return reports


def mean_loss(reports: Sequence[StepReport]) -> float:
    sizes = [len(report.weighted.samples) for report in reports]
    return float(np.average([report.loss for report in reports], weights=sizes))


# --- TensorBoard ---


def test_tensorboard_reads_curves_histograms_and_explained_lists(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    reports = tracked("tensorboard", learner := trainer(), tmp_path)
    folder = tmp_path / "tracking" / "learn"
    losses = scalars(folder, "loss")
    assert [step for step, _ in losses] == [2, 4, 6]
    means = [mean_loss(reports[n : n + 2]) for n in (0, 2, 4)]
    assert [loss for _, loss in losses] == pytest.approx(means, rel=1e-6)
    step, rate = scalars(folder, "learning_rate/encoder")[-1]
    assert step == 6
    assert rate == pytest.approx(1e-3)
    assert scalars(folder, "samples")[-1] == (6, learner.num_samples)
    logged = {name.removeprefix("evaluation/") for name in events(folder).Tags()["scalars"]}
    finite = {name for name, value in learner.evaluation().items() if np.isfinite(value)}
    assert finite <= logged

    found = events(folder)
    named = {name for name, p in learner.ranker.named_parameters() if p.requires_grad}
    assert {f"parameters/{name}" for name in named} <= set(found.Tags()["histograms"])
    (weights,) = found.Histograms("importance/click")
    (report,) = [report for report in reports if report.step == 4]
    clicks = report.weighted.weight[[s.task == "click" for s in report.weighted.samples]]
    assert (weights.step, weights.histogram_value.num) == (4, len(clicks))
    assert weights.histogram_value.sum == pytest.approx(clicks.sum(), rel=1e-6)

    (text,) = found.Tensors("predictions/1/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert text.step == 4
    assert report.explained[0].query in shown
    assert all(item.item_id in shown for item in report.explained[0].items)


def test_after_a_crash_no_step_has_two_values_and_the_later_one_counts(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    first, second = trainer(), trainer()
    recorder = started("tensorboard", first, tmp_path)
    for number in range(3):
        recorder.stepped(first.step(STREAM[number]))
    files = first.files()
    for number in (3, 4, 5):
        recorder.stepped(first.step(STREAM[number]))
    recorder.close(120.0)  # but the last checkpoint is of step 3

    second.restore(reader(files))
    again = tracked("tensorboard", second, tmp_path, (5, 4, 3))
    losses = scalars(tmp_path / "tracking" / "learn", "loss")
    assert [step for step, _ in losses] == [2, 4, 6]
    assert losses[1][1] == pytest.approx(again[0].loss, rel=1e-6)  # of step 4 alone
    assert losses[2][1] == pytest.approx(mean_loss(again[1:]), rel=1e-6)


def test_a_file_is_read_after_those_before_it_though_the_clock_stands(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for after_step, loss in ((0, 1.0), (4, 2.0), (1, 3.0)):
        tracker = TensorBoardTracker(tmp_path, after_step=after_step, now_seconds=50.0)
        tracker.write(record(after_step + 1, loss=loss))
        tracker.close()
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 3.0)]


def test_half_a_record_at_the_end_of_a_file_hides_nothing_that_comes_after(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for step in (1, 2):
        tracker = TensorBoardTracker(tmp_path, after_step=step - 1, now_seconds=step)
        tracker.write(record(step))
        tracker.close()
        if step == 1:
            (path,) = tmp_path.iterdir()
            path.write_bytes(path.read_bytes() + b"\x20\x00\x00\x00")
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 1.0)]


# --- Weights & Biases ---


def test_an_offline_run_of_wandb_holds_the_same_and_a_later_start_is_a_run_of_its_own(
    tmp_path: Path,
) -> None:
    pytest.importorskip("wandb")
    reports = tracked("wandb", learner := trainer(), tmp_path, range(4))
    tracked("wandb", learner, tmp_path, (4, 5))
    first, second = offline_runs(tmp_path / "tracking")
    assert [own["name"] for own in (first, second)] == ["learn after step 0", "learn after step 4"]
    assert first["group"] == second["group"] == tmp_path.name
    assert [row["_step"] for row in first["history"]] == [2, 4]
    assert [row["_step"] for row in second["history"]] == [6]
    assert first["history"][1]["loss"] == pytest.approx(mean_loss(reports[2:4]))
    assert "evaluation/click_log_loss" in first["history"][1]
    counts = first["history"][1]["importance/click.values"]
    assert sum(counts) == sum(s.task == "click" for s in reports[3].weighted.samples)
    shown = (first["files"] / first["history"][1]["predictions/1.path"]).read_text()
    assert reports[3].explained[0].query in shown


# --- what it may not do ---


@pytest.mark.parametrize("to", ["tensorboard", "wandb"])
def test_tracking_changes_no_byte_of_a_version(tmp_path: Path, to: str) -> None:
    pytest.importorskip(to)
    plain, other = trainer(dropout=0.1), trainer(dropout=0.1)
    for samples in STREAM:
        plain.step(samples)
    tracked(to, other, tmp_path)
    assert other.files() == plain.files()


def test_nothing_is_tracked_by_default(tmp_path: Path) -> None:
    (report, *_) = tracked("none", trainer(), tmp_path, (0,))
    assert report.explained == ()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_without_the_library_the_setting_names_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    message = rf'tracking\.to: {name} needs {name}.*pip install "steelyard\[{name}\]"'
    with pytest.raises(TrackerMissing, match=message):
        started(name, trainer(), tmp_path)


# --- errors ---


def background(open_tracker: Broken, folder: Path, *, size: int = 10**9) -> tuple[Background, dict]:  # type: ignore[type-arg]
    found, count = counted()
    own = Background(open_tracker, folder=folder, after_step=0, max_size_bytes=size, counted=count)
    return own, found


def test_a_full_disk_is_counted_and_told_once_and_the_tracker_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    broken = Broken(failing=(2, 3, 4, 6))
    out, found = background(broken, tmp_path)
    for step in range(1, 9):  # as many as the queue takes
        out.put(record(step))
    out.close(120.0)
    # 2 fails; 3 at once after it; then one is skipped, 4; 5 is written; 6 is the first again
    assert broken.written == [1, 5, 7, 8]
    assert broken.opened == [0, 2, 3, 6]
    assert broken.num_closed == len(broken.opened)
    assert found == {"written": 4, "failed": 4}
    told = [r.levelname for r in caplog.records if "tracking" in r.message]
    assert told == ["WARNING", "INFO", "WARNING", "INFO"]


def test_a_folder_that_cannot_be_made_stops_no_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tracking").write_text("a file")
    reports = tracked("tensorboard", trainer(), tmp_path)
    assert [report.result for report in reports] == ["ok"] * 6


def test_a_tracker_that_hangs_holds_nothing_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = Stuck()
    out, found = background(stuck, tmp_path)
    out.put(record(1))
    stuck.began.wait()
    for step in range(2, 21):
        out.put(record(step))
    assert found == {"busy": 11}
    out.close(timeout_seconds=0.0)
    assert "tracking does not end" in caplog.text
    stuck.goes_on.set()
    out._thread.join(0.1)
    assert stuck.written[:2] == [1, 2]


def test_a_folder_of_its_full_size_gets_nothing_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "old").write_bytes(bytes(1000))
    broken = Broken()
    out, found = background(broken, tmp_path, size=1000)
    out.put(record(1))
    out.put(record(2))
    out.close(120.0)
    assert found == {"limit": 2}
    assert broken.opened == []
    assert caplog.text.count("tracking.max_size") == 1


def test_numbers_that_are_not_finite_are_left_out_of_records(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    recorder = started("tensorboard", trainer(), tmp_path)
    recorder.figures({"dev/ndcg": float("nan"), "dev/auc": 0.5})
    recorder.close(120.0)
    names = events(tmp_path / "tracking" / "learn").Tags()["scalars"]
    assert names == ["dev/auc"]


# --- explained predictions ---


@pytest.mark.parametrize("seed", range(3))
def test_an_explained_list_is_what_the_version_before_would_have_served(
    tmp_path: Path, seed: int
) -> None:
    learner = trainer()
    for samples in batches(8, seed=5):
        learner.step(samples)
    version = published(learner, tmp_path)
    samples = lists(1, seed=seed, start=500)
    learner.num_explained = 3
    (own,) = learner.step(samples).explained
    scorer = load_scorer(version.path, version.name, threads=1)
    shown = [s for s in samples if s.list_id == own.list_id and s.task == "click"]
    documents = tuple(Document(id=s.item_id, text=s.text, attributes=s.attributes) for s in shown)
    client = shown[0].client
    (scores,) = scorer.score([ScoringInput(query=own.query, documents=documents, client=client)])
    order = np.argsort(-scores.score, kind="stable")
    assert [item.item_id for item in own.items] == [shown[at].item_id for at in order]
    assert [item.score for item in own.items] == pytest.approx(scores.score[order], rel=1e-6)
    for item, at in zip(own.items, order, strict=True):
        parts = {name: added[at] for name, added in scores.contributions.items()}
        assert item.contributions == pytest.approx(parts, abs=1e-6)
        assert sum(item.contributions.values()) == pytest.approx(item.logit)
        assert item.clicked == bool(shown[at].label)


class Cells(HTMLParser):
    """Cells of a table's rows, and every tag that was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and data.strip():
            self.rows[-1][-1] += data


@given(st.text(st.characters(codec=None), max_size=200), st.text(st.characters(codec=None)))
def test_any_text_is_one_cell_of_the_table(text: str, query: str) -> None:
    item = ExplainedItem(
        item_id="SKU",
        text=text,
        position=None,
        clicked=True,
        score=0.25,
        logit=1.0,
        contributions={"silent": 0.0, "metric": 1.0},
    )
    html = table(ExplainedList(list_id="l", query=query, items=(item, item)))
    html.encode()  # no half of a surrogate pair
    cells = Cells()
    cells.feed(html)
    cells.close()
    assert cells.tags == {"p", "b", "table", "tr", "th", "td"}
    assert cells.rows[0] == ["item", "text", "shown at", "clicked", "score", "logit", "metric"]
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    assert cells.rows[1][1] == (line if len(line) <= 80 else line[:79] + "…")
    assert cells.rows[1] == cells.rows[2]
    assert cells.rows[1][2:] == ["", "yes", "0.25", "+1.000", "+1.000"]


def test_a_record_holds_finite_numbers_only() -> None:
    with pytest.raises(AssertionError):
        Record(step=1, time_seconds=0.0, scalars={"loss": float("inf")})
