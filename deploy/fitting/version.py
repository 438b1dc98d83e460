"""The version that comes of a file: the first of a store, and where a learner starts from.

It contains no record of a log, so it has no offsets and no state of ingest: the learner that
resumes from it reads its topics from the beginning, as one that resumes from nothing. It is
written as any checkpoint is (`learner.store.checkpoint`), at the very end: whoever is killed before
that has not touched the store.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from deploy.doctor.store import unfit
from deploy.errors import Unsafe, WriteFailed
from deploy.fitting.epochs import Fitted
from deploy.roles import wiring
from deploy.settings.tree import Settings
from learner.artifact import Store, Version
from learner.errors import JournalFailed, StoreFailed
from learner.process_group import SingleProcess
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.store.journal.writer import Journal
from learner.store.manifest import CheckpointMetadata, EventTimeRange, FitSource, LearnedSamples
from learner.store.recovery.plan import RecoveryPlan


class _Claim(NamedTuple):
    """The number of an owner, and what it says of itself: machine, process, time."""

    number: str
    text: str

    def __str__(self) -> str:
        return f"{self.number}: {self.text}"

    @property
    def has_ended(self) -> bool:
        """Whether it is of a process of this machine that is gone, such as a failed fit.

        Should it not be gone, it is fenced, as by any later claim.
        """
        host, process, *_ = *self.text.split(), "", ""
        is_known = host == os.uname().nodename and process.isdecimal()
        return is_known and not _is_running(int(process))


def refuse_used(root: Path) -> None:
    """Refuse a store that somebody has learned in, or that cannot be written to.

    Raises:
        Unsafe: says what to do.
    """
    try:
        _refuse_learned(root)
        why = _unfit(root)
    except OSError as error:
        why = f"cannot be read ({error.strerror or error})"
    if why:
        raise Unsafe(f"{root}: {why}. Set store.root to a folder of yours: --set store.root=DIR")


def _refuse_learned(root: Path) -> None:
    versions = Store(root).readable()
    if versions:
        raise Unsafe(
            f"{root}: the store has versions already, the newest is {versions[-1].name}. A fit "
            "makes the first version of a store and never adds to what a learner has learned. "
            "Name a new folder with --set store.root=DIR, and start the learner with the same "
            "store.root afterwards."
        )
    claims = [claim for claim in _claims(root) if not claim.has_ended]
    if claims:
        raise Unsafe(
            f"{root}: a learner has claimed the store ({claims[-1]}), and has not made a version "
            "yet. If none is running, remove the folder; else name another one with --set "
            "store.root=DIR."
        )


def _is_running(process: int) -> bool:
    """Return whether a process of this machine is there, whoever's it is."""
    try:
        with suppress(PermissionError):
            os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _unfit(root: Path) -> str | None:
    """Return why a store cannot be there, None if it can; only its last folder is made for it."""
    if root.exists():
        return unfit(root)
    parent = root.absolute().parent
    if not parent.is_dir():
        return f"there is no folder {parent} to make it in"
    return None if os.access(parent, os.W_OK | os.X_OK) else f"cannot be made in {parent}"


def _claims(root: Path) -> list[_Claim]:
    """Return all claims of a store, oldest first."""
    folder = root / "epoch"
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.name.isdecimal())
    return [_Claim(path.name, path.read_text("utf-8", "replace").strip()) for path in files]


def write(
    settings: Settings,
    fitted: Fitted,
    source: FitSource,
    *,
    clock: Callable[[], float],
    disk: Disk | None = None,
) -> Version:
    """Claim the store, make the version durable and announce it.

    Raises:
        Unsafe: a learner has begun in the store meanwhile; nothing was written.
        WriteFailed: it could not be made durable; the store has no version.
        StoreFailed: the version is there, and could not be announced; a learner does that.
        Fenced: a learner claimed the store at this moment.
    """
    root, disk = settings.store.root, disk or Disk()
    refuse_used(root)
    before = max((int(claim.number) for claim in _claims(root)), default=0)
    checkpointer, journal = Checkpointer(root, disk, clock), Journal(root, disk)
    metadata = _metadata(settings, fitted, source)

    def plan(newest: Version | None) -> RecoveryPlan | None:
        if newest is not None and newest.epoch > before:
            raise Unsafe(f"{root}: a learner has begun in the store while the file was learned")
        return None

    try:
        initial = replace(metadata, step=0, samples=0, event_time=None, evaluation={}, fit=None)
        initial = replace(initial, learned=LearnedSamples())
        acquired = checkpointer.acquire(journal, initial=initial, recovery_plan=plan)
        metadata = replace(metadata, journal=acquired.journal)
        version = checkpointer.save(fitted.trainer.files(), metadata)
        checkpointer.announce(version)
    except (StoreFailed, JournalFailed) as error:
        if isinstance(error.__cause__, OSError) and not Store(root).readable():
            raise WriteFailed(root, error.__cause__) from error
        raise
    finally:
        journal.close()
    return version


def _metadata(settings: Settings, fitted: Fitted, source: FitSource) -> CheckpointMetadata:
    trainer = fitted.trainer
    first_us, last_us = fitted.event_times_us
    num, sum64 = trainer.trained
    evaluation = trainer.evaluation().items()
    return CheckpointMetadata(
        step=trainer.step_number,
        samples=trainer.num_samples,
        offsets={},
        event_time=EventTimeRange(min=first_us, max=last_us),
        watermark_us=None,
        weighting=trainer.weigher.description(),
        evaluation={name: value for name, value in evaluation if math.isfinite(value)},
        fresh_events=(),
        config_sha256=wiring.config_sha256(settings),
        fingerprint=wiring.fingerprint(settings, SingleProcess()),
        learned=LearnedSamples(num=num, sum64=sum64),
        fit=source,
    )


def figures_of(fitted: Fitted) -> Mapping[str, float]:
    """Return the figures that the manifest keeps: on test, else on dev."""
    found: dict[str, float] = {}
    for name, own in (("test", fitted.test), ("dev", fitted.best.dev)):
        if own is not None:
            plain = own.plain().items()
            found |= {f"{name}_{k}": float(v) for k, v in plain if v is not None}
    return found
