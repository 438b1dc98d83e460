"""Operator command that makes a smaller encoder of a version's, and says what that costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.admin.checkpoints import find
from deploy.admin.new_folder import check_free, write_folder
from deploy.demo.judge import interval
from deploy.errors import UsageError
from deploy.fitting import judging
from deploy.fitting.command import FitRequest, examples_of
from deploy.fitting.examples import Examples
from deploy.fitting.split import split
from deploy.process.terminal import Output, table
from deploy.settings.tree import Settings
from deploy.tables.values import LeftOut
from learner.artifact import Store
from learner.errors import ModelUnsupported
from learner.store.blobs import Disk

if TYPE_CHECKING:
    from learner.compression.compress import Compression, CosineRanker
    from learner.compression.lists import LabelledList

_NUM_DOCUMENTS, _NUM_RUNS = 100, 7
_SERVED = (
    ("int8", "torch", "int8"),
    ("openvino", "openvino", "float32"),
    ("openvino-bfloat16", "openvino", "bfloat16"),
    ("openvino-int8", "openvino", "int8"),
)
"""Rows beside an encoder's own: suffix of the name, `serving.engine` and `serving.precision`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressRequest:
    """Options of the command, as they were given.

    Attributes:
        name: of the version.
        folder: that is written.
        examples: the file, and how it is read.
        test: share of its queries that the figures are of.
        layers: that stay; None: all.
        prune_ffn: share of feed-forward units that go.
        prune_heads: share of attention heads that go.
        magnitude: share of weights that become zero.
        epochs: of distillation.
        lr: highest learning rate of it.
    """

    name: str
    folder: Path
    examples: FitRequest
    test: float = 0.2
    layers: int | None = None
    prune_ffn: float = 0.0
    prune_heads: float = 0.0
    magnitude: float = 0.0
    epochs: int = 3
    lr: float = 5e-4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Judged:
    """Figures of one encoder on the lists held back."""

    name: str
    facts: dict[str, Any]
    ndcg: judging.Array = field(repr=False)


def run(
    settings: Settings,
    request: CompressRequest,
    out: Output,
    *,
    clock: Callable[[], float] = time.time,
    disk: Disk | None = None,
) -> int:
    """Prune, distil, judge, and write a folder; return the exit code.

    Raises:
        Unsafe, UsageError: an option or the folder cannot be used.
        TableRefused: the file cannot be used.
        LearnerError: the version is damaged, or its encoder cannot be compressed.
        WriteFailed: the folder could not be written; nothing is left of it.
    """
    store, target = Store(settings.store.root), request.folder.resolve()
    version = find(store, request.name)
    check_free(target, store.root)
    from learner.compression import compress, shape
    from learner.export import read_encoder

    before = compress.teacher(read_encoder(store, version), threads=settings.learner.threads)
    size = before.size()
    how = _checked(request, size["layers"], settings.learner.batch_size)
    if how.prune_heads and shape.num_heads(size["heads"], how.prune_heads) == size["heads"]:
        number = size["heads"]
        enough = f", or a share above {0.5 / number:.2g}" if number > 1 else ": one has to stay"
        raise UsageError(
            f"--prune-heads: got {how.prune_heads:g}, which takes out none of {number:g} heads; "
            f"expected 0{enough}"
        )
    train, test = _parts(request, out, clock)
    lists = [_labelled(own) for own in train]
    if (how.prune_ffn or how.prune_heads) and not any(own.compares for own in lists):
        raise UsageError(f"{request.examples.file}: no list has right and wrong items")
    judge = _Judge(train, test, out.clock)
    rows = [first := judge(version.name, before), *_served(judge, version.name, before, out)]
    after, masks = compress.pruned(before, lists, how)
    losses: list[float] = []
    if how.epochs:
        rows.append(judge("pruned", after))
        total = sum(len(own.texts) for own in lists) * how.epochs
        with out.progress("rows learned", total) as advance:
            losses = compress.distilled(after, before, lists, how, masks, advance=advance)
    rows += [last := judge("compressed", after), *_served(judge, "compressed", after, out)]
    difference = interval(last.ndcg - first.ndcg) if len(first.ndcg) > 1 else None
    notes = list(_notes(request, first, last, difference))
    write_folder(target, after.files(notes), disk or Disk())
    facts = {
        "version": version.name,
        "path": str(target),
        "encoders": [{"name": row.name, **row.facts} for row in rows],
        "ndcg_difference": difference,
        "losses": losses,
    }
    out.give(facts, _lines(target, rows, notes))
    return 0


def _checked(request: CompressRequest, num_layers: int, batch_size: int) -> Compression:
    """Return what is to be done, within bounds."""
    from learner.compression.compress import Compression

    if request.layers is not None and not 1 <= request.layers <= num_layers:
        raise UsageError(
            f"--layers: got {request.layers}, expected 1 to {num_layers}, which the encoder has"
        )
    for option, share in (
        ("--prune-ffn", request.prune_ffn),
        ("--prune-heads", request.prune_heads),
        ("--magnitude", request.magnitude),
    ):
        if not 0 <= share < 1:
            raise UsageError(f"{option}: got {share:g}, expected a share from 0, below 1")
    shares = (request.prune_ffn, request.prune_heads, request.magnitude)
    if request.layers is None and not any(shares):
        raise UsageError(
            "nothing to compress by: give --layers, --prune-ffn, --prune-heads or --magnitude"
        )
    if not 0 < request.lr < 1:
        raise UsageError(f"--lr: got {request.lr:g}, expected a rate above 0, below 1")
    return Compression(
        layers=request.layers,
        prune_ffn=request.prune_ffn,
        prune_heads=request.prune_heads,
        magnitude=request.magnitude,
        epochs=request.epochs,
        lr=request.lr,
        batch_size=batch_size,
        seed=request.examples.seed,
    )


def _parts(
    request: CompressRequest, out: Output, clock: Callable[[], float]
) -> tuple[list[Examples], list[Examples]]:
    if not request.test:
        raise UsageError("--test: got 0, expected a share above 0: the figures are of it")
    left_out = LeftOut(str(request.examples.file), skip=request.examples.skip_invalid)
    found = examples_of(request.examples, left_out, out, clock)
    parts = split(found.lists, "query", dev=0, test=request.test, seed=request.examples.seed)
    for line in (*left_out.lines(), *found.notes):
        out.report(line)
    out.report(f"train {len(parts.train):,} lists, test {len(parts.test):,} lists")
    return parts.train, parts.test


def _labelled(own: Examples) -> LabelledList:
    from learner.compression.lists import LabelledList

    return LabelledList(query=own.query, texts=tuple(own.texts), labels=tuple(own.labels))


class _Judge:
    """Figures of encoders on the same lists."""

    def __init__(
        self, train: Sequence[Examples], test: Sequence[Examples], clock: Callable[[], float]
    ) -> None:
        self._train = [_labelled(own) for own in train]
        self._test_lists = test
        self._test = [_labelled(own) for own in test]
        self._clock = clock

    def __call__(self, name: str, ranker: CosineRanker) -> _Judged:
        from learner.compression import calibration

        positive = judging.grades(self._test_lists) >= 0.5
        label, train_label = positive.astype(np.float64), _labels(self._train)
        cosine = ranker.cosines(self._test)
        fit = calibration.platt(ranker.cosines(self._train), train_label)
        p = calibration.probability(cosine, fit)
        ndcg = judging.ndcg_of_queries(self._test_lists, cosine)
        facts = {
            **ranker.size(),
            "ms": round(self._milliseconds(ranker), 1),
            "ndcg": float(ndcg.mean()) if len(ndcg) else None,
            "queries": len(ndcg),
            "auc": _number(judging.auc(cosine, positive)),
            "log_loss": calibration.log_loss(p, label),
            "calibration_error": calibration.calibration_error(p, label),
        }
        return _Judged(name=name, facts=facts, ndcg=ndcg)

    def _milliseconds(self, ranker: CosineRanker) -> float:
        """Return the time to encode a query and 100 documents: the least of several runs."""
        texts = list(dict.fromkeys(text for own in self._test for text in own.texts))
        documents = [texts[n % len(texts)] for n in range(_NUM_DOCUMENTS)]
        taken = []
        for _ in range(_NUM_RUNS):
            began = self._clock()
            ranker.encode([self._test[0].query, *documents])
            taken.append(1000 * (self._clock() - began))
        return min(taken)


def _served(judge: _Judge, name: str, ranker: CosineRanker, out: Output) -> list[_Judged]:
    """Judge a ranker as other precisions and engines serve it, where that can be."""
    from learner.compression.compress import served

    rows: list[_Judged] = []
    refused: dict[str, list[str]] = {}
    for suffix, engine, precision in _SERVED:
        full = f"{name}-{suffix}"
        try:
            rows.append(judge(full, served(ranker, precision=precision, engine=engine)))
        except ModelUnsupported as error:
            refused.setdefault(str(error), []).append(full)
    for reason, names in refused.items():
        out.report(f"{', '.join(names)}: not judged: {reason}")
    return rows


def _labels(lists: Sequence[LabelledList]) -> judging.Array:
    return np.array([float(label) for own in lists for label in own.labels])


def _number(value: float) -> float | None:
    return None if value != value else value


def _notes(
    request: CompressRequest,
    before: _Judged,
    after: _Judged,
    difference: tuple[float, ...] | None,
) -> Iterator[str]:
    """Yield what was done and what it cost, for a person and the card."""
    first, last = before.facts, after.facts
    yield (
        f"Compressed: {first['layers']} -> {last['layers']} layers, {first['units']:,} -> "
        f"{last['units']:,} feed-forward units, {first['heads']:g} -> {last['heads']:g} heads, "
        f"{first['parameters']:,} -> {last['parameters']:,} parameters; "
        f"distilled for {request.epochs} epochs of {request.examples.file.name}"
    )
    if difference is not None:
        value, low, high = difference
        yield f"NDCG@10 less that before: {value:+.4f} [{low:+.4f}, {high:+.4f}]"
    if last["heads"] < first["heads"]:
        yield (
            "Heads that went are zeros in the file, so that transformers loads it; of a "
            "learner.model they leave memory (kept_heads in config.json)"
        )
    if request.magnitude:
        zeros = 1 - last["not_zero"] / last["parameters"]
        yield (
            f"{zeros:.0%} of the parameters are zero, anywhere in their matrices: files pack "
            "better, products are no faster"
        )


def _lines(target: Path, rows: Sequence[_Judged], notes: Sequence[str]) -> Iterator[str]:
    header = (
        "ENCODER",
        "LAYERS",
        "UNITS",
        "HEADS",
        "PARAMETERS",
        "MB",
        "MS FOR 100",
        "NDCG@10",
        "AUC",
        "LOG LOSS",
        "CALIBRATION ERROR",
    )
    yield from table(header, [_row(row) for row in rows])
    yield from notes
    yield f"{target}: learner.model can name it"


def _row(row: _Judged) -> tuple[str | int | None, ...]:
    facts = row.facts
    figures = (facts[key] for key in ("ndcg", "auc", "log_loss", "calibration_error"))
    return (
        row.name,
        facts["layers"],
        facts["units"],
        f"{facts['heads']:g}",
        facts["parameters"],
        f"{facts['bytes'] / 1e6:.1f}",
        f"{facts['ms']:.1f}",
        *(None if value is None else f"{value:.4f}" for value in figures),
    )
