"""The learning benchmark: figures, baselines, and the product's own samples."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import learning
from benchmarks.learning_data.dataset import Item, ShownList
from benchmarks.learning_data.folder import read_folder
from benchmarks.learning_judging import product
from benchmarks.learning_judging.item_rates import ItemRates
from benchmarks.learning_judging.linear import LinearStack, whole_text
from benchmarks.learning_judging.listwise_fit import fit
from benchmarks.learning_judging.metrics import BASELINES, METHODS, expected_ndcg, ndcg, part_row
from deploy.settings.load import load
from learner.trainer import Trainer
from tests.benchmarks.folders import folder, tables
from weighting.sample import Attribute, Sample
from weighting.tasks import CLICK, PURCHASE

MODEL = "learner.model=random:1x32"


def _list(*clicked: bool, query: str = "q", positions: Any = None) -> ShownList:
    count = len(clicked)
    return ShownList(
        id="7",
        query=query,
        items=tuple("abcdefgh"[:count]),
        positions=positions or tuple(range(1, count + 1)),
        clicked=clicked,
        purchased=tuple(True if click else None for click in clicked),
    )


ITEMS = {name: Item(id=name, text=f"text {name}", attributes={"x": 1}) for name in "abcdefgh"}

# --- figures --------------------------------------------------------------------------------------


def test_ndcg_by_hand() -> None:
    grades = np.array([0.0, 2.0, 1.0])
    ideal = 3 + 1 / math.log2(3)
    assert ndcg(np.array([3.0, 2.0, 1.0]), grades) == pytest.approx(
        (3 / math.log2(3) + 1 / 2) / ideal
    )
    assert ndcg(np.array([1.0, 3.0, 2.0]), grades) == 1


def test_random_is_the_mean_over_all_orders() -> None:
    grades = np.array([2.0, 0.0, 1.0, 0.0])
    draw = np.random.Generator(np.random.PCG64(0))
    drawn = [ndcg(draw.random(4), grades) for _ in range(4000)]
    assert expected_ndcg(grades) == pytest.approx(np.mean(drawn), abs=0.01)
    long = np.array([1.0] + [0.0] * 19)
    expected = sum(1 / math.log2(place + 1) for place in range(1, 11)) / 20
    assert expected_ndcg(long) == pytest.approx(expected)


def test_the_gain_is_paired_and_over_the_best_baseline() -> None:
    draw = np.random.Generator(np.random.PCG64(0))
    bm25 = draw.random(500)
    figures = {method: np.zeros(500).tolist() for method in METHODS}
    figures |= {"bm25": bm25.tolist(), "served": (bm25 + 0.01).tolist()}
    row = part_row(figures)
    assert row["gain_over_best_baseline"] == [0.01, 0.01, 0.01]
    assert row["bm25"] == round(float(bm25.mean()), 4)
    assert row["random"] == 0


# --- baselines ------------------------------------------------------------------------------------


def test_item_rates_by_hand() -> None:
    rates = ItemRates(eta=1.0)
    shown = _list(True, False)
    rates.learn(shown, shown.clicked)
    mean = (1 + 1) / (1.5 + 10)
    expected = np.log([(1 + 10 * mean) / 11, 10 * mean / 10.5, mean])
    assert rates.log_rates(["a", "b", "c"]) == pytest.approx(expected)


def test_the_fit_finds_the_coefficients_of_the_clicks_and_the_decline_of_positions() -> None:
    draw = np.random.Generator(np.random.PCG64(0))
    num_lists, size, eta = 20_000, 5, 0.7
    features = draw.normal(size=(num_lists * size, 2))
    decline = np.tile(-np.log(np.arange(1, size + 1)), num_lists)
    score = features @ [1.0, -0.5] + eta * decline + draw.gumbel(size=len(features))
    best = score.reshape(num_lists, size).argmax(1) + np.arange(num_lists) * size
    clicked = np.zeros(len(features))
    clicked[best] = 1
    starts = np.arange(num_lists, dtype=np.intp) * size
    coefficients, found = fit(features, clicked, starts, decline)
    assert coefficients == pytest.approx([1.0, -0.5], abs=0.03)
    assert found == pytest.approx(eta, abs=0.03)


def test_the_second_bm25_reads_textual_attributes() -> None:
    attributes: dict[str, Attribute] = {"brand": "Acme", "tags": ["oak", "small"], "price": 3.5}
    item = Item(id="1", text="Red lamp", attributes=attributes)
    assert whole_text(item) == "Red lamp Acme oak small"


def test_the_stack_finds_items_by_their_attributes(tmp_path: Path) -> None:
    changed = tables()
    items, lists = changed["items"], changed["lists"]
    items["tags"] = [[f"tag{n}"] for n in range(6)]
    clicked = [row for row, click in enumerate(lists["clicked"]) if click]
    for row in clicked:
        for other in (row - 1, row, row + 1):
            lists["query"][other] = f"tag{lists['item_id'][row][1:]}"
    dataset = read_folder(folder(tmp_path, changed))
    stack = LinearStack(dataset, lambda query, texts: np.zeros(len(texts)))
    for number in range(6):
        scores = stack.scores(f"tag{number}", list(dataset.items))
        assert int(scores.argmax()) == number


def test_where_positions_are_not_known_no_decline_is_fitted() -> None:
    features = np.array([[1.0], [0.0], [1.0], [0.0]])
    clicked, starts = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0, 2], dtype=np.intp)
    coefficients, eta = fit(features, clicked, starts, np.zeros(4))
    assert coefficients[0] > 0
    assert eta == 0


def test_a_later_position_is_never_examined_more() -> None:
    features, clicked = np.zeros((4, 1)), np.array([0.0, 1.0, 0.0, 1.0])
    decline = np.tile(-np.log([1.0, 2.0]), 2)
    _, eta = fit(features, clicked, np.array([0, 2], dtype=np.intp), decline)
    assert eta == 0


def test_the_stack_learns_what_is_clicked_and_no_click_explains_itself(tmp_path: Path) -> None:
    lists = tables()["lists"]
    item = lists["item_id"]
    lists["clicked"] = [int(shown == "i3") for shown in item]
    dataset = read_folder(folder(tmp_path, {"lists": lists}))
    stack = LinearStack(dataset, lambda query, texts: np.zeros(len(texts)))
    scores = stack.scores("unheard of", list(dataset.items))
    assert list(dataset.items)[int(scores.argmax())] == "i3"
    # Clicks at random say nothing of later ones: a rate that held its own click would
    draw = np.random.Generator(np.random.PCG64(0))
    num = 3000
    random = {
        "list_id": np.repeat(np.arange(num), 3).tolist(),
        "query": ["q"] * (3 * num),
        "item_id": [f"i{n}" for _ in range(num) for n in draw.permutation(6)[:3]],
        "clicked": (draw.random(3 * num) < 0.3).tolist(),
    }
    dataset = read_folder(folder(tmp_path, {"lists": random}))
    stack = LinearStack(dataset, lambda query, texts: np.zeros(len(texts)))
    assert np.ptp(stack.scores("unheard of", list(dataset.items))) < 0.2


# --- the product ----------------------------------------------------------------------------------


def test_samples_are_those_of_the_join() -> None:
    shown = _list(False, True, False, query="red lamp", positions=(1, 2, 5))
    samples = product.samples_of(shown, 3, ITEMS)
    assert [(s.task, s.label, s.item_id, s.position) for s in samples] == [
        (CLICK, 0, "a", 1),
        (CLICK, 1, "b", 2),
        (CLICK, 0, "c", 5),
        (PURCHASE, 1, "b", 2),
    ]
    assert {(s.query, s.list_id, s.list_size, s.shown_us) for s in samples} == {
        ("red lamp", "7", 3, 3_000_000)
    }
    assert [s.text for s in samples] == ["text a", "text b", "text c", "text b"]
    assert all(s.attributes == {"x": 1} for s in samples)
    assert all(s.window_us >= s.attribution_us for s in samples)  # labels are final
    assert len({s.sample_id for s in samples}) == 4


def test_a_purchase_that_is_not_known_is_no_sample() -> None:
    shown = ShownList(
        id="1",
        query="q",
        items=("a", "b"),
        positions=(None, None),
        clicked=(True, True),
        purchased=(None, False),
    )
    samples = product.samples_of(shown, 1, ITEMS)
    assert [(s.task, s.label, s.position) for s in samples] == [
        (CLICK, 1, None),
        (CLICK, 1, None),
        (PURCHASE, 0, None),
    ]


def _run(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[dict[str, Any], str]:
    assert learning.main(["--data", str(path), "--set", MODEL, *more]) == 0
    out = capsys.readouterr().out
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    return report, out


def test_the_last_line_is_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path / "shop")
    report, out = _run(tmp_path / "shop", capsys, "--lists", "30")
    assert len(out.splitlines()) == 3  # two parts before it
    assert list(report) == [
        "dataset",
        "lists",
        "samples_per_second",
        "encoder_share_of_compute",
        "parts",
    ]
    assert (report["dataset"], report["lists"]) == ("shop", 30)
    assert report["samples_per_second"] > 0
    assert 0 < report["encoder_share_of_compute"] < 1
    assert set(report["parts"]) == {"stream", "unseen_queries"}
    for row in report["parts"].values():
        assert list(row) == [*METHODS, "gain_over_best_baseline"]
        value, low, high = row["gain_over_best_baseline"]
        assert value == pytest.approx(
            row["served"] - max(row[name] for name in BASELINES), abs=2e-4
        )
        assert low <= value <= high
    _, only = _run(tmp_path / "shop", capsys, "--json")
    assert len(only.splitlines()) == 1


def test_judged_queries_never_enter_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = tables()["judgments"]
    judged["query"] = ["red light"] * 3 + ["blue light"] * 3
    folder(tmp_path, {"judgments": judged})
    learned: list[Sample] = []
    step = Trainer.step

    def spy(trainer: Trainer, samples: Any) -> Any:
        learned.extend(samples)
        return step(trainer, samples)

    monkeypatch.setattr(Trainer, "step", spy)
    report, _ = _run(tmp_path, capsys)
    queries = {sample.query for sample in learned}
    assert queries == {"blue light", "oak light", "steel light"}  # "red light" is unseen
    assert report["lists"] == 30
    assert len(learned) == 30 * 4  # three shown items, and the clicked one's purchase


def test_a_batch_closes_as_the_consumers_close_it(tmp_path: Path) -> None:
    dataset = read_folder(folder(tmp_path))
    settings = load(None, {}, {"learner.model": "random:1x32", "learner.batch_size": "10"})
    learner = product.Learner(settings, dataset.items)
    learner.learn(dataset.lists)
    assert learner.trainer.step_number == 14  # of 3 lists with 12 samples; the last of one
    assert learner.trainer.num_samples == learner.cost.num_samples == 160


def test_the_served_score_is_that_of_a_published_version(tmp_path: Path) -> None:
    dataset = read_folder(folder(tmp_path))
    settings = load(None, {}, {"learner.model": "random:1x32"})
    learner = product.Learner(settings, dataset.items)
    with learner.scorer() as served:
        before = served.scores("red light", ["i0", "i1", "i2"])
    cosines = learner.encoder().cosines("red light", ["red lamp", "blue lamp", "oak lamp"])
    assert np.argsort(before).tolist() == np.argsort(cosines).tolist()
    learner.learn(dataset.lists)
    with learner.scorer() as served:
        after = served.scores("red light", ["i0", "i1", "i2"])
    assert not np.allclose(before, after)


def test_two_runs_can_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path / "shop")
    saved = str(tmp_path / "saved.json")
    _run(tmp_path / "shop", capsys, "--save", saved)
    _, out = _run(tmp_path / "shop", capsys, "--against", saved)
    assert "unseen_queries: served +0.0000 [+0.0000, +0.0000] over --against" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "absent"], "absent: no such folder"),
        (["--dataset", "banking77"], "needs --source"),
        (["--set", "learner.lr=nine"], "learner.lr"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert learning.main(arguments) == 2
    assert message in capsys.readouterr().err
