"""Ownership of a store, by claim and compare-and-swap.

A claim is a file under ``epoch/`` that only one process can create; its number is the owner's
fencing token. Whoever claimed a later number is the owner now, and everybody before is fenced.
The commit mark of a manifest is made by `link`, which fails where the mark exists: so two owners
can never take the same number, whatever they last saw in ``epoch/``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from learner.errors import Fenced, StoreFailed
from learner.store import blobs
from learner.store.blobs import Disk
from learner.store.journal.records import FOLDER as JOURNAL

_FOLDERS = ("epoch", "man", "blobs", JOURNAL, "control", "quarantine", "trash")


class Ownership:
    """The claim of one owner on a store.

    Attributes:
        token: fencing token; 0 before the first claim, when nothing can be fenced yet.
    """

    def __init__(self, root: Path, disk: Disk, now_us: Callable[[], int]) -> None:
        """Do nothing yet; the clock is for the text of a claim only."""
        self.token = 0
        self._root = root
        self._disk = disk
        self._now_us = now_us

    def claim(self) -> None:
        """Claim the store, which is made if need be (A1).

        Every earlier owner is fenced. The name of the file is the claim; what it says is for
        people.

        Raises:
            StoreFailed: it could not be claimed durably.
        """
        self.token = 0
        with self.step("A1", self._root):
            self._make_folders()
            content = f"{os.uname().nodename} {os.getpid()} {self._now_us()}\n".encode()
            token = self._create_claim(content)
            self._disk.fsync_folder(self._root / "epoch")
        self.token = token

    def refuse_if_fenced(self) -> None:
        """Do nothing for the newest owner (C8).

        Raises:
            Fenced: there is a newer claim.
        """
        if not self.token:
            return
        newest = max(self._claims(), default=0)
        if newest > self.token:
            raise self.fenced(f"epoch {newest} was claimed after it")

    def fenced(self, found: str) -> Fenced:
        """Return the error of an owner that has lost the store."""
        return Fenced(root=self._root, epoch=self.token, found=found)

    @contextlib.contextmanager
    def step(self, number: str, path: Path) -> Iterator[None]:
        """Name the numbered step in which the file system failed.

        An owner may trip over what its successor swept away: that is no fault of the disk.

        Raises:
            StoreFailed: the system refused something.
            Fenced: it did, and there is a newer owner.
        """
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError):
                self.refuse_if_fenced()
            raise StoreFailed(step=number, path=path, cause=error) from error

    def link(self, written: Path, mark: Path, undo: Callable[[], None] = lambda: None) -> bool:
        """Make a commit mark (C9); return whether it is ours.

        After an error the link count decides, as for lock files on NFS.

        Args:
            written: the manifest, durable under another name.
            mark: its name in ``man/``.
            undo: called where it is certain that the mark was not made.

        Raises:
            OSError: the mark was not made, or nobody can tell.
        """
        try:
            self._disk.link(written, mark)
        except FileExistsError:
            return False
        except OSError:
            if self._disk.num_links(written) != 2:
                undo()
                raise
        return True

    def _make_folders(self) -> None:
        if self._make_folder(self._root):
            self._disk.fsync_folder(self._root.parent)
        for name in _FOLDERS:
            self._make_folder(self._root / name)
        self._disk.fsync_folder(self._root)

    def _make_folder(self, path: Path) -> bool:
        try:
            self._disk.mkdir(path)
        except FileExistsError:
            return False
        return True

    def _create_claim(self, content: bytes) -> int:
        """Create the next claim that nobody else creates first; return its number."""
        while True:
            token = max(self._claims(), default=0) + 1
            with contextlib.suppress(FileExistsError):
                blobs.write_new(self._disk, self._root / "epoch" / f"{token:06d}", content)
                return token

    def _claims(self) -> list[int]:
        return [int(name) for name in self._disk.listdir(self._root / "epoch") if name.isdecimal()]
