"""Prequential evaluation of a stretch of the stream, from the state that two versions keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import msgspec

from deploy.admin.checkpoints import find
from deploy.admin.evaluation_report import render
from deploy.errors import UsageError
from deploy.process.terminal import Output, table
from deploy.settings.units import format_time, parse_time
from learner.artifact import Store, Version
from learner.evaluation.block import FREQUENCY, SCENARIO, Block
from learner.evaluation.evaluation import Evaluation
from learner.evaluation.rankings import RATIOS
from learner.parts.attributes import coefficients_of
from learner.version_layout import EVALUATIONS
from weighting.estimators.attribute_choice import Coefficients

Gains: TypeAlias = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Dimension -> its group -> figure -> value."""
_ATTRIBUTE_HEADER = ("ATTRIBUTE", "LIFT UNDER", "COUNTS", "95 % INTERVAL")


def evaluate(
    store: Store, name: str, since: str | None, out: Output, *, report: Path | None = None
) -> int:
    """Write the figures of each task, of all samples or of those after another version.

    Args:
        store: with both versions.
        name: of the version, or its alias.
        since: a version that it continues, or a time in ISO 8601; None: the whole stream.
        out: takes them.
        report: file of a page with charts, written if it is given.

    Raises:
        UsageError: the version does not continue `since`, none was made by that time, the state
            of one has another format, or the report cannot be written.
        VersionMissing: there is no such version.
    """
    version = find(store, name)
    before = None if since is None else _ancestor(store, version, since)
    if before is not None and before.name == version.name:
        raise UsageError(f"--since: {version.name} has no samples after itself")
    first = {} if before is None else _evaluations(store, before)
    evaluations = _evaluations(store, version)
    blocks = {task: own.block(first.get(task)) for task, own in evaluations.items()}
    attributes = coefficients_of(version.evaluation)
    span = "all samples" if before is None else f"samples after {before.name}"
    result = {
        "version": version.name,
        "since": None if before is None else before.name,
        "tasks": {task: block.figures() for task, block in blocks.items()},
        "gains": {task: _gains(block) for task, block in blocks.items()},
        "attributes": {name: own._asdict() for name, own in attributes.items()},
    }
    title = f"{version.name}, {span}, scored before they were learned"
    out.give(result, [title, *_task_lines(blocks), *_attribute_lines(attributes)])
    if report is not None:
        after = {task: own.block().num_samples for task, own in first.items()}
        parts = {task: own.blocks(after.get(task, 0)) for task, own in evaluations.items()}
        _write(report, render(version, span, blocks, parts, store.readable()[::-1]))
        out.aside().text([f"report: {report}"])
    return 0


def _gains(block: Block) -> Gains:
    """Return the gains of a block in each scenario and frequency."""
    return {dimension: block.gains(dimension) for dimension in (SCENARIO, FREQUENCY)}


def _task_lines(blocks: Mapping[str, Block]) -> list[str]:
    """Return a paragraph for each task: its figures, and its gains if it has any."""
    lines = []
    for task, block in blocks.items():
        figures, gains = block.figures(), _gain_rows(_gains(block))
        lines += ["", f"{task}: {figures['num_samples']:,.0f} samples"]
        lines += table(("FIGURE", "VALUE", "95 % INTERVAL"), _rows(figures))
        lines += ["", *table(("LISTS", "NDCG GAIN", "95 % INTERVAL"), gains)] if gains else []
    return lines


def _attribute_lines(attributes: Mapping[str, Coefficients]) -> list[str]:
    """Return a paragraph of what the attributes count, if there are any."""
    return ["", *table(_ATTRIBUTE_HEADER, _attribute_rows(attributes))] if attributes else []


def _write(report: Path, page: str) -> None:
    try:
        report.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"--report: {report}: {error.strerror or error}") from error


def _evaluations(store: Store, version: Version) -> dict[str, Evaluation]:
    found = {}
    for task, state in msgspec.msgpack.decode(store.read(version, EVALUATIONS)).items():
        found[task] = Evaluation()
        try:
            found[task].restore(state)
        except ValueError as error:
            raise UsageError(f"{version.name}: {error}") from error
    return found


def _ancestor(store: Store, version: Version, since: str) -> Version:
    """Return the version that `since` names, of those that `version` continues."""
    lineage = [each for each in store.lineage(version.name) if each.kind == version.kind]
    time_us = parse_time(since)
    if time_us is None:
        wanted = find(store, since)
        if wanted.name not in [each.name for each in lineage]:
            raise UsageError(f"--since: {version.name} does not continue {wanted.name}")
        return wanted
    for each in lineage:  # newest first
        if each.created_us <= time_us:
            return each
    raise UsageError(
        f"--since: the oldest version that is kept was made at "
        f"{format_time(lineage[-1].created_us)}, after {format_time(time_us)}"
    )


def _gain_rows(groups: Gains) -> list[tuple[str, str, str]]:
    return [
        (
            f"{dimension} {name}",
            f"{gains['ndcg_gain']:+.4f}",
            f"{gains['ndcg_gain_low']:.4f} to {gains['ndcg_gain_high']:.4f}",
        )
        for dimension, found in groups.items()
        for name, gains in found.items()
    ]


def _attribute_rows(attributes: Mapping[str, Coefficients]) -> list[tuple[str, ...]]:
    return [
        (name, of, f"{value:+.2f}", f"{low:.2f} to {high:.2f}")
        for name, found in attributes.items()
        for of, (value, low, high) in found.intervals().items()
    ]


def _rows(found: dict[str, float]) -> list[tuple[str, str, str]]:
    rows = []
    for name in (*RATIOS, "auc", "log_loss", "predicted_to_observed", "calibration_error"):
        if name in found:
            low, high = found.get(f"{name}_low"), found.get(f"{name}_high")
            interval = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
            rows.append((name, f"{found[name]:.4f}", interval))
    return rows
