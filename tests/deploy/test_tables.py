"""Files of rows: every row once with its number, and what is wrong is named with its place."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.events import ItemUpdate, Kind
from consumers.tolerant import Repair
from deploy.admin import event_file
from deploy.errors import TableRefused
from deploy.tables.rows import open_table
from deploy.tables.values import (
    LeftOut,
    Wrong,
    attribute_of,
    flag_of,
    number_of,
    text_of,
    time_of,
    whole_of,
)

ROWS = [{"query": "shoe", "label": "1"}, {"query": 'a "red", mug', "label": "0"}]


def read(path: Path, **options: Any) -> list[tuple[int, Mapping[str, Any]]]:
    opened = open_table(path, **options)
    return list(opened.rows(opened.columns))


def written(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def as_csv(rows: Iterable[Mapping[str, str]], delimiter: str = ",") -> str:
    stream = io.StringIO()
    rows = list(rows)
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def test_the_same_rows_come_of_csv_jsonl_and_parquet(tmp_path: Path) -> None:
    expected = list(enumerate(ROWS, 1))
    assert read(written(tmp_path / "a.csv", as_csv(ROWS))) == expected
    lines = "".join(json.dumps(row) + "\n\n" for row in ROWS)
    assert read(written(tmp_path / "a.jsonl", lines)) == expected
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == expected


@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
            st.text(min_size=1, alphabet="ab,;\t|\"'\n "),
        ),
        min_size=1,
        max_size=20,
    ),
    delimiter=st.sampled_from(",;\t|"),
    bom=st.booleans(),
)
def test_any_text_comes_back_of_csv_under_any_delimiter(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    delimiter: str,
    bom: bool,
) -> None:
    dicts = [{"query": query, "text": text} for query, text in rows]
    text = as_csv(dicts, delimiter)
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(text.encode("utf-8-sig" if bom else "utf-8"))
    assert [row for _, row in read(path)] == dicts


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.csv", "", "the file is empty"),
        ("a.txt", "x", "the name ends in '.txt', expected one of .parquet, .csv"),
        ("a.csv", "query,query\n", "column 'query' is there 2 times"),
        ("a.csv", "query,text\na,b\nc\n", "row 2 (line 3): found 1 fields, expected 2"),
        ("a.csv", 'query,text\na,"b\nc,d\n', "row 1 (line 3): unexpected end of data. Is a quote"),
        ("a.csv", "query,text\na," + "x" * 200_000 + "\n", "row 1 (line 2): field larger than"),
        ("a.csv", "x" * 200_000 + ",text\n", "header: field larger than"),
        ("a.csv", b"query,text\ngr\xfcn,b\n", "found byte 0xfc, expected text in UTF-8"),
        ("a.csv", b"query,text\ngr\xfcn,b\n", "-f WINDOWS-1252 -t UTF-8 a.csv > utf-8.csv"),
        ("a.csv", "query,text\na,b\n".encode("utf-16"), "-f UTF-16 -t UTF-8 a.csv > utf-8.csv"),
        ("a.jsonl", '{"query": 1}\n{"query"\n', "row 2 (line 2)"),
        ("a.jsonl", "[1]\n", "row 1 (line 1): found list, expected a JSON object"),
        ("a.parquet", "PAR1", "expected a Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_place(
    tmp_path: Path, name: str, data: str | bytes, says: str
) -> None:
    with pytest.raises(TableRefused) as refused:
        read(written(tmp_path / name, data))
    assert says in str(refused.value)
    assert name in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableRefused, match="No such file"):
        open_table(tmp_path / "a.csv")


def test_nanoseconds_of_parquet_are_cut_off(tmp_path: Path) -> None:
    at = pyarrow.array([1_795_471_710_120_000_001], pyarrow.timestamp("ns", tz="UTC"))
    pyarrow.parquet.write_table(pyarrow.table({"time": at}), tmp_path / "a.parquet")
    ((_, row),) = read(tmp_path / "a.parquet")
    assert time_of(row["time"], "time", zone=None) == 1_795_471_710_120_000


# --- values ---


TIME_US = 1_795_471_710_120_000


@pytest.mark.parametrize(
    "value",
    [
        "2026-11-23T22:08:30.120Z",
        "2026-11-23T23:08:30.120+01:00",
        "2026-11-23 23:08:30.12",  # in the zone
        1_795_471_710.12,
        "1795471710120",
        1_795_471_710_120,
        1_795_471_710_120_000,
        1_795_471_710_120_000_000,
        datetime(2026, 11, 23, 22, 8, 30, 120_000, tzinfo=UTC),
        datetime(2026, 11, 23, 23, 8, 30, 120_000),  # noqa: DTZ001 - as Parquet gives it
    ],
)
def test_one_instant_in_all_its_forms(value: Any) -> None:
    assert time_of(value, "time", zone=ZoneInfo("Europe/Berlin")) == TIME_US


@given(
    at=st.datetimes(datetime(2002, 1, 1), datetime(2200, 1, 1)),  # noqa: DTZ001
    minutes=st.integers(-14 * 60, 14 * 60),
)
def test_offsets_of_any_size_say_the_same_instant(at: datetime, minutes: int) -> None:
    instant = at.replace(tzinfo=UTC)
    delta = timedelta(minutes=minutes)
    sign, rest = "-" if minutes < 0 else "+", abs(minutes)
    text = (at + delta).isoformat() + f"{sign}{rest // 60:02d}:{rest % 60:02d}"
    expected = (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert time_of(text, "time", zone=None) == expected


@pytest.mark.parametrize(
    ("value", "zone", "says"),
    [
        ("2026-11-23T22:08:30", None, "--timezone"),
        ("2026-11-23", "UTC", "ISO 8601"),
        ("23.11.2026 22:08", "UTC", "ISO 8601.*--time-format"),
        ("1960-01-01T00:00:00Z", None, "the years 1970 to 2286"),
        ("0001-01-01T00:00:00+14:00", None, "the years 1970 to 2286"),
        ("9999-12-31T23:59:59Z", None, "the years 1970 to 2286"),
        ("9999-12-31T23:59:59-10:00", None, "the years 1970 to 2286"),
        (12345, "UTC", "a number since 1970"),
        (True, "UTC", "ISO 8601"),
        (None, "UTC", "ISO 8601"),
        ("2026-03-29T02:30:00", "Europe/Berlin", "clocks of Europe/Berlin showed"),
    ],
)
def test_a_time_that_says_no_one_instant_is_wrong(value: Any, zone: str | None, says: str) -> None:
    with pytest.raises(Wrong, match=says):
        time_of(value, "time", zone=None if zone is None else ZoneInfo(zone))


@pytest.mark.parametrize(
    "value", ["nan", float("nan"), 2, -0.1, "0,5", "0_1", "", None, "inf", [], 10**400]
)
def test_a_label_outside_its_bounds_is_wrong(value: Any) -> None:
    with pytest.raises(Wrong, match=r"'label': found .*, expected a number from 0 to 1"):
        number_of(value, "label", low=0, high=1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", True), ("TRUE", True), (0.0, False), ("no", False), (None, None), ("", None)],
)
def test_flags_in_usual_words(value: Any, expected: bool | None) -> None:
    assert flag_of(value, "clicked") is expected


def test_values_of_other_kinds_are_wrong() -> None:
    with pytest.raises(Wrong, match="true or false"):
        flag_of("maybe", "clicked")
    with pytest.raises(Wrong, match="whole number >= 1"):
        whole_of(1.5, "position", low=1)
    with pytest.raises(Wrong, match="whole number >= 1"):
        whole_of(10**400, "position", low=1)
    with pytest.raises(Wrong, match="a text"):
        text_of(["x"], "query")
    with pytest.raises(Wrong, match="100,000 characters"):
        text_of("x" * 100_001, "query")
    with pytest.raises(Wrong, match="not empty"):
        text_of("  ", "query")
    assert text_of(7.0, "item_id") == "7"


@given(before=st.integers(0, 999), after=st.integers(0, 999), mark=st.sampled_from("_,'"))
def test_a_number_is_never_read_without_the_mark_inside_it(
    before: int, after: int, mark: str
) -> None:
    text = f"{before}{mark}{after}"
    with pytest.raises(Wrong, match="expected a number"):
        number_of(text, "price", low=-math.inf, high=math.inf)
    with pytest.raises(Wrong, match="expected a whole number"):
        whole_of(text, "rank", low=0)


def test_a_time_is_in_the_future_more_than_a_day_after_now() -> None:
    day = timedelta(days=1) // timedelta(microseconds=1)
    assert time_of("2026-11-23T22:08:30.12Z", "at", zone=None, now_us=TIME_US - day) == TIME_US
    with pytest.raises(Wrong, match="a time that is not in the future"):
        time_of("2026-11-23T22:08:30.12Z", "at", zone=None, now_us=TIME_US - day - 1)


def test_a_key_that_only_late_rows_have_is_a_column_too(tmp_path: Path) -> None:
    lines = [json.dumps({"query": "q"})] * 5000 + [json.dumps({"query": "q", "weight": 3})]
    path = written(tmp_path / "late.jsonl", "\n".join(lines))
    assert open_table(path).columns == ("query", "weight")


def test_rows_left_out_are_counted_with_the_first_of_each_reason() -> None:
    left = LeftOut("a.csv", skip=True)
    for row in range(5, 10):
        left.refuse(row, Wrong("label", 2, "a number from 0 to 1"))
    left.add(3, "weight 0")
    assert list(left.lines()) == [
        "left out: 5 rows: column 'label': expected a number from 0 to 1 (row 5, 6, 7, ...)",
        "left out: 1 rows: weight 0 (row 3)",
    ]
    with pytest.raises(TableRefused, match=r"a\.csv: row 9, column 'label': found 2, expected a"):
        LeftOut("a.csv", skip=False).refuse(9, Wrong("label", 2, "a number"))


def test_attributes_are_what_readers_take_as_it_is() -> None:
    values: list[Any] = ["Alba", 59.9, True, 2**70, [1, "x"], None, "", float("nan")]
    found = [attribute_of(value, "a") for value in values]
    assert found == ["Alba", 59.9, True, float(2**70), ["1", "x"], None, None, None]
    for wrong in ({"a": 1}, float("inf"), 10**400):
        with pytest.raises(Wrong, match="column 'a'"):
            attribute_of(wrong, "a")


# --- hostile files ---


@pytest.mark.parametrize(
    ("array", "shown"),
    [
        (
            pyarrow.array([0, 2**60], pyarrow.timestamp("us", tz="UTC")),
            "timestamp[us, tz=UTC] that",
        ),
        (pyarrow.array([0, -(2**62)], pyarrow.timestamp("us")), "timestamp[us] that"),
        (pyarrow.array([0, 1], pyarrow.duration("ns")), "duration[ns] that"),
        (
            pyarrow.Array.from_buffers(
                pyarrow.string(), 2, pyarrow.array([b"ok", b"\xff\xfe"]).buffers()
            ),
            "string that",
        ),
    ],
)
def test_a_value_of_parquet_that_python_cannot_hold_is_wrong_in_its_row(
    tmp_path: Path, array: Any, shown: str
) -> None:
    table = pyarrow.table({"a": array, "b": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (_, first), (number, row) = read(tmp_path / "a.parquet")
    assert (first["b"], number, row["b"]) == (1, 2, 2)
    readers: list[Callable[[], Any]] = [
        lambda: text_of(row["a"], "a"),
        lambda: number_of(row["a"], "a", low=0, high=1),
        lambda: whole_of(row["a"], "a", low=0),
        lambda: flag_of(row["a"], "a"),
        lambda: attribute_of(row["a"], "a"),
        lambda: time_of(row["a"], "a", zone=ZoneInfo("UTC")),
    ]
    for reader in readers:
        with pytest.raises(Wrong) as wrong:
            reader()
        assert shown in str(wrong.value)


def test_an_instant_of_parquet_needs_no_zone_that_python_knows(tmp_path: Path) -> None:
    at = pyarrow.array([1_795_471_710_120_000], pyarrow.timestamp("us", tz="Mars/Base"))
    pyarrow.parquet.write_table(pyarrow.table({"time": at}), tmp_path / "a.parquet")
    ((_, row),) = read(tmp_path / "a.parquet")
    assert time_of(row["time"], "time", zone=None) == 1_795_471_710_120_000


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", ["a\x1b[31m", "PK\x03\x04\0", "x" * 201])
def test_a_header_that_cannot_be_printed_is_refused(tmp_path: Path, form: str, name: str) -> None:
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"query": ["a"], name: ["b"]}), path)
    else:
        written(path, as_csv([{"query": "a", name: "b"}]))
        if form == "jsonl":
            written(path, json.dumps({"query": "a", name: "b"}))
    with pytest.raises(TableRefused, match=r"column 2 is named .*expected at most 200") as refused:
        read(path)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300 + len(str(path))


def test_a_column_that_parquet_has_twice_is_refused(tmp_path: Path) -> None:
    labels = pyarrow.array([0, 1])
    table = pyarrow.Table.from_arrays([labels, labels], ["label", "label"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(TableRefused, match="column 'label' is there 2 times, expected once"):
        open_table(tmp_path / "a.parquet")


def test_a_list_s_first_sixteen_texts_are_read_and_what_is_none_is_left_out() -> None:
    assert attribute_of(["a", None, 2], "a") == ["a", "2"]
    assert attribute_of([*"abcdefghijklmnop", True], "a") == list("abcdefghijklmnop")


@pytest.mark.parametrize("column", ["prix\N{NO-BREAK SPACE}\N{EURO SIGN}", "a\N{SOFT HYPHEN}b"])
def test_a_column_may_have_spaces_of_other_kinds_in_its_name(column: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"query,{column}\nred,1\n")
    assert list(open_table(path).columns) == ["query", column]


@pytest.mark.parametrize("element", [{"a": 1}, ["a"], True, float("nan"), ("a", 1)])
def test_a_list_of_anything_but_texts_and_numbers_is_wrong(element: Any) -> None:
    with pytest.raises(Wrong, match=r"column 'a\[1\]': found .*, expected a"):
        attribute_of(["red", element], "a")


@given(
    st.lists(
        st.text(max_size=9) | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False), max_size=20
    )
)
def test_a_list_in_a_file_is_the_list_that_the_stream_reads(values: list[Any]) -> None:
    finite = [each for each in values if not isinstance(each, float) or math.isfinite(each)]
    repairs: list[Repair] = []
    event = {"object_id": "i", "text": "shoe", "attributes": {"a": finite}}
    line = json.dumps(event).encode()
    item = event_file.read(line, "a", 0, Kind.ITEM, repairs)
    assert isinstance(item, ItemUpdate)
    assert attribute_of(finite, "a") == item.attributes["a"]
