"""Small invented files of pairs and shown lists, and a fit of them with an untrained encoder."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from deploy.fitting import command
from deploy.fitting.command import FitRequest
from deploy.settings.tree import Settings
from learner.config import StoreConfig
from tests.deploy.whole import SETTINGS
from tests.fakes.clock import ManualClock
from tests.fakes.paper import Paper

_COLORS, _THINGS = ("red", "blue", "green"), ("shoe", "mug", "lamp", "chair")


def pairs(num_queries: int = 24, *, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of which those with the query's colour and thing have label 1."""
    random, rows = Random(seed), []
    for number in range(num_queries):
        color, thing = random.choice(_COLORS), random.choice(_THINGS)
        for place in range(4):
            own = (color, thing) if place == 1 else (random.choice(_COLORS), random.choice(_THINGS))
            rows.append(
                {
                    "query": f"{color} {thing} {number}",
                    "text": f"{own[0]} {own[1]} model {random.randrange(100)}",
                    "label": int(own == (color, thing)),
                    "time": f"2026-10-{1 + number % 28:02d}T10:00:0{place}Z",
                }
            )
    return rows


def shown(num_lists: int = 24, *, seed: int = 0, first: int = 1) -> list[dict[str, Any]]:
    """Shown lists: clicked at a right item, bought half of the time."""
    rows: list[dict[str, Any]] = []
    for row in pairs(num_lists, seed=seed):
        place = len(rows) % 4
        clicked = row.pop("label")
        rows.append(
            {
                **row,
                "list_id": f"l-{len(rows) // 4}",
                "item_id": f"SKU-{row['text'].split(' model')[0].replace(' ', '-')}-{place}",
                "position": place + first,
                "clicked": clicked,
                "purchased": place % 2 if clicked else "",
                "attributes.color": row["text"].split()[0],
            }
        )
    return rows


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def in_store(root: Path) -> Settings:
    return replace(SETTINGS, store=StoreConfig(root=root))


def fit(
    file: Path, root: Path, *, settings: Settings | None = None, **options: Any
) -> tuple[dict[str, Any], Paper]:
    """Run the command with one JSON object as its result."""
    paper = Paper()
    request = FitRequest(file=file, **{"epochs": 2, **options})
    code = command.run(
        settings or in_store(root),
        request,
        paper.output(as_json=True),
        clock=ManualClock(1_800_000_000.0),
    )
    assert code == 0
    return paper.objects[0], paper
