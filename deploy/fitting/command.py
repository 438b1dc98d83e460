"""Command `fit`: from a file of pairs or shown lists to the first version of a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from deploy.errors import UsageError
from deploy.fitting import version as versions
from deploy.fitting.columns import find_columns
from deploy.fitting.epochs import Epoch, Fitted, Plan, fit
from deploy.fitting.examples import Found, Reading, read_examples
from deploy.fitting.judging import Figures
from deploy.fitting.split import Parts, split
from deploy.process.terminal import Output, table
from deploy.settings.tree import Settings
from deploy.tables.rows import open_table, sha256_of
from deploy.tables.values import LeftOut, Wrong, time_of, zone_of
from learner.artifact import Version
from learner.store.manifest import FitSource


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRequest:
    """Options of the command, as they were given."""

    file: Path
    epochs: int = 3
    split: str = "query"
    dev: float = 0.1
    test: float = 0.1
    patience: int = 1
    seed: int = 0
    columns: Sequence[str] = ()
    attributes: Sequence[str] = ()
    delimiter: str | None = None
    timezone: str | None = None
    time_format: str | None = None
    first_position: int = 1
    before: str | None = None
    as_of: str | None = None
    skip_invalid: bool = False


def run(
    settings: Settings,
    request: FitRequest,
    out: Output,
    *,
    clock: Callable[[], float] = time.time,
) -> int:
    """Learn from a file and write the version; return the exit code.

    Raises:
        TableRefused, UsageError: the file or an option cannot be used.
        Unsafe: the store is not a new one.
        LearnerError: of the model or of its training.
    """
    began = out.clock()
    _check_privacy(settings, request.epochs)
    versions.refuse_used(settings.store.root)
    left_out = LeftOut(str(request.file), skip=request.skip_invalid)
    found = examples_of(request, left_out, out, clock)
    parts = split(found.lists, request.split, dev=request.dev, test=request.test, seed=request.seed)
    for line in (*left_out.lines(), *found.notes, _parts_line(parts)):
        out.report(line)
    _check_purchases(settings, parts)
    plan = Plan(
        epochs=request.epochs,
        patience=request.patience,
        seed=request.seed,
        file=request.file.name,
    )
    total = sum(len(own.rows) for own in parts.train) * request.epochs
    with out.progress("rows learned", total) as advance:
        fitted = fit(
            settings,
            parts,
            plan,
            advance=advance,
            each=lambda each: out.report(_epoch_line(each)),
            clock=clock,
        )
    source = FitSource(
        file=request.file.name,
        sha256=sha256_of(request.file),
        rows=sum(len(own.rows) for own in parts.train),
        epochs=fitted.epochs[-1].number,
        best_epoch=fitted.best.number,
        figures=dict(versions.figures_of(fitted)),
    )
    written = versions.write(settings, fitted, source, clock=clock)
    seconds = out.clock() - began
    result = _result(written, source, fitted, found, left_out, seconds)
    out.give(result, _lines(written, settings.store.root, fitted, source, seconds))
    return 0


def _check_purchases(settings: Settings, parts: Parts) -> None:
    """Refuse to learn from every item that was not bought where no purchase is known."""
    known = any(bought is not None for own in parts.train for bought in own.bought)
    if settings.learner.task_weights.purchase_over_all and not known:
        raise UsageError(
            "learner.task_weights.purchase_over_all: the file says of no clicked item whether it "
            "was bought, so nothing but the absence of purchases would be learned. Name the "
            "column with --column purchased=NAME, or set it to 0."
        )


def _check_privacy(settings: Settings, epochs: int) -> None:
    """Refuse more epochs than steps that a list may add to: each epoch is one."""
    privacy = settings.learner.privacy
    if privacy.enabled and epochs > privacy.max_contributions:
        raise UsageError(
            f"--epochs: got {epochs}, but learner.privacy.max_contributions lets a list add to "
            f"{privacy.max_contributions} steps. Lower --epochs, or raise the setting, which "
            "raises epsilon."
        )


def examples_of(
    request: FitRequest, left_out: LeftOut, out: Output, clock: Callable[[], float]
) -> Found:
    """Read the examples of a request's file, and say which columns were taken for what.

    Raises:
        TableRefused, UsageError: the file or an option cannot be used.
    """
    opened = open_table(request.file, delimiter=request.delimiter)
    columns = find_columns(
        request.file, opened.columns, given=request.columns, attributes=request.attributes
    )
    named = ", ".join(f"{name}={column}" for name, column in columns.named.items())
    attributes = ", ".join(columns.attributes)
    out.report(f"{request.file}: {columns.kind}: {named}" + (attributes and f"; {attributes}"))
    if columns.not_read:
        out.report(
            f"columns not read: {', '.join(columns.not_read)} (--column NAME=COLUMN and "
            "--attributes take them)"
        )
    reading = Reading(
        zone=zone_of(request.timezone),
        time_format=request.time_format,
        now_us=int(clock() * 1e6),
        first_position=request.first_position,
        before_us=_time(request.before, "--before"),
        seed=request.seed,
    )
    as_of_us = _time(request.as_of, "--as-of")
    if as_of_us is None:
        as_of_us = request.file.stat().st_mtime_ns // 1000
    return read_examples(opened, columns, reading, left_out, as_of_us=as_of_us)


def _time(text: str | None, option: str) -> int | None:
    try:
        return None if text is None else time_of(text, option, zone=ZoneInfo("UTC"))
    except Wrong as error:
        raise UsageError(f"{option}: got {text!r}, expected a time in ISO 8601") from error


# --- what is printed ----------------------------------------------------------------------------


def _parts_line(parts: Parts) -> str:
    sizes = [
        f"{name} {len(part):,} lists, {sum(len(own.rows) for own in part):,} rows"
        for name, part in (("train", parts.train), ("dev", parts.dev), ("test", parts.test))
    ]
    return "; ".join(sizes)


def _epoch_line(epoch: Epoch) -> str:
    name = f"epoch {epoch.number}: loss {epoch.loss:.4f}" if epoch.number else "before any step"
    return name if epoch.dev is None else f"{name}; dev: {_said(epoch.dev)}"


def _said(own: Figures) -> str:
    return (
        f"NDCG@10 {own.ndcg:.4f} [{own.ndcg_low:.4f}, {own.ndcg_high:.4f}] of {own.queries:,} "
        f"queries, AUC {own.auc:.4f}, accuracy {own.accuracy:.4f}, F1 {own.f1:.4f}"
    )


def _lines(
    written: Version, root: Path, fitted: Fitted, source: FitSource, seconds: float
) -> Iterator[str]:
    yield f"{written.name} in {root}: epoch {source.best_epoch} of {source.epochs}, {seconds:.0f} s"
    if fitted.test is not None and fitted.zero_shot is not None:
        header = ("TEST", "NDCG@10", "95 % INTERVAL", "AUC", "ACCURACY", "F1")
        yield from table(header, [_row("fitted", fitted.test), _row("zero-shot", fitted.zero_shot)])
    if fitted.gain is not None:
        value, low, high = fitted.gain
        yield f"fitted less zero-shot: NDCG@10 {value:+.4f} [{low:+.4f}, {high:+.4f}]"
    if fitted.shown is not None:
        yield f"order that was shown: NDCG@10 {fitted.shown:.4f}"
    yield "`steelyard learn` with the same settings goes on from it; see docs/fit.md for where"


def _row(name: str, own: Figures) -> tuple[str, ...]:
    interval = f"[{own.ndcg_low:.4f}, {own.ndcg_high:.4f}]"
    rest = (f"{own.auc:.4f}", f"{own.accuracy:.4f}", f"{own.f1:.4f}")
    return (name, f"{own.ndcg:.4f}", interval, *rest)


def _result(
    written: Version,
    source: FitSource,
    fitted: Fitted,
    found: Found,
    left_out: LeftOut,
    seconds: float,
) -> dict[str, Any]:
    def plain(own: Figures | None) -> dict[str, float | None] | None:
        return None if own is None else own.plain()

    first_us, last_us = fitted.event_times_us
    return {
        "version": written.name,
        "file": source.file,
        "sha256": source.sha256,
        "rows": found.num_rows,
        "left_out": left_out.counts,
        "epochs": [
            {"epoch": e.number, "loss": None if e.loss != e.loss else e.loss, "dev": plain(e.dev)}
            for e in fitted.epochs
        ],
        "best_epoch": source.best_epoch,
        "test": plain(fitted.test),
        "zero_shot": plain(fitted.zero_shot),
        "gain_over_zero_shot": fitted.gain,
        "shown_order_ndcg": fitted.shown,
        "from": _iso(first_us),
        "to": _iso(last_us),
        "seconds": round(seconds, 1),
    }


def _iso(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat()
