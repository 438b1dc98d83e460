"""Errors of the learner, drawn as a tree.

```
LearnerError
├── ModelMissing        an encoder or tokenizer that cannot be had; names setting and remedy
├── ModelUnsupported    an encoder that does not fit the settings; names both (exit 2)
├── DeviceMissing       a device that torch cannot use here; names those that it can (exit 2)
├── TuningUnsupported   an encoder whose layers cannot be tuned that way
├── PrivacyUnsupported  learner.privacy with settings or a machine that cannot keep it (exit 2)
├── OptimizerChanged    a checkpoint of another optimiser than learner.optimizer (exit 2)
├── TrackerMissing      the library of tracking.to is not installed; names the extra (exit 2)
├── ThreadsRefused      the environment takes threads away that learner.threads gives (exit 2)
├── Diverged            training went wrong: go back to a checkpoint before the steps named
├── OutOfMemory         a micro-batch that cannot be split further does not fit the device
├── RankLost            another rank is gone or hangs: all start again (exit 75)
├── LogRewritten        the log no longer holds what was trained on (exit 3)
└── StoreError
    ├── StoreFailed     a call failed; earlier checkpoints are intact (retriable, exit 75)
    ├── JournalFailed   a step could not be journaled and was not applied (exit 75)
    ├── Fenced          another owner has the store: stop, touch nothing (exit 75)
    ├── Corrupt         bytes in the store are not those that were written
    ├── FormatUnknown   a valid manifest of a format or kind that this release does not read
    └── VersionMissing  no such version or alias; names the known ones (exit 2)
```
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

Raised = TypeVar("Raised", bound=BaseException)


def without_tracebacks(error: Raised) -> Raised:
    """Return an error that is kept: it and its causes, without their tracebacks.

    A traceback refers to every local variable on the way, such as a model or its copies.
    """
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    return error


class LearnerError(Exception):
    """Base of this folder's errors.

    Attributes:
        retriable: whether the same call may succeed later without an operator.
        exit_code: of a process that ends with it: 1 failed, 2 usage, 3 unsafe, 75 start again.
    """

    retriable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1


class ModelMissing(LearnerError):
    """Encoder or tokenizer not available; the message names the setting and the remedy."""


class ModelUnsupported(LearnerError):
    """Encoder that cannot be used as configured; the message says what can."""

    exit_code = 2


class DeviceMissing(LearnerError):
    """Device that is not on this machine; the message names those that are."""

    exit_code = 2


class TuningUnsupported(LearnerError):
    """Encoder that cannot be tuned as configured; the message says what the setting allows."""


class PrivacyUnsupported(LearnerError):
    """Noise on gradients that cannot be had here; the message says what to do."""

    exit_code = 2


class OptimizerChanged(LearnerError):
    """State of another optimiser than the one configured."""

    exit_code = 2

    def __init__(self, configured: str, found: str) -> None:
        """Name both, and what to do."""
        super().__init__(
            f"learner.optimizer: got {configured}, but the checkpoint holds the state of {found}, "
            f"which {configured} cannot go on from. Set learner.optimizer: {found}, or begin with "
            "a new store."
        )


class TrackerMissing(LearnerError):
    """Tracker whose library is not installed; the message names the extra."""

    exit_code = 2


class ThreadsRefused(LearnerError):
    """An environment in which sums of several threads have no fixed order."""

    exit_code = 2

    def __init__(self, threads: int, variable: str, does: str) -> None:
        """Name the setting, the environment variable, and what to do."""
        super().__init__(
            f"learner.threads: got {threads}, but the environment variable {variable} {does}, so "
            f"that results would not be reproducible. Unset {variable}, or set learner.threads: 1."
        )


class Diverged(LearnerError):
    """Training went wrong.

    The last step was not taken; the ones before it are not to be trusted.
    """

    def __init__(self, first_step: int, last_step: int, reason: str) -> None:
        """Name the steps, both included, and what was wrong with them."""
        self.first_step = first_step
        self.last_step = last_step
        self.reason = reason
        steps = f"steps {first_step} to {last_step}"
        if first_step == last_step:
            steps = f"step {last_step}"
        remedy = f"go back to a checkpoint before step {first_step} and leave {steps} out"
        super().__init__(f"{steps}: {reason}. No parameter moved; {remedy}.")


class OutOfMemory(LearnerError):
    """A single sample does not fit the device; go back to a checkpoint."""

    def __init__(self, *, step: int, device: str, num_samples: int) -> None:
        """Name the step, the device, and how many samples did not fit."""
        super().__init__(
            f"step {step}: out of memory on {device} with {num_samples} sample(s) at once, "
            "which cannot be split further. Lower learner.max_tokens, take a smaller "
            "learner.model or let less of it move (learner.tuning), "
            "or a device with more memory."
        )


class RankLost(LearnerError):
    """Another rank is gone or hangs; all start again from the checkpoint."""

    exit_code = 75

    def __init__(self, *, rank: int, what: str, timeout_seconds: float, cause: Exception) -> None:
        """Name our rank (-1 before the rendezvous), the collective call and its timeout."""
        self.rank = rank
        super().__init__(
            f"rank {rank}: {what} failed ({cause}); "
            f"a rank is gone or answered nothing for {timeout_seconds:g} s. "
            "This process must stop (exit 75); the launcher starts all ranks again."
        )


class LogRewritten(LearnerError):
    """The log no longer holds what was trained on: same positions, other records."""

    exit_code = 3

    def __init__(self, where: str, *, expected: str, found: str) -> None:
        """Name the step or slice, its journal record, and the log's content."""
        super().__init__(
            f"{where}: the log no longer holds what was trained on: "
            f"expected {expected}, found {found}. A topic was recreated, records were rewritten, "
            "or retention passed in between. Nothing was trained from it; "
            "an operator must decide (exit 3)."
        )


class StoreError(LearnerError):
    """Anything about the store: its files, its owner, its versions."""


class StoreFailed(StoreError):
    """A numbered step on the store failed; every durable checkpoint is intact."""

    retriable = True
    exit_code = 75

    def __init__(self, *, step: str, path: Path, cause: OSError) -> None:
        """Name the step, the file and the remedy.

        Args:
            step: the number in RELIABILITY, such as ``C4``.
            path: the folder of the step, for where the system names no file.
            cause: what the system answered.
        """
        self.step = step
        self.path = Path(cause.filename) if isinstance(cause.filename, str) else path
        self.errno = cause.errno
        super().__init__(
            f"{self.path}: step {step} failed with {_reason(cause)}. "
            "What was durable before is untouched; the next trigger tries again. "
            "Check free space, mode and health of the disk."
        )


class JournalFailed(StoreError):
    """A write or fsync of the journal failed.

    It is never repeated on the same file, so the owner stops.
    """

    exit_code = 75

    def __init__(self, *, path: Path, cause: OSError) -> None:
        """Name the segment, and what the system answered."""
        self.path = path
        self.errno = cause.errno
        super().__init__(
            f"{path}: the journal failed with {_reason(cause)}. "
            "Nothing of the step was applied. This process must stop (exit 75); "
            "its next start goes on behind the last whole record. "
            "Check free space, mode and health of the disk."
        )


class Fenced(StoreError):
    """Another owner has claimed the store; this one stops and touches nothing more."""

    exit_code = 75

    def __init__(self, *, root: Path, epoch: int, found: str) -> None:
        """Name the store, the fencing token that lost, and what showed it."""
        self.epoch = epoch
        super().__init__(
            f"{root}: owner epoch {epoch} is fenced: {found}. This process must stop (exit 75). "
            "If no second learner is meant to run on this store, look for one."
        )


class Corrupt(StoreError):
    """Bytes in the store are not those that were written."""

    def __init__(self, path: str, *, expected: str, found: str) -> None:
        """Name the file, relative to the root, what it should be and what it is."""
        self.path = path
        self.expected = expected
        self.found = found
        super().__init__(
            f"{path}: expected {expected}, found {found}. It is never loaded; "
            "keep it as evidence, or put a good copy back."
        )


class FormatUnknown(StoreError):
    """A valid manifest of a format or kind that this release does not read."""

    def __init__(self, path: str, *, key: str, expected: str, found: str) -> None:
        """Name the manifest and the key, what is supported and what was found."""
        super().__init__(
            f"{path}: {key}: expected {expected}, got {found}. "
            "It was written by another release of this program: run that one. "
            "Nothing older is taken in its place, because that would drop what it learned."
        )


class VersionMissing(StoreError):
    """No such version, or an alias that names none."""

    exit_code = 2

    def __init__(self, name: str, *, root: Path, known: Sequence[str]) -> None:
        """Name what was asked for, the store, and the newest versions that it has."""
        self.name = name
        listing = ", ".join(known[-5:]) if known else "none yet"
        super().__init__(
            f"{root}: no version {name!r}. Newest known: {listing} ({len(known)} in all)."
        )


def _reason(cause: OSError) -> str:
    word = errno.errorcode.get(cause.errno or 0, type(cause).__name__)
    return f"{word} ({cause.strerror or cause})"
