"""How a command speaks to whoever called it: data, asides, a question, how far it is; and rows in columns."""

from __future__ import annotations

import contextlib
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
    """Where a command writes: data, and everything else; each call one line."""

    write: Callable[[str], None]
    tell: Callable[[str], None]
    as_json: bool = False
    ask: Callable[[str], bool] | None = (
        None  #: puts a question to a person; None where there is no terminal
    )
    clock: Callable[[], float] = time.monotonic

    def give(self, value: Any, lines: Iterable[str]) -> None:
        """Write the outcome: one JSON object, or the lines that say the same to a person."""
        if self.as_json:
            self.write(json.dumps(value, ensure_ascii=False))
        else:
            for line in lines:
                self.write(line)

    def aside(self) -> Output:
        """Return an output whose data goes where everything else goes."""
        return replace(self, write=self.tell)

    def confirmed(self, question: str, *, yes: bool) -> bool:
        """Return whether to go on: `yes` was given, or a person says so.

        Raises:
            UsageError: neither was given nor can be asked.
        """
        if yes:
            return True
        if self.ask is None:
            raise UsageError(f"{question} There is nobody to ask: add --yes. Nothing was written.")
        if self.ask(question):
            return True
        self.tell("nothing written")
        return False

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how much of `total` is done: a bar on a terminal, else one plain line every 10 s.

        Yields:
            what is called with how much more is done.
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
        done, told = 0, self.clock()

        def advance(more: int) -> None:
            nonlocal done, told
            done += more
            if (now := self.clock()) - told >= _LINE_EVERY_SECONDS:
                told = now
                self.tell(f"{what}: {done:,} of {total:,}")

        return advance


def table(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> list[str]:
    """Return rows in columns under their header: whole numbers to the right, with separators; None as -.

    >>> table(("TOPIC", "OFFSET"), [("clicks", 1204), ("purchases", None)])
    ['TOPIC      OFFSET', 'clicks      1,204', 'purchases       -']
    """
    rows = list(rows)
    shown = [
        ["-" if cell is None else f"{cell:,}" if isinstance(cell, int) else cell for cell in row]
        for row in rows
    ]
    right = [any(isinstance(row[column], int) for row in rows) for column in range(len(header))]
    widths = [max(map(len, column)) for column in zip(header, *shown, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in ([*header], *shown)
    ]
