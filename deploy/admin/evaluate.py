"""Prequential evaluation of a stretch of the stream, from the state that two versions keep."""

from __future__ import annotations

import msgspec

from deploy.admin.checkpoints import find
from deploy.errors import UsageError
from deploy.process.terminal import Output, table
from deploy.settings.units import format_time, parse_time
from learner.artifact import Store, Version
from learner.evaluation import Evaluation
from learner.rankings import RATIOS
from learner.version_layout import EVALUATIONS


def evaluate(store: Store, name: str, since: str | None, out: Output) -> int:
    """Write the figures of each task, of all samples or of those after another version.

    Args:
        store: with both versions.
        name: of the version, or its alias.
        since: a version that it continues, or a time in ISO 8601; None: the whole stream.
        out: takes them.

    Raises:
        UsageError: the version does not continue `since`, none was made by that time, or the
            state of one has another format.
        VersionMissing: there is no such version.
    """
    version = find(store, name)
    before = None if since is None else _ancestor(store, version, since)
    if before is not None and before.name == version.name:
        raise UsageError(f"--since: {version.name} has no samples after itself")
    first = {} if before is None else _evaluations(store, before)
    figures = {
        task: evaluation.since(first[task]) if task in first else evaluation.get()
        for task, evaluation in _evaluations(store, version).items()
    }
    begin = None if before is None else before.name
    span = "all samples" if before is None else f"samples after {before.name}"
    lines = [f"{version.name}, {span}, scored before they were learned"]
    for task, found in figures.items():
        lines += ["", f"{task}: {found['num_samples']:,.0f} samples"]
        lines += table(("FIGURE", "VALUE", "95 % INTERVAL"), _rows(found))
    out.give({"version": version.name, "since": begin, "tasks": figures}, lines)
    return 0


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


def _rows(found: dict[str, float]) -> list[tuple[str, str, str]]:
    rows = []
    for name in (*RATIOS, "auc", "log_loss", "predicted_to_observed", "calibration_error"):
        if name in found:
            low, high = found.get(f"{name}_low"), found.get(f"{name}_high")
            interval = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
            rows.append((name, f"{found[name]:.4f}", interval))
    return rows
