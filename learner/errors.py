"""What can go wrong in the learner, drawn as a tree; each class says `retriable`.

```
LearnerError
├── ModelMissing         an encoder or tokenizer that cannot be had; names the setting and the remedy
├── TuningUnsupported    an encoder whose layers cannot be tuned that way
├── Diverged             training went wrong; names the steps to leave out. State goes back to a checkpoint before them
├── OutOfMemory          the least part that a step can be cut into does not fit the device
├── RankLost             another rank is gone or hangs: stop (exit 75), all start anew from the checkpoint
├── LogRewritten         the log no longer holds what was trained on: stop (exit 3)
└── StoreError
    ├── StoreFailed      a step on the store failed in the file system; what was durable before still is   retriable
    ├── JournalFailed    what a step would use could not be made durable: stop (exit 75), apply nothing of it
    ├── Fenced           another owner has the store: stop (exit 75) and touch nothing more
    ├── Corrupt          bytes in the store are not the bytes that were meant; names file, expected, found
    ├── FormatUnknown    a whole manifest of a format or kind that this program does not read
    └── VersionMissing   no such version or alias; names the ones that there are
```
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar


class LearnerError(Exception):
    """Anything that the learner refuses or fails to do."""

    retriable: ClassVar[bool] = (
        False  #: whether the same call may succeed later without an operator
    )


class ModelMissing(LearnerError):
    """An encoder or its tokenizer cannot be had; the message names the setting and the remedy."""


class TuningUnsupported(LearnerError):
    """The encoder cannot be tuned as configured; the message names the setting and what it allows."""


class Diverged(LearnerError):
    """Training went wrong: the last step was not taken, and what those before it left behind is not to be trusted."""

    def __init__(self, first_step: int, last_step: int, reason: str) -> None:
        """Name the steps, both included, and what was wrong with them."""
        self.first_step = first_step
        self.last_step = last_step
        self.reason = reason
        steps = (
            f"step {last_step}" if first_step == last_step else f"steps {first_step} to {last_step}"
        )
        super().__init__(
            f"{steps}: {reason}. No parameter moved; go back to a checkpoint before step {first_step} and leave {steps} out."
        )


class OutOfMemory(LearnerError):
    """The least part that a step can be cut into does not fit the device; the state is that of no step: go back to a checkpoint."""

    def __init__(self, *, step: int, device: str, num_samples: int) -> None:
        """Name the step, the device, and how many samples did not fit."""
        super().__init__(
            f"step {step}: out of memory on {device} with {num_samples} sample(s) at once, which cannot be cut further. "
            "Lower learner.max_tokens, take a smaller learner.model or let less of it move (learner.tuning), or a device with more memory."
        )


class RankLost(LearnerError):
    """Another rank is gone or keeps us waiting: this one stops too (exit 75), and all start anew from the checkpoint."""

    def __init__(self, *, rank: int, what: str, timeout_seconds: float, cause: Exception) -> None:
        """Name our own rank (-1 before all have met), what we did together, and how long we wait at most."""
        self.rank = rank
        super().__init__(
            f"rank {rank}: {what} failed ({cause}); a rank is gone or answered nothing for {timeout_seconds:g} s. "
            "This process must stop (exit 75); the launcher starts all ranks again."
        )


class LogRewritten(LearnerError):
    """The log no longer holds what was trained on; going on would train on other records under the same positions."""

    def __init__(self, where: str, *, expected: str, found: str) -> None:
        """Name the step or slice, what the journal says of it, and what the log holds now."""
        super().__init__(
            f"{where}: the log no longer holds what was trained on: expected {expected}, found {found}. A topic was recreated, "
            "records were rewritten, or retention passed in between. Nothing was trained from it; an operator must decide (exit 3)."
        )


class StoreError(LearnerError):
    """Anything about the store: its files, its owner, its versions."""


class StoreFailed(StoreError):
    """A numbered step on the store failed in the file system; every checkpoint that was durable before still is."""

    retriable: ClassVar[bool] = True

    def __init__(self, *, step: str, path: Path, cause: OSError) -> None:
        """Name the step, the file and the remedy.

        Args:
            step: the number in RELIABILITY, such as ``C4``.
            path: the file that the call was about where the system says so, else the folder of the step.
            cause: what the system answered.
        """
        self.step = step
        self.path = Path(cause.filename) if isinstance(cause.filename, str) else path
        self.errno = cause.errno
        word = errno.errorcode.get(cause.errno or 0, type(cause).__name__)
        super().__init__(
            f"{self.path}: step {step} failed with {word} ({cause.strerror or cause}). "
            "What was durable before is untouched; the next trigger tries again. Check free space, mode and health of the disk."
        )


class JournalFailed(StoreError):
    """The journal could not be written or made durable; its owner stops, for an fsync that failed is never repeated on the same file."""

    def __init__(self, *, path: Path, cause: OSError) -> None:
        """Name the segment, and what the system answered."""
        self.path = path
        self.errno = cause.errno
        word = errno.errorcode.get(cause.errno or 0, type(cause).__name__)
        super().__init__(
            f"{path}: the journal failed with {word} ({cause.strerror or cause}). Nothing of the step was applied. This process must stop "
            "(exit 75); its next start goes on behind the last whole record. Check free space, mode and health of the disk."
        )


class Fenced(StoreError):
    """Another owner has claimed the store; this one stops with exit code 75 and touches nothing more."""

    def __init__(self, *, root: Path, epoch: int, found: str) -> None:
        """Name the store, the owner epoch that lost, and what showed it."""
        self.epoch = epoch
        super().__init__(
            f"{root}: owner epoch {epoch} is fenced: {found}. This process must stop (exit 75). "
            "If no second learner is meant to run on this store, look for one."
        )


class Corrupt(StoreError):
    """Bytes in the store are not the ones that were meant."""

    def __init__(self, path: str, *, expected: str, found: str) -> None:
        """Name the file (relative to the store's root), what it should be and what it is."""
        self.path = path
        self.expected = expected
        self.found = found
        super().__init__(
            f"{path}: expected {expected}, found {found}. It is never loaded; keep it as evidence, or put a good copy back."
        )


class FormatUnknown(StoreError):
    """A manifest is whole, but of a format or kind that this program does not read."""

    def __init__(self, path: str, *, key: str, expected: str, found: str) -> None:
        """Name the manifest, the key, what this program reads and what it says."""
        super().__init__(
            f"{path}: {key}: expected {expected}, got {found}. It was written by another release of this program: "
            "run that one. Nothing older is taken in its place, because that would drop what it learned."
        )


class VersionMissing(StoreError):
    """No such version, or an alias that names none."""

    def __init__(self, name: str, *, root: Path, known: Sequence[str]) -> None:
        """Name what was asked for, the store, and the newest versions that it has."""
        self.name = name
        listing = ", ".join(known[-5:]) if known else "none yet"
        super().__init__(
            f"{root}: no version {name!r}. Newest known: {listing} ({len(known)} in all)."
        )
