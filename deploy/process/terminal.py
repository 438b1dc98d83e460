"""Output of a command: its result, messages beside it, questions, progress, and tables."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deploy.errors import UsageError

_LINE_EVERY_SECONDS = 10.0

Cell = str | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Destinations of what a command writes; each call is one line.

    Attributes:
        write: takes results.
        report: takes everything else.
        as_json: whether results are JSON.
        ask: asks a person; None where there is no terminal.
        clock: seconds; only goes forward.
    """

    write: Callable[[str], None]
    report: Callable[[str], None]
    as_json: bool = False
    ask: Callable[[str], bool] | None = None
    clock: Callable[[], float] = time.monotonic

    def give(self, value: Any, lines: Iterable[str]) -> None:
        """Write the result: one JSON object, or the lines that say the same to a person."""
        if self.as_json:
            self.write(json.dumps(value, ensure_ascii=False))
        self.text(lines)

    def text(self, lines: Iterable[str]) -> None:
        """Write lines for a person; as JSON, nothing."""
        if not self.as_json:
            for line in lines:
                self.write(line)

    def aside(self) -> Output:
        """Return an output whose results go where everything else goes."""
        return replace(self, write=self.report)

    def confirmed(self, question: str, *, yes: bool) -> bool:
        """Return whether to go on: `yes` was given, or a person agrees.

        Raises:
            UsageError: neither was given nor can be asked.
        """
        if yes:
            return True
        if self.ask is None:
            raise UsageError(f"{question} There is nobody to ask: add --yes. Nothing was written.")
        if self.ask(question):
            return True
        self.report("nothing written")
        return False

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how much of `total` is done: a bar on a terminal, else one plain line every 10 s.

        Yields:
            a function to call with how much more is done.
        """
        if self.ask is None:
            yield self._lines(what, total)
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda more: bar.advance(task, more)

    def _lines(self, what: str, total: int) -> Callable[[int], None]:
        done, began = 0, self.clock()
        reported = began

        def advance(more: int) -> None:
            nonlocal done, reported
            done += more
            if (now := self.clock()) - reported >= _LINE_EVERY_SECONDS:
                reported = now
                left = (now - began) * max(total - done, 0) / done if done else 0.0
                self.report(f"{what}: {done:,} of {total:,}, about {left:,.0f} s left")

        return advance


def table(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> list[str]:
    """Return rows in columns under their header, without colour or box.

    Whole numbers are to the right, with separators; None is -.

    >>> table(("TOPIC", "OFFSET"), [("clicks", 1204), ("purchases", None)])
    ['TOPIC      OFFSET', 'clicks      1,204', 'purchases       -']
    """
    from rich.console import Console
    from rich.table import Table

    rows = list(rows)
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), collapse_padding=True)
    for number, name in enumerate(header):
        numeric = any(isinstance(row[number], int) for row in rows)
        grid.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*map(_cell, row))
    file = io.StringIO()
    console = Console(
        file=file, width=10_000, color_system=None, markup=False, emoji=False, highlight=False
    )
    console.print(grid)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def _cell(value: Cell) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else value
