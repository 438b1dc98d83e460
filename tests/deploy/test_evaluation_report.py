"""The report of an evaluation: one page without scripts, which says what there is and is not."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest

from deploy.admin.evaluate import evaluate
from deploy.errors import UsageError
from learner.artifact import Store
from learner.evaluation.evaluation import Evaluation
from learner.store.checkpoint import Checkpointer
from learner.version_layout import EVALUATIONS
from tests.fakes.disk import FaultyDisk
from tests.fakes.paper import Paper
from tests.learner.judging import shop
from tests.learner.saving import cut, files, start

HOSTILE = '</title><script>document.title="taken over"</script>&<b>'
VOID = {"meta"}


class Page(HTMLParser):
    """Elements, texts and links of a page; refuses tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.labels: list[str] = []
        self.links: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.links += [str(found[name]) for name in ("src", "href") if name in found]
        if tag == "svg":
            self.labels.append(str(found["aria-label"]))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def store_of(root: Path, *states: dict[str, Evaluation]) -> Store:
    disk, times = FaultyDisk(), iter(range(1_700_000_000, 1_800_000_000, 60))
    learner = Checkpointer(root, disk, lambda: float(next(times)))
    start(learner, root, disk)
    for step, tasks in enumerate(states, 1):
        state = msgspec.msgpack.encode({task: own.snapshot() for task, own in tasks.items()})
        learner.announce(learner.save({**files(step), EVALUATIONS: state}, cut(step)))
    return Store(root)


def evaluated(number: int = 400, scenario: str = "search") -> Evaluation:
    """Scores that know the truth, of a shop that sorts at random."""
    shown = shop(number)
    names = [(scenario, "gifts")[i % 2] for i in range(number)]
    earlier = [(0, 5)[i % 2] for i in range(number)]
    score = np.log(shown.relevance)
    return shown.judge(score, scenario=names, num_earlier=earlier)


def page_of(store: Store, root: Path, since: str | None = None) -> Page:
    report, paper = root / "report.html", Paper()
    assert evaluate(store, "@announced", since, paper.output(), report=report) == 0
    assert str(report) in "\n".join(paper.reported)
    return Page(report.read_text(encoding="utf-8"))


def test_the_page_shows_every_chart_and_the_verdict(tmp_path: Path) -> None:
    page = page_of(store_of(tmp_path / "store", {"click": evaluated()}), tmp_path)
    assert page.labels == [
        "click: gain over time",
        "click: Gain by lists that the query had before",
        "click: Gain by scenario",
        "click: reliability",
        "click: weights",
    ]
    assert "our order is better" in page.text
    for name in ("search", "gifts", "1-9", "v000002", "ndcg_gain"):
        assert name in page.text
    assert "script" not in page.tags
    assert page.links == []


def test_a_stretch_has_only_its_own_samples(tmp_path: Path) -> None:
    before, after = evaluated(), Evaluation()
    after.restore(before.snapshot())
    shown = shop(400, seed=5)
    worse = -np.log(shown.relevance)
    shown.judge(worse, into=after, scenario=["sales"] * 400, num_earlier=[0] * 400)
    store = store_of(tmp_path / "store", {"click": before}, {"click": after})
    page = page_of(store, tmp_path, since="v000002")
    assert "the shop's order is better" in page.text
    assert "samples after v000002" in page.text
    assert "sales" in page.text
    assert not {text for text in page.texts if "gifts" in text}


def test_nothing_that_data_says_becomes_markup(tmp_path: Path) -> None:
    page = page_of(store_of(tmp_path / "store", {"click": evaluated(scenario=HOSTILE)}), tmp_path)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.tags.count("title") > 1
    assert any(
        text.startswith('</title><script>document.title="taken over"') for text in page.texts
    )


def test_an_evaluation_without_samples_says_so(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {"click": Evaluation(), "purchase": Evaluation()})
    page = page_of(store, tmp_path)
    assert page.texts.count("No samples yet.") == 2
    assert page.labels == []


def test_a_few_lists_are_no_verdict(tmp_path: Path) -> None:
    page = page_of(store_of(tmp_path / "store", {"click": evaluated(3)}), tmp_path)
    assert "Too few lists" in page.text
    assert "Nothing to show yet." in page.text


def test_a_report_that_cannot_be_written_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {"click": evaluated(30)})
    report = tmp_path / "no folder" / "report.html"
    with pytest.raises(UsageError, match=r"--report: .*report\.html"):
        evaluate(store, "@announced", None, Paper().output(), report=report)


def test_a_browser_shows_the_page_and_runs_nothing_of_it(tmp_path: Path) -> None:
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((found for name in names if (found := shutil.which(name))), None)
    if chromium is None:
        pytest.skip("no chromium on PATH (apt-get install chromium): the page was not opened")
    page_of(store_of(tmp_path / "store", {"click": evaluated(scenario=HOSTILE)}), tmp_path)
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command += [f"file://{tmp_path / 'report.html'}"]
    shown = subprocess.run(command, capture_output=True, check=True, text=True, timeout=120).stdout
    assert "<title>Evaluation of v000002</title>" in shown
    assert shown.count("<svg") == 5
    assert "our order is better" in shown
