"""Columns of a Parquet file as Python lists, with errors that name file, column and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning_data.dataset import DataError
from learner.extras import needed_by

Table = dict[str, list[Any]]


def read_table(path: Path, required: Sequence[str], *, others: bool = False) -> Table:
    """Read the required columns of a Parquet file, and all others where asked for.

    Raises:
        DataError: the file or a column is missing, it is not Parquet, it has no row, or the
            package that reads it is not installed.
    """
    with needed_by(f"{path}: reading Parquet", DataError):
        import pyarrow
        import pyarrow.parquet
    if not path.is_file():
        raise DataError(f"{path}: no such file; write it with the columns {', '.join(required)}")
    try:
        names = list(pyarrow.parquet.read_schema(path).names)
        missing = [name for name in required if name not in names]
        if missing:
            raise DataError(
                f"{path}: column {missing[0]} is missing, found {', '.join(names) or 'none'}; "
                f"add it or rename the column that holds it"
            )
        columns = None if others else list(required)
        table: Table = pyarrow.parquet.read_table(path, columns=columns).to_pydict()
    except (OSError, pyarrow.ArrowException) as error:
        cause = str(error).partition("\n")[0]
        raise DataError(f"{path}: {cause}; write it as a Parquet file") from error
    if not table[required[0]]:
        raise DataError(f"{path}: column {required[0]} has no row; write at least one")
    return table


class Column:
    """One column with what an error about it says.

    >>> Column(Path("lists.parquet"), "clicked", [0, 1, True]).flags()
    [False, True, True]
    """

    def __init__(self, path: Path, name: str, values: list[Any]) -> None:
        """Take the values of a column."""
        self._path = path
        self._name = name
        self._values = values

    def refused(self, row: int, remedy: str) -> DataError:
        """Return the error about the value of a row."""
        return DataError(
            f"{self._path}: column {self._name}, row {row + 1}: got {self._values[row]!r}; {remedy}"
        )

    def ids(self) -> list[str]:
        """Return texts; whole numbers are written out."""
        found = []
        for row, value in enumerate(self._values):
            if isinstance(value, bool) or not isinstance(value, str | int):
                raise self.refused(row, "write a text or a whole number, and no null")
            found.append(str(value))
        return found

    def texts(self) -> list[str]:
        """Return texts as they are."""
        for row, value in enumerate(self._values):
            if not isinstance(value, str):
                raise self.refused(row, "write a text, an empty one where there is none")
        return self._values

    def flags(self) -> list[bool]:
        """Return truth values from true and false, or 1 and 0."""
        return [bool(flag) for flag in self._flags(nullable=False)]

    def flags_or_none(self) -> list[bool | None]:
        """Return truth values, None for null."""
        return self._flags(nullable=True)

    def _flags(self, *, nullable: bool) -> list[bool | None]:
        remedy = "write true or false, 1 or 0" + (", or null where it is not known" * nullable)
        found: list[bool | None] = []
        for row, value in enumerate(self._values):
            if value is None and nullable:
                found.append(None)
            elif isinstance(value, bool | int | float) and value in (0, 1):
                found.append(bool(value))
            else:
                raise self.refused(row, remedy)
        return found

    def positions(self) -> list[int | None]:
        """Return 1-based positions, None for null."""
        found: list[int | None] = []
        for row, value in enumerate(self._values):
            missing = value is None or value != value
            if not missing and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise self.refused(row, "write a whole number, or null")
            if not missing and (value < 1 or value != int(value)):
                raise self.refused(
                    row, "positions count from 1; write null where the order is random"
                )
            found.append(None if missing else int(value))
        return found

    def grades(self) -> list[float]:
        """Return grades >= 0."""
        for row, value in enumerate(self._values):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value <= 1000:
                raise self.refused(
                    row, "write a grade from 0 (irrelevant) to 1000; its gain is 2^grade - 1"
                )
        return [float(value) for value in self._values]
