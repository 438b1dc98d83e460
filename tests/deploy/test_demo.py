"""The demo: its world draws what it documents, and its judge computes what is done by hand."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.demo.catalog import load_catalog
from deploy.demo.judge import METHODS, PARTS, ClickCounts, interval, judge, ndcg, summary
from deploy.demo.shop import invented_shop
from deploy.demo.world import (
    BM25,
    Product,
    Query,
    Shoppers,
    Visit,
    World,
    attraction,
    purchase_probability,
)
from deploy.errors import DeployError


def product(number: int, text: str = "red shoe") -> Product:
    return Product(id=f"SKU-{number}", text=f"{text} {number}", attributes={})


def query(
    text: str,
    grades: list[float],
    *,
    hidden: tuple[int, ...] = (),
    in_stream: bool = True,
    first: int = 0,
) -> Query:
    shown = np.ones(len(grades), dtype=bool)
    shown[list(hidden)] = False
    products = tuple(product(first + i) for i in range(len(grades)))
    return Query(
        text=text, products=products, grades=np.array(grades), shown=shown, in_stream=in_stream
    )


WORLD = World(
    name="test",
    queries=(
        query("red shoe", [4.0, 2.0, 0.4, 0.0, 4.0, 2.0], hidden=(1, 4, 5)),
        query("blue shoe", [0.0] * 6 + [4.0] * 9, first=10),
        query("never asked", [4.0, 0.0, 2.0], in_stream=False, first=40),
    ),
)


def visits(seed: int, number: int = 300, world: World = WORLD) -> list[Visit]:
    shoppers = Shoppers(world, seed=seed)
    return [shoppers.visit() for _ in range(number)]


def fields(visit: Visit) -> tuple[str, list[int], list[bool], list[bool]]:
    return visit.query.text, visit.shown.tolist(), visit.clicked.tolist(), visit.bought.tolist()


# --- the world ---


def test_one_seed_gives_one_stream_of_visits_and_another_seed_another() -> None:
    first, again, other = ([fields(visit) for visit in visits(seed)] for seed in (0, 0, 1))
    assert first == again != other


def test_hidden_products_are_never_shown_and_queries_kept_for_the_end_never_asked() -> None:
    seen: dict[str, Counter[int]] = {}
    for visit in visits(0, 2000):
        assert (
            len(visit.shown)
            == len(set(visit.shown.tolist()))
            == min(10, int(visit.query.shown.sum()))
        )
        seen.setdefault(visit.query.text, Counter()).update(visit.shown.tolist())
    assert set(seen["red shoe"]) == {0, 2, 3}
    assert set(seen["blue shoe"]) == set(range(15))
    assert "never asked" not in seen


def test_only_what_was_clicked_is_bought() -> None:
    everything = visits(0, 2000)
    assert not any((v.bought & ~v.clicked).any() for v in everything)
    assert any(v.bought.any() for v in everything)


def test_the_chances_are_those_of_the_formulas() -> None:
    assert attraction(np.array([4.0, 0.0])).tolist() == pytest.approx([1.0, 0.1])
    assert attraction(np.array([2.0]))[0] == pytest.approx(0.1 + 0.9 * 3 / 15)
    assert purchase_probability(
        np.array([4.0, 0.0]), np.array([0.0, 1.0])
    ).tolist() == pytest.approx([1 / (1 + math.exp(2.2 - 1.6)), 1 / (1 + math.exp(2.2 - 1.0))])
    true = Shoppers(WORLD, seed=0).true_click(WORLD.queries[0])
    assert true[0] == pytest.approx(0.55 + 0.45 * 0.055)
    assert true[3] == pytest.approx(0.055 + 0.945 * 0.055)


def test_the_truth_is_the_rate_at_which_the_first_place_is_clicked() -> None:
    shown, clicked = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    second_shown, second_clicked = 0, 0
    for visit in visits(3, 20_000):
        key = (visit.query.text, int(visit.shown[0]))
        shown[key] += 1
        clicked[key] += bool(visit.clicked[0])
        second_shown += 1
        second_clicked += bool(visit.clicked[1])
    shoppers = Shoppers(WORLD, seed=3)
    truth = {q.text: shoppers.true_click(q) for q in WORLD.queries[:2]}
    for (text, place), number in shown.items():
        if number > 300:
            p = truth[text][place]
            assert clicked[text, place] / number == pytest.approx(
                p, abs=4 * math.sqrt(p * (1 - p) / number)
            )
    assert (
        second_clicked / second_shown < 0.7 * sum(clicked.values()) / second_shown
    )  # the second place is examined half as often


def test_bm25_is_the_formula_worked_by_hand() -> None:
    lexical = BM25(["red shoe", "blue shoe shoe lamp", "oak lamp"])
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    mean = 8 / 3

    def term(times: int, length: int) -> float:
        return idf * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * length / mean))

    assert lexical.scores("Shoe, unknown", [0, 1, 2]).tolist() == pytest.approx(
        [term(1, 2), term(2, 4), 0.0]
    )


def test_the_invented_shop_is_one_per_seed_and_grades_by_kind_colour_and_trusted_brand() -> None:
    shop, again, other = invented_shop(seed=0), invented_shop(seed=0), invented_shop(seed=1)
    assert [(q.text, [p.text for p in q.products]) for q in shop.queries] == [
        (q.text, [p.text for p in q.products]) for q in again.queries
    ]
    assert [q.text for q in shop.queries] != [q.text for q in other.queries]
    assert len(shop.queries) == 20
    for asked in shop.queries:
        assert asked.in_stream
        assert asked.shown.all()
        colour, _, kind = asked.text.partition(" ")
        for one, grade in zip(asked.products, asked.grades, strict=True):
            right = one.attributes["category"] == kind and one.attributes["colour"] == colour
            trusted = one.attributes["brand"] in ("Orlanda", "Kestwick", "Tamvero")
            if one.attributes["category"] != kind:
                assert grade == 0
            else:
                assert grade == (4 if right and trusted else 2 if right else 0.4 if trusted else 0)


# --- the judge ---


def test_ndcg_is_the_value_worked_by_hand() -> None:
    grades = np.array([0.0, 2.0, 4.0])  # gains 0, 3, 15
    assert ndcg(np.array([3.0, 2.0, 1.0]), grades) == pytest.approx(
        9.392789260714371 / 16.892789260714371
    )
    assert ndcg(np.array([1.0, 2.0, 3.0]), grades) == 1.0
    assert ndcg(np.array([3.0, 2.0, 1.0]), grades, k=1) == 0.0
    assert ndcg(np.array([1.0, 3.0, 2.0]), grades, k=1) == pytest.approx(3 / 15)
    assert ndcg(np.array([1.0, 2.0, 3.0]), np.zeros(3)) == 1.0
    assert ndcg(np.array([1.0, 0.0]), np.array([0.4, 0.0])) == 1.0


def test_ties_are_in_the_order_of_the_input() -> None:
    assert ndcg(np.array([1.0, 1.0]), np.array([0.0, 4.0])) == pytest.approx(1 / math.log2(3))
    assert ndcg(np.array([1.0, 1.0]), np.array([4.0, 0.0])) == 1.0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40))
def test_an_interval_contains_the_mean_and_is_the_same_each_time(differences: list[float]) -> None:
    mean, low, high = interval(np.array(differences), rounds=500)
    assert mean == pytest.approx(np.mean(differences))
    assert min(differences) - 1e-9 <= low <= high <= max(differences) + 1e-9
    assert interval(np.array(differences), rounds=500) == (mean, low, high)
    assert interval(np.full(5, 0.25)) == (0.25, 0.25, 0.25)


def test_an_interval_is_about_two_standard_errors_wide() -> None:
    differences = np.random.default_rng(0).normal(0.1, 0.3, 110)
    mean, low, high = interval(differences)
    error = differences.std() / math.sqrt(110)
    assert low < mean < high
    assert [mean - low, high - mean] == pytest.approx([1.96 * error] * 2, rel=0.1)


def test_click_counts_are_the_formula_worked_by_hand() -> None:
    counts = ClickCounts()
    for _ in range(2):
        counts.learn("red shoe", ["SKU-1", "SKU-0"], [False, True])
    scores = counts.scores(WORLD.queries[0], np.array([0.1, 0.2, 0.3, 0.0, 0.0, 0.0]))
    assert scores[:4].tolist() == pytest.approx(
        [
            1.5 + 10 * (math.log(2.6 / (2 * 0.275 + 2)) - math.log(0.3)),
            3.0 + 10 * (math.log(0.6 / (2 * 0.55 + 2)) - math.log(0.3)),
            4.5,  # never shown: the cosine alone
            0.0,
        ]
    )


def test_each_part_is_judged_among_its_own_products() -> None:
    counts = ClickCounts()
    perfect = judge(WORLD, served=lambda q: q.grades, zero_shot=lambda q: -q.grades, counts=counts)
    assert set(perfect) == set(PARTS)
    assert all(set(methods) == set(METHODS) for methods in perfect.values())
    assert {part: len(methods["served"]) for part, methods in perfect.items()} == {
        "stream": 2,
        "unseen_products": 1,
        "unseen_queries": 1,
    }
    assert all((methods["served"] == 1).all() for methods in perfect.values())
    hidden = np.array([2.0, 4.0, 2.0])
    assert perfect["unseen_products"]["zero_shot"][0] == pytest.approx(ndcg(-hidden, hidden))
    assert perfect["unseen_queries"]["zero_shot"][0] == pytest.approx(
        ndcg(-np.array([4.0, 0.0, 2.0]), np.array([4.0, 0.0, 2.0]))
    )


def test_a_summary_pairs_the_served_ranking_with_its_opponents() -> None:
    same = summary(
        judge(WORLD, served=lambda q: q.grades, zero_shot=lambda q: q.grades, counts=ClickCounts())
    )
    assert set(same) == set(PARTS)
    assert same["stream"]["gain_over_zero_shot"] == [0.0, 0.0, 0.0]
    assert 0 < float(np.mean(same["stream"]["random"])) < 1
    better = summary(
        judge(WORLD, served=lambda q: q.grades, zero_shot=lambda q: -q.grades, counts=ClickCounts())
    )
    value, low, high = better["stream"]["gain_over_zero_shot"]  # type: ignore[misc]
    assert 0 < low <= value <= high
    invented = invented_shop(seed=0)
    assert set(
        summary(
            judge(
                invented,
                served=lambda q: q.grades,
                zero_shot=lambda q: q.grades,
                counts=ClickCounts(),
            )
        )
    ) == {"stream"}


# --- the catalogue ---


def write_catalog(folder: Path, *, num_queries: int = 15, without: str = "") -> Path:
    """Thirty products; each query judged on ten of them, ratings 100, 10, 1, 0 in turn."""
    products: dict[str, list[Any]] = {
        "asin": [f"B{i:02d}" for i in range(30)],
        "title": [f"lamp number {i}" for i in range(30)],
        "brand": ["Orlanda", None, "Kestwick"] * 10,
        "category": [["Home", "Lamps"] if i % 2 else [] for i in range(30)],
    }
    pairs = [
        (f"query {q:02d}", f"B{(q + i) % 30:02d}", str([100, 10, 1, 0][i % 4]))
        for q in range(num_queries)
        for i in range(10)
    ]
    judgments = {
        "query": [p[0] for p in pairs],
        "docId": [p[1] for p in pairs],
        "rating": [p[2] for p in pairs],
    }
    for name, table in (("products", products), ("judgments", judgments)):
        kept = {column: values for column, values in table.items() if column != without}
        pyarrow.parquet.write_table(pyarrow.table(kept), folder / f"{name}.parquet")
    return folder


def test_a_catalogue_is_graded_and_split_reproducibly(tmp_path: Path) -> None:
    folder = write_catalog(tmp_path)
    world, again, other = (
        load_catalog(folder, split=0),
        load_catalog(folder, split=0),
        load_catalog(folder, split=1),
    )
    assert [q.text for q in world.queries] == [f"query {i:02d}" for i in range(15)]
    assert sum(q.in_stream for q in world.queries) == 11  # 110 of 150
    for one, same in zip(world.queries, again.queries, strict=True):
        assert (one.in_stream, one.shown.tolist(), one.products) == (
            same.in_stream,
            same.shown.tolist(),
            same.products,
        )
    assert [q.in_stream for q in world.queries] != [q.in_stream for q in other.queries]
    for one in world.queries:
        assert (~one.shown).sum() == (2 if one.in_stream else 0)
        number = int(one.text.split()[1])
        grades = {f"B{(number + i) % 30:02d}": [4.0, 2.0, 0.4, 0.0][i % 4] for i in range(10)}
        assert {p.id: float(g) for p, g in zip(one.products, one.grades, strict=True)} == grades
    first = next(p for p in world.products() if p.id == "B01")
    assert (first.text, first.attributes["brand"], first.attributes["category"]) == (
        "lamp number 1",
        "",
        "Home / other",
    )
    assert (
        next(p for p in world.products() if p.id == "B00")
        .attributes["category"]
        .startswith("Unknown")
    )


def test_a_missing_file_or_column_is_one_error_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(
        DeployError,
        match=r"judgments\.parquet: .*expected a Parquet file with the columns query, docId",
    ):
        load_catalog(tmp_path, split=0)
    write_catalog(tmp_path, without="brand")
    with pytest.raises(
        DeployError,
        match=r"products\.parquet: .*brand.*with the columns asin, title, brand, category",
    ):
        load_catalog(tmp_path, split=0)
    (tmp_path / "products.parquet").write_bytes(b"no parquet")
    with pytest.raises(DeployError, match=r"products\.parquet: .*expected a Parquet file"):
        load_catalog(tmp_path, split=0)
