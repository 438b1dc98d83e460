"""Operator command that writes a version's encoder as a folder for other tools."""

from __future__ import annotations

import time
from pathlib import Path

from deploy.admin.checkpoints import find
from deploy.admin.new_folder import check_free, write_folder
from deploy.errors import UsageError
from deploy.fitting.command import FitRequest, examples_of
from deploy.process.terminal import Output
from deploy.tables.values import LeftOut
from learner.artifact import Store
from learner.store import blobs
from learner.store.blobs import Disk

INT8 = "openvino-int8"
FORMATS = ("sentence-transformers", "onnx", INT8)
_NUM_TEXTS = 300
"""Texts that fix the scales of int8."""


def export(
    store: Store,
    name: str,
    folder: Path,
    out: Output,
    *,
    form: str = FORMATS[0],
    calibrate_on: Path | None = None,
    disk: Disk | None = None,
) -> int:
    """Write a version's encoder into a new or empty folder: all of it, or nothing.

    Returns:
        The exit code.

    Raises:
        Unsafe: the folder holds something.
        UsageError: the folder is a file, or inside the store; or there is no such format, or it
            goes with a file.
        TableRefused: the file cannot be used.
        Corrupt: the version is damaged.
        ModelUnsupported: its encoder has no vectors of single texts.
        WriteFailed: the folder could not be written; nothing is left of it.
    """
    if form not in FORMATS:
        raise UsageError(f"--format: got {form!r}, expected {' or '.join(FORMATS)}")
    if (form == INT8) != (calibrate_on is not None):
        raise UsageError(
            f"--calibrate-on FILE and --format {INT8} belong together: the texts of the file fix "
            "the scales of int8"
        )
    version = find(store, name)
    target = folder.resolve()
    check_free(target, store.root)
    from learner.export import export_encoder  # loads torch

    texts = _texts(calibrate_on, out) if calibrate_on else []
    exported = export_encoder(store, version, onnx=form == "onnx", int8_texts=texts)
    write_folder(target, exported.files, disk or Disk())
    digests = {path: blobs.digest(data) for path, data in sorted(exported.files.items())}
    num_bytes = sum(digest.size for digest in digests.values())
    facts = {
        "version": version.name,
        "manifest_sha256": version.manifest["self"],
        "format": form,
        "path": str(target),
        "files": {path: digest.sha256 for path, digest in digests.items()},
        "bytes": num_bytes,
        "encoder_only": True,
        "residuals_left_out": exported.num_residuals,
    }
    lines = [
        f"{version.name} -> {target}: {len(digests)} files, {num_bytes:,} bytes",
        f"the encoder alone: residuals of queries ({exported.num_residuals:,}), heads, estimators "
        "and the other parts of the score are not in it",
    ]
    out.give(facts, lines)
    return 0


def _texts(file: Path, out: Output) -> list[str]:
    """Return distinct queries and texts of a file, evenly from all of it."""
    request = FitRequest(file=file, skip_invalid=True)
    left_out = LeftOut(str(file), skip=True)
    found = examples_of(request, left_out, out, time.time)
    for line in left_out.lines():
        out.report(line)
    texts = list(dict.fromkeys(t for own in found.lists for t in (own.query, *own.texts)))
    return texts[:: max(1, len(texts) // _NUM_TEXTS)][:_NUM_TEXTS]
