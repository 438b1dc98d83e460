"""Folders and ready-made data sets of the learning benchmark."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.learning_data.answers import NOISE, load_answers, simulated
from benchmarks.learning_data.dataset import DataError, Dataset
from benchmarks.learning_data.folder import read_folder
from benchmarks.learning_data.movies import load_movies
from benchmarks.learning_data.ready import Request, load_ready
from benchmarks.learning_data.shop import load_shop
from tests.benchmarks.folders import Table, folder, tables, write

# --- folders --------------------------------------------------------------------------------------


def test_a_folder_is_read_in_the_order_of_its_lists(tmp_path: Path) -> None:
    found = read_folder(folder(tmp_path / "shop"))
    assert found.name == "shop"
    assert [shown.id for shown in found.lists] == [str(n) for n in range(40)]
    first = found.lists[1]
    assert first.query == "blue light"
    assert first.items == ("i1", "i2", "i3")
    assert first.positions == (1, 2, 3)
    assert first.clicked == (False, True, False)
    assert first.purchased == (None, True, None)
    assert found.items["i0"].attributes == {"price": 1.5, "tags": ["a", "b"]}
    assert found.items["i2"].attributes == {"price": 3.0}
    assert found.parts() == ["stream", "unseen_queries"]
    (unseen,) = [judged for judged in found.judged if judged.part == "unseen_queries"]
    assert dict(zip(unseen.items, unseen.grades, strict=True)) == {"i4": 2, "i5": 0, "i0": 1}


def test_rows_of_a_list_are_sorted_by_position(tmp_path: Path) -> None:
    lists = tables()["lists"]
    lists["position"] = [3, 1, 2] * 40
    found = read_folder(folder(tmp_path, {"lists": lists}))
    assert found.lists[0].items == ("i1", "i2", "i0")
    assert found.lists[0].positions == (1, 2, 3)
    assert found.lists[0].clicked == (True, False, False)


def test_columns_without_a_value_may_be_left_out(tmp_path: Path) -> None:
    lists = tables()["lists"]
    del lists["position"], lists["purchased"]
    found = read_folder(folder(tmp_path, {"lists": lists}))
    assert found.lists[0].positions == (None, None, None)
    assert found.lists[0].purchased == (None, None, None)


def test_ids_may_be_numbers(tmp_path: Path) -> None:
    changed = tables()
    for table in changed.values():
        table["item_id"] = [int(item[1:]) for item in table["item_id"]]
    assert read_folder(folder(tmp_path, changed)).lists[0].items == ("0", "1", "2")


def test_lists_of_unseen_queries_are_not_in_the_stream(tmp_path: Path) -> None:
    judged = tables()["judgments"]
    judged["query"] = ["Blue  light"] * 3 + ["red light"] * 3
    found = read_folder(folder(tmp_path, {"judgments": judged}))
    assert "blue light" not in {shown.query for shown in found.lists}
    assert "red light" in {shown.query for shown in found.lists}
    assert found.notes == ("10 lists of queries judged as unseen_queries: left out",)


def test_a_query_with_one_grade_is_not_judged(tmp_path: Path) -> None:
    judged = tables()["judgments"]
    judged["grade"] = [2, 2, 2, 1, 0, 0]
    found = read_folder(folder(tmp_path, {"judgments": judged}))
    assert [each.query for each in found.judged] == ["red light"]


def _without(name: str, column: str) -> Callable[[dict[str, Table]], None]:
    def change(all_tables: dict[str, Table]) -> None:
        del all_tables[name][column]

    return change


def _put(name: str, column: str, value: Any) -> Callable[[dict[str, Table]], None]:
    def change(all_tables: dict[str, Table]) -> None:
        values = all_tables[name][column]
        all_tables[name][column] = [*values[:1], value, *values[2:]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("items", "text"), r"items\.parquet: column text is missing.*add it or rename"),
        (_without("lists", "clicked"), r"lists\.parquet: column clicked is missing"),
        (_without("judgments", "part"), r"judgments\.parquet: column part is missing"),
        (_put("items", "item_id", "i0"), r"items.*column item_id, row 2.*one row per item"),
        (_put("items", "text", None), r"items.*column text, row 2: got None; write a text"),
        (_put("lists", "item_id", "x"), r"lists.*item_id, row 2: got 'x'.*add the item"),
        (_put("lists", "clicked", None), r"lists.*clicked, row 2: got None; write true or false"),
        (_put("lists", "clicked", 7), r"lists.*clicked, row 2: got 7; write true or false"),
        (_put("lists", "position", 0), r"lists.*position, row 2: got 0; positions count from 1"),
        (_put("lists", "query", "other"), r"lists.*query, row 2: got 'other'.*an id of its own"),
        (_put("judgments", "grade", None), r"judgments.*grade, row 2: got None; write a grade"),
        (_put("judgments", "grade", -1), r"judgments.*grade, row 2: got -1; write a grade"),
        (_put("judgments", "item_id", "i4"), r"judgments.*grade, row 2.*another grade"),
        (_put("judgments", "item_id", "x"), r"judgments.*item_id, row 2: got 'x'.*add the item"),
    ],
)
def test_an_error_names_file_column_and_remedy(
    change: Callable[[dict[str, Table]], None], message: str, tmp_path: Path
) -> None:
    changed = tables()
    change(changed)
    folder(tmp_path, changed)
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path)


def test_a_folder_or_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent: no such folder"):
        read_folder(tmp_path / "absent")
    folder(tmp_path)
    (tmp_path / "lists.parquet").unlink()
    with pytest.raises(DataError, match=r"lists\.parquet: no such file; write it with .*clicked"):
        read_folder(tmp_path)
    (tmp_path / "lists.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"lists\.parquet: .*write it as a Parquet file"):
        read_folder(tmp_path)


def test_a_folder_with_nothing_to_judge_is_refused(tmp_path: Path) -> None:
    judged = tables()["judgments"]
    judged["grade"] = [1] * 6
    with pytest.raises(DataError, match=r"no query to judge"):
        read_folder(folder(tmp_path, {"judgments": judged}))


# --- movie search ---------------------------------------------------------------------------------


def _movies(path: Path) -> Path:
    attributes = ("director", "year", "votes", "rating", "popularity")
    movies: Table = {
        "id": ["1", "2"],
        "title": ["Up", "Heat"],
        "genres": [["Animation"], []],
        **{name: [None, []] for name in ("tags", "actors", "characters")},
        **{name: [None, 1] for name in attributes},
    }
    judged: Table = {name: [] for name in ("query_id", "query", "fold", "doc_id", "grade")}
    for fold in range(10):
        for doc_id, grade in (("1", fold % 2), ("2", 1 - fold % 2), ("3", 1)):
            row = (f"q{fold}", f"query {fold}", fold, doc_id, grade)
            for name, value in zip(judged, row, strict=True):
                judged[name].append(value)
    write(path / "movies.parquet", movies)
    write(path / "judgments.parquet", judged)
    return path


@pytest.mark.parametrize(("choosing", "query"), [(False, "query 9"), (True, "query 8")])
def test_movies_stream_folds_0_to_7_and_are_judged_on_one_other(
    choosing: bool, query: str, tmp_path: Path
) -> None:
    found = load_movies(_movies(tmp_path), seed=0, choosing=choosing)
    assert {shown.query for shown in found.lists} == {f"query {fold}" for fold in range(8)}
    assert [judged.query for judged in found.judged] == [query]
    assert found.parts() == ["unseen_queries"]
    shown = next(shown for shown in found.lists if shown.query == "query 1")
    assert dict(zip(shown.items, shown.clicked, strict=True)) == {"1": True, "2": False}
    assert shown.positions == shown.purchased == (None, None)
    assert found.items["1"].text == "Up"
    assert found.items["1"].attributes == {"genres": ["Animation"]}
    assert found.notes == ("10 pairs of movies without text: left out",)


# --- simulated answers ----------------------------------------------------------------------------

INTENTS = [f"intent_{n}" for n in range(20)]


def _similar(queries: Any, texts: Any) -> Any:
    return np.zeros((len(queries), len(texts)))


def _simulated(noise: str, num: int = 4000) -> list[Any]:
    questions = [("no word in common", INTENTS[n % 20]) for n in range(num)]
    draw = np.random.Generator(np.random.PCG64(1))
    return simulated(questions, INTENTS, NOISE[noise], draw, _similar)


@pytest.mark.parametrize(
    ("noise", "right", "wrong"),
    [
        ("clean", 0.9 + 0.1 * 0.027, 0.045 + 0.955 * 0.027),
        ("noisy", 0.55 + 0.45 * 0.055, 0.055 + 0.945 * 0.055),
    ],
)
def test_clicks_come_as_often_as_the_noise_says(noise: str, right: float, wrong: float) -> None:
    clicks, chances = {True: 0, False: 0}, {True: 0.0, False: 0.0}
    for number, shown in enumerate(_simulated(noise)):
        assert len(shown.items) == 10
        for place, (item, clicked) in enumerate(zip(shown.items, shown.clicked, strict=True), 1):
            is_right = item == INTENTS[number % 20]
            clicks[is_right] += clicked
            # An accident happens to what was not clicked on purpose: exact at the first place
            chances[is_right] += 1 / place
    assert clicks[True] / chances[True] == pytest.approx(right, rel=0.05)
    assert clicks[False] / chances[False] == pytest.approx(wrong, rel=0.05)


def test_only_clicked_answers_are_resolved_and_the_right_ones_far_more_often() -> None:
    resolved: dict[bool, list[bool]] = {True: [], False: []}
    for number, shown in enumerate(_simulated("clean")):
        for item, clicked, bought in zip(shown.items, shown.clicked, shown.purchased, strict=True):
            assert (bought is None) == (not clicked)
            if clicked:
                resolved[item == INTENTS[number % 20]].append(bool(bought))
    assert np.mean(resolved[True]) == pytest.approx(0.7, abs=0.04)
    assert np.mean(resolved[False]) == pytest.approx(0.05, abs=0.02)


def test_the_place_is_drawn_from_both_scores_and_gumbel_noise() -> None:
    questions = [("alpha words", "alpha")] * 2000

    def similar(queries: Any, texts: Any) -> Any:
        return np.tile([float(text == "Alpha") for text in texts], (len(queries), 1))

    intents = ["alpha", *(f"x_{n}" for n in range(11))]
    draw = np.random.Generator(np.random.PCG64(1))
    lists = simulated(questions, intents, NOISE["clean"], draw, similar)
    first = np.mean([shown.items[0] == "alpha" for shown in lists])
    # z of one answer among 12 is sqrt(11) against -1 / sqrt(11); a softmax of scores / 0.8
    odds = np.exp((np.sqrt(11) + 1 / np.sqrt(11)) / 0.8)
    assert first == pytest.approx(odds / (odds + 11), abs=0.03)


def _answers(path: Path, **options: Any) -> Dataset:
    for split, questions in (("train", 60), ("test", 8), ("dev", 4)):
        table: Table = {
            "text": [f"{split} question {n}" for n in range(questions)],
            "category": [INTENTS[n % 20] for n in range(questions)],
        }
        write(path / f"{split}.parquet", table)
    given: dict[str, Any] = {
        "name": "banking77",
        "noise": "clean",
        "seed": 0,
        "num_lists": None,
        "choosing": False,
        "similarity": _similar,
        **options,
    }
    return load_answers(path, **given)


def test_every_training_question_is_asked_once_and_halves_of_the_test_split_are_judged(
    tmp_path: Path,
) -> None:
    reported, choosing = _answers(tmp_path), _answers(tmp_path, choosing=True)
    asked = [shown.query for shown in reported.lists]
    assert sorted(asked) == sorted(f"train question {n}" for n in range(60))
    assert asked != [f"train question {n}" for n in range(60)]
    halves = [{judged.query for judged in found.judged} for found in (reported, choosing)]
    assert halves[0] == {f"test question {n}" for n in (0, 2, 4, 6)}
    assert halves[1] == {f"test question {n}" for n in (1, 3, 5, 7)}
    for judged in reported.judged:
        assert len(judged.items) == 20
        assert judged.grades.sum() == 1
    assert reported.items["intent_3"].text == "Intent 3"
    assert _answers(tmp_path, num_lists=7).lists == reported.lists[:7]
    assert _answers(tmp_path, seed=1).lists != reported.lists


def test_a_half_of_the_intents_knows_nothing_of_the_other(tmp_path: Path) -> None:
    first, second = _answers(tmp_path, half=0), _answers(tmp_path, half=1)
    assert first.items.keys() | second.items.keys() == set(INTENTS)
    assert not first.items.keys() & second.items.keys()
    for found in (first, second):
        assert len(found.lists) == 30
        names = [shown.items for shown in found.lists] + [own.items for own in found.judged]
        assert set().union(*names) == found.items.keys()


# --- the shop -------------------------------------------------------------------------------------


def test_the_shop_keeps_its_parts_apart() -> None:
    found = load_shop(None, name="invented_shop", seed=0, num_lists=50, choosing=False)
    asked = {shown.query for shown in found.lists}
    for judged in found.judged:
        assert judged.part in ("stream", "unseen_products", "unseen_queries")
        assert (judged.query in asked) <= (judged.part != "unseen_queries")
    assert len(found.lists) == 50


def test_a_ready_made_data_set_needs_its_source(tmp_path: Path) -> None:
    def asked(source: Path | None) -> Request:
        return Request(
            name="banking77",
            source=source,
            noise="clean",
            seed=0,
            num_lists=None,
            choosing=False,
        )

    with pytest.raises(DataError, match=r"needs --source"):
        load_ready(asked(None), _similar)
    with pytest.raises(DataError, match=r"banking77: no such folder; --source"):
        load_ready(asked(tmp_path), _similar)
