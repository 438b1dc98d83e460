"""Rows of a Parquet, CSV or JSONL file, one after another, with their numbers.

Rows are numbered from 1, without the header. Only a few of them are in memory at once. Values of a
CSV file are texts; an empty one is None, as is a key that a JSON object lacks.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import shlex
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from deploy.errors import TableRefused
from learner.extras import needed_by

Row = tuple[int, Mapping[str, Any]]

_DELIMITERS = ",;\t|"
_FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_ROWS_AT_ONCE = 4096
_MAX_LINE_BYTES = 16 << 20
_MAX_NAME, _NAME_SHOWN = 200, 40  # characters of a column's name
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A file of rows whose header has been read.

    Attributes:
        path: of the file.
        columns: names, in the order of the file.
        delimiter: of a CSV file, else "".
    """

    path: Path
    columns: tuple[str, ...]
    delimiter: str = ""

    def rows(self, wanted: Sequence[str]) -> Iterator[Row]:
        """Yield each row's number and its values, at least those of the wanted columns.

        Raises:
            TableRefused: the file is damaged; names the row.
        """
        kind = format_of(self.path)
        if kind == "parquet":
            return _parquet_rows(self.path, wanted)
        if kind == "jsonl":
            return _jsonl_rows(self.path)
        return _csv_rows(self.path, self.delimiter, self.columns)


def format_of(path: Path) -> str:
    """Return parquet, csv or jsonl.

    Raises:
        TableRefused: the ending is of none of them.
    """
    found = _FORMATS.get(path.suffix.lower())
    if found is None:
        endings = ", ".join(_FORMATS)
        raise TableRefused(f"{path}: the name ends in {path.suffix!r}, expected one of {endings}")
    return found


def open_table(path: Path, *, delimiter: str | None = None) -> Table:
    """Read the names of the columns.

    Those of JSONL are the keys of all rows: one that only late rows have is a column too.

    Args:
        path: of the file; its ending says the format.
        delimiter: of a CSV file; by default the one of ``, ; tab |`` that the header has most of.

    Raises:
        TableRefused: there is no such file, no row, or no header that can be used.
    """
    kind = format_of(path)
    with _read(path):
        if path.stat().st_size == 0:
            raise TableRefused(f"{path}: the file is empty")
        if kind == "parquet":
            named = tuple(_parquet(path).schema_arrow.names)
            return Table(path=path, columns=_checked(path, named))
        if kind == "jsonl":
            names = dict.fromkeys(name for _, row in _jsonl_rows(path) for name in row)
            return Table(path=path, columns=_checked(path, tuple(names)))
        if delimiter is not None and len(delimiter) != 1:
            raise TableRefused(f"--delimiter: got {delimiter!r}, expected one character")
        header, delimiter = _csv_header(path, delimiter)
        return Table(path=path, columns=_checked(path, header), delimiter=delimiter)


def sha256_of(path: Path) -> str:
    """Return the digest of a file, in hexadecimal."""
    with _read(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_no_text(character: str) -> bool:
    """Return whether it is a control character, or stands for bytes that could not be read."""
    return unicodedata.category(character) == "Cc" or character == "\N{REPLACEMENT CHARACTER}"


def _checked(path: Path, columns: tuple[str, ...]) -> tuple[str, ...]:
    if not columns:
        raise TableRefused(f"{path}: no row")
    twice = [name for name in dict.fromkeys(columns) if columns.count(name) > 1]
    if twice:
        raise TableRefused(
            f"{path}: column {twice[0]!r} is there {columns.count(twice[0])} times, expected once"
        )
    for number, name in enumerate(columns, 1):
        if len(name) > _MAX_NAME or any(map(_is_no_text, name)):
            found = repr(name[:_NAME_SHOWN]) + ("..." if len(name) > _NAME_SHOWN else "")
            raise TableRefused(
                f"{path}: column {number} is named {found}, expected at most {_MAX_NAME} "
                "characters that can be printed. Is it a file of rows with a header?"
            )
    return columns


@contextmanager
def _read(path: Path) -> Iterator[None]:
    """Say what is wrong with a file that cannot be read."""
    try:
        yield
    except OSError as error:
        raise TableRefused(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        with path.open("rb") as stream:
            written_in = "UTF-16" if stream.read(2) in _UTF_16 else "WINDOWS-1252"
        raise TableRefused(
            f"{path}: found byte 0x{byte:02x}, expected text in UTF-8. Convert it, for example: "
            f"iconv -f {written_in} -t UTF-8 {shlex.quote(path.name)} > utf-8{path.suffix}"
        ) from error


# --- CSV ----------------------------------------------------------------------------------------


def _csv_header(path: Path, delimiter: str | None) -> tuple[tuple[str, ...], str]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        line = stream.readline(_MAX_LINE_BYTES)
    if delimiter is None:
        delimiter = max(_DELIMITERS, key=line.count)  # the first of equals
    try:
        header = next(csv.reader(io.StringIO(line), delimiter=delimiter), [])
    except csv.Error as error:
        raise TableRefused(f"{path}: header: {error}. Is it a CSV file with a header?") from error
    return tuple(name.strip() for name in header), delimiter


def _csv_rows(path: Path, delimiter: str, columns: Sequence[str]) -> Iterator[Row]:
    with _read(path), path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        number = 0
        try:
            for values in itertools.islice(reader, 1, None):
                if not values:
                    continue  # an empty line
                number += 1
                if len(values) != len(columns):
                    raise TableRefused(
                        f"{path}: row {number} (line {reader.line_num}): found {len(values)} "
                        f"fields, expected {len(columns)} as in the header (delimiter "
                        f"{delimiter!r})"
                    )
                pairs = zip(columns, values, strict=True)
                yield number, {name: value if value != "" else None for name, value in pairs}
        except csv.Error as error:
            raise TableRefused(
                f"{path}: row {number + 1} (line {reader.line_num}): {error}. Is a quote left open?"
            ) from error


# --- JSONL --------------------------------------------------------------------------------------


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with _read(path), path.open("rb") as stream:
        number = 0
        for line_number, line in enumerate(iter(lambda: stream.readline(_MAX_LINE_BYTES), b""), 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if line_number == 1 else line
            if not text.strip():
                continue
            number += 1
            try:
                row = msgspec.json.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise TableRefused(
                    f"{path}: row {number} (line {line_number}): {error}; expected one JSON object "
                    "a line"
                ) from error
            if not isinstance(row, dict):
                raise TableRefused(
                    f"{path}: row {number} (line {line_number}): found {type(row).__name__}, "
                    "expected a JSON object"
                )
            yield number, row


# --- Parquet ------------------------------------------------------------------------------------


def _parquet(path: Path) -> Any:
    with needed_by(f"{path}: reading Parquet", TableRefused):
        import pyarrow
        import pyarrow.parquet
    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        cause = str(error).partition("\n")[0]
        raise TableRefused(f"{path}: {cause}; expected a Parquet file") from error


def _parquet_rows(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    with _read(path):
        file = _parquet(path)
        import pyarrow

        number = 0
        try:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(wanted)):
                for row in _plain(_microseconds(batch, pyarrow)):
                    number += 1
                    yield number, row
        except pyarrow.ArrowException as error:
            cause = str(error).partition("\n")[0]
            raise TableRefused(f"{path}: after row {number}: {cause}") from error


class Unreadable:
    """Value of Parquet that Python has no form for; wrong in every column."""

    def __init__(self, kind: object, why: Exception) -> None:
        """Take the type of Parquet, and why it cannot be read."""
        self._said = f"{kind} that cannot be read ({str(why).partition('.')[0]})"

    def __repr__(self) -> str:
        """Return what is shown where a value was found."""
        return self._said


def _plain(rows: Any) -> Iterator[dict[str, Any]]:
    """Yield rows of a Parquet table as values of Python, one `Unreadable` for each that has none.

    Such are texts that are not UTF-8, times outside the years 1 to 9999, and durations of odd
    nanoseconds.
    """
    try:
        yield from rows.to_pylist()
    except (ValueError, OverflowError):
        columns = {field.name: rows.column(n) for n, field in enumerate(rows.schema)}
        for place in range(rows.num_rows):
            yield {name: _value(column[place]) for name, column in columns.items()}


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError) as error:
        return Unreadable(scalar.type, error)


def _microseconds(batch: Any, pyarrow: Any) -> Any:
    """Return a batch whose times Python can hold: nanoseconds are cut off, zones are UTC.

    A time with a zone is an instant, whatever its zone is; Python may not know the zone.
    """
    fields = []
    for field in batch.schema:
        if pyarrow.types.is_timestamp(field.type):
            unit = "us" if field.type.unit == "ns" else field.type.unit
            zone = None if field.type.tz is None else "UTC"
            field = field.with_type(pyarrow.timestamp(unit, tz=zone))
        fields.append(field)
    return pyarrow.Table.from_batches([batch]).cast(pyarrow.schema(fields), safe=False)
