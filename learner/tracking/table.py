"""An explained list as a table in HTML, as trackers show it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from learner.training.explained import ExplainedItem, ExplainedList

_LONGEST_TEXT = 80


def table(own: ExplainedList) -> str:
    """Return the query, and a table with a row for each item in served order.

    Columns are what each part adds to the logit; those that add nothing to any item are left out.
    Texts are cut at 80 characters.
    """
    items = own.items
    names = [name for name in items[0].contributions if _says(items, name)]
    header = ("item", "text", "shown at", "clicked", "score", "logit", *names)
    rows = (_row([escape(name) for name in header], "th"), *(_item(i, names) for i in items))
    return f"<p>query: <b>{_text(own.query)}</b></p>\n<table>\n{''.join(rows)}</table>"


def _says(items: Sequence[ExplainedItem], name: str) -> bool:
    return any(item.contributions[name] for item in items)


def _item(item: ExplainedItem, names: Sequence[str]) -> str:
    return _row(list(_cells(item, names)), "td")


def _cells(item: ExplainedItem, names: Sequence[str]) -> Iterator[str]:
    yield _text(item.item_id)
    yield _text(item.text)
    yield "" if item.position is None else str(item.position)
    yield "yes" if item.clicked else ""
    yield f"{item.score:.4g}"
    yield f"{item.logit:+.3f}"
    for name in names:
        yield f"{item.contributions[name]:+.3f}"


def _row(cells: Sequence[str], kind: str) -> str:
    return f"<tr>{''.join(f'<{kind}>{cell}</{kind}>' for cell in cells)}</tr>\n"


def _text(text: str) -> str:
    """Return a text on one line, cut, without half a surrogate pair, and escaped."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    cut = line if len(line) <= _LONGEST_TEXT else f"{line[: _LONGEST_TEXT - 1]}…"
    return escape(cut)
