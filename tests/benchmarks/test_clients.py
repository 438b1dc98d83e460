"""Benchmark of personalisation: streams are what they say, arms differ by the client alone."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.clients import figures, journey, shop
from deploy.settings.load import load

_SMALL = {"learner.model": "random:1x32", "learner.tuning": "frozen"}


@pytest.mark.parametrize(("name", "is_own"), [("taste", True), ("no_taste", False)])
def test_each_client_has_a_taste_of_its_own_where_the_stream_says_so(
    name: str, *, is_own: bool
) -> None:
    stream = shop(name, clients=12, lists=200, seed=0)
    grades: dict[str, list[float]] = {}
    for one in stream.asked:
        grades.setdefault(one.client, []).extend(one.query.grades.tolist())
    tastes = set(map(tuple, grades.values()))
    assert len(tastes) > 10 if is_own else len(tastes) == 1
    new = {one.client for one in stream.asked if one.group == "new"}
    assert len(new) == 12
    assert not new & {client for _, client in stream.visits}


def test_guests_share_one_id() -> None:
    stream = shop("guests", clients=12, lists=400, seed=0)
    share = np.mean([client == "guest" for _, client in stream.visits])
    assert share == pytest.approx(0.5, abs=0.1)


def test_a_purchase_is_a_list_of_its_category_with_nothing_of_the_same_basket(
    tmp_path: Path,
) -> None:
    products = [
        {
            "product_id": f"p{i}",
            "manufacturer_id": f"m{i % 5}",
            "department": "d",
            "brand": "National",
            "product_category": "TEA",
            "product_type": f"TEA {i}",
            "package_size": None,
        }
        for i in range(30)
    ]
    day = datetime.datetime(2017, 1, 1)  # noqa: DTZ001 as the file has it
    sold = [
        {
            "transaction_timestamp": day + datetime.timedelta(hours=i // 2),
            "household_id": f"h{i // 2 % 3}",
            "product_id": f"p{i % 30}",
        }
        for i in range(60)
    ]
    pq.write_table(pa.Table.from_pylist(products), tmp_path / "products.parquet")
    pq.write_table(pa.Table.from_pylist(sold), tmp_path / "transactions_sample.parquet")
    stream = journey(tmp_path, clients=3, lists=60, seed=0)
    assert (len(stream.visits), len(stream.asked)) == (48, 12)
    for visit, _ in stream.visits:
        shown = [product.id for product in visit.query.products]
        (bought,) = np.flatnonzero(visit.clicked)
        number = int(shown[bought][1:])
        assert f"p{number + 1 - 2 * (number % 2)}" not in shown, "bought together with it"
        assert len(set(shown)) == 10
        assert visit.query.text == "tea"
    assert {one.group for one in stream.asked} == {"known"}


def test_only_known_clients_are_answered_otherwise() -> None:
    report = figures(load(None, {}, _SMALL), [shop("taste", clients=6, lists=90, seed=0)])
    assert report["new"]["gain"] == [0, 0, 0]
    assert report["known"]["with"] != report["known"]["without"]
    assert report["known"]["clients"] <= 6 == report["new"]["clients"]
