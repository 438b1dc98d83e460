"""Command `tag`: from a file of tagged texts to a token-classification folder of Hugging Face."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.admin.new_folder import check_free, write_folder
from deploy.errors import TableRefused, UsageError
from deploy.fitting.split import divide, drawn
from deploy.process.terminal import Output, table
from deploy.settings.tree import Settings
from deploy.tables.rows import sha256_of
from deploy.tables.values import LeftOut, zone_of
from deploy.tagging.epochs import Epoch, Part, TagPlan, Trained, train
from deploy.tagging.texts import TaggedText, TagReading, read_texts
from learner.store.blobs import Disk
from learner.tagging.card import tag_card
from learner.tagging.entities import OUTSIDE, TagFigures, have_prefixes

BY = ("text", "time")
_ROWS_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRequest:
    """Options of the command, as they were given."""

    file: Path
    folder: Path
    epochs: int = 10
    split: str = "text"
    dev: float = 0.1
    test: float = 0.1
    patience: int = 2
    seed: int = 0
    batch_size: int = 32
    tuning: str = "full"
    columns: Sequence[str] = ()
    timezone: str | None = None
    time_format: str | None = None
    skip_invalid: bool = False


def run(settings: Settings, request: TagRequest, out: Output, *, disk: Disk | None = None) -> int:
    """Learn from a file and write the folder; return the exit code.

    Raises:
        TableRefused, UsageError: the file or an option cannot be used.
        Unsafe: the folder holds something.
        LearnerError: of the model.
        DeployError: steps were not finite.
        WriteFailed: the folder could not be written.
    """
    began = out.clock()
    target = request.folder.resolve()
    check_free(target, settings.store.root)
    _check_privacy(settings)
    if request.split not in BY:
        raise UsageError(f"--split: got {request.split!r}, expected text or time")
    left_out = LeftOut(str(request.file), skip=request.skip_invalid)
    reading = TagReading(
        columns=request.columns,
        times=request.split == "time",
        zone=zone_of(request.timezone),
        time_format=request.time_format,
    )
    texts = read_texts(request.file, reading, left_out, report=out.report)
    parts = _split(texts, request)
    tags = _tags(request.file, parts["train"])
    prefixes = have_prefixes(tag for text in texts for tag in text.tags)
    for line in (*left_out.lines(), *_said_of(parts, tags, prefixes)):
        out.report(line)
    plan = TagPlan(
        epochs=request.epochs,
        patience=request.patience,
        seed=request.seed,
        batch_size=request.batch_size,
        tuning=request.tuning,
        prefixes=prefixes,
    )
    with out.progress("rows learned", len(parts["train"]) * request.epochs) as advance:
        trained = train(
            settings.learner,
            tags,
            parts,
            plan,
            advance=advance,
            each=lambda epoch: out.report(_epoch_line(epoch)),
            tokenised=_reporter(out),
        )
    sha256 = sha256_of(request.file)
    facts = {
        "File": f"{request.file.name}, sha256 {sha256}",
        "Learned from": f"{len(parts['train']):,} texts, epoch {trained.best.number} of "
        f"{trained.epochs[-1].number}",
        "Encoder": f"{settings.learner.model}, tuning {request.tuning}, at most "
        f"{settings.learner.max_tokens} tokens",
    }
    held_back = {"dev": trained.best.dev, "test": trained.test}
    card = tag_card(tags, facts=facts, prefixes=prefixes, parts=held_back)
    write_folder(target, {**trained.files, "README.md": card}, disk or Disk())
    seconds = out.clock() - began
    result = {
        "folder": str(target),
        "file": request.file.name,
        "sha256": sha256,
        "rows": {name: len(own) for name, own in parts.items()},
        "left_out": left_out.counts,
        "tags": tags,
        "prefixes": prefixes,
        **_result(trained),
        "seconds": round(seconds, 1),
    }
    out.give(result, _lines(target, trained, seconds))
    return 0


def _check_privacy(settings: Settings) -> None:
    """Refuse to learn without noise where the settings promise noise."""
    noise = settings.learner.privacy.noise_multiplier
    if noise:
        raise UsageError(
            f"learner.privacy.noise_multiplier: got {noise:g}, but `steelyard tag` learns without "
            "noise: its folder has no guarantee. Say so with --set "
            "learner.privacy.noise_multiplier=0."
        )


def _split(texts: Sequence[TaggedText], request: TagRequest) -> dict[str, list[TaggedText]]:
    """Divide texts: equal ones are in one part, or the newest are in `test`."""
    by_text = request.split == "text"
    keys = [text.key if by_text else str(place) for place, text in enumerate(texts)]
    order = drawn(keys, request.seed) if by_text else keys
    what = "different texts" if by_text else "texts"
    found = f"{request.file}: --split {request.split}: found {len(order)} {what}"
    names = divide(order, found, dev=request.dev, test=request.test)
    parts: dict[str, list[TaggedText]] = {"train": [], "dev": [], "test": []}
    for key, text in zip(keys, texts, strict=True):
        parts[names[key]].append(text)
    return parts


def _tags(file: Path, texts: Sequence[TaggedText]) -> list[str]:
    """Return the tags that are learned, O first, then by name."""
    found = {tag for text in texts for tag in text.tags}
    if len(found) < 2:
        raise TableRefused(
            f"{file}: the {len(texts):,} texts to learn from have the tag {found.pop()!r} alone, "
            "expected two or more; take another --seed, or less for --dev and --test"
        )
    return sorted(found, key=lambda tag: (tag != OUTSIDE, tag))


# --- what is printed ----------------------------------------------------------------------------


def _said_of(
    parts: dict[str, list[TaggedText]], tags: Sequence[str], prefixes: bool
) -> Iterator[str]:
    for name in ("dev", "test"):
        unknown = {tag: t.row for t in parts[name] for tag in t.tags if tag not in set(tags)}
        for tag, row in sorted(unknown.items()):
            yield f"tag {tag!r} is in {name} (row {row}) and not in train: it cannot be predicted"
    sizes = [
        f"{name} {len(own):,} texts, {sum(len(text.words) for text in own):,} words"
        for name, own in parts.items()
    ]
    yield "; ".join(sizes)
    counted = "by prefix (B-, I-, E-, S-)" if prefixes else "each run of one tag"
    yield f"{len(tags)} tags; entities: {counted}"


def _reporter(out: Output) -> Callable[[str, Part], None]:
    def tokenised(name: str, part: Part) -> None:
        for what, rows, number in (
            ("beyond learner.max_tokens", part.rows_cut, part.words_cut),
            ("of characters that the tokenizer drops", part.rows_dropped, part.words_dropped),
        ):
            if number:
                first = ", ".join(map(str, rows[:_ROWS_NAMED]))
                more = ", ..." if len(rows) > _ROWS_NAMED else ""
                use = "not learned" if name == "train" else "taken as predicted O"
                out.report(
                    f"{name}: {number:,} words {what}, {use}: {len(rows):,} rows ({first}{more})"
                )

    return tokenised


def _epoch_line(epoch: Epoch) -> str:
    line = f"epoch {epoch.number}: loss {epoch.loss:.4f}"
    if epoch.refused:
        line += f"; {epoch.refused} steps not taken: loss or gradient not finite"
    return line if epoch.dev is None else f"{line}; dev: {_said(epoch.dev)}"


def _said(own: TagFigures) -> str:
    found = own.entities
    return f"F1 {found.f1:.4f} of {found.true:,} entities, accuracy {own.accuracy:.4f}"


def _lines(target: Path, trained: Trained, seconds: float) -> Iterator[str]:
    last = trained.epochs[-1].number
    yield f"{target}: epoch {trained.best.number} of {last}, {seconds:.0f} s"
    if trained.test is not None:
        yield f"test: {_said(trained.test)}"
        header = ("TYPE", "ENTITIES", "PRECISION", "RECALL", "F1")
        rows = {"all": trained.test.entities, **trained.test.by_type}
        yield from table(
            header,
            [
                (name, own.true, f"{own.precision:.4f}", f"{own.recall:.4f}", f"{own.f1:.4f}")
                for name, own in rows.items()
            ],
        )


def _result(trained: Trained) -> dict[str, Any]:
    def plain(own: TagFigures | None) -> dict[str, float | int] | None:
        return None if own is None else own.plain()

    return {
        "words_cut": {name: part.words_cut for name, part in trained.parts.items()},
        "words_dropped": {name: part.words_dropped for name, part in trained.parts.items()},
        "epochs": [
            {
                "epoch": e.number,
                "loss": e.loss if math.isfinite(e.loss) else None,
                "refused": e.refused,
                "dev": plain(e.dev),
            }
            for e in trained.epochs
        ],
        "best_epoch": trained.best.number,
        "test": plain(trained.test),
    }
