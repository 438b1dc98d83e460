"""A file system that fails, tears, dies or loses power at any call, and records every call.

It works on a real folder, as a subclass of `learner.store.blobs.Disk`. A loss of power may take
what no fsync has covered: bytes written since the file's last fsync, and names made, moved or
linked since the folder's. Its own fsyncs only take note, so that thousands of crashes stay cheap.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from learner.store.blobs import Disk

T = TypeVar("T")
_tokens = itertools.count()


class Crash(BaseException):
    """The process died here; nothing that it would have done afterwards happens."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call that the code made: the `index`-th of all, the `nth` of its kind (both from 0)."""

    index: int
    op: str
    nth: int
    path: Path
    target: Path | None = None

    def __str__(self) -> str:
        return f"{self.op} {self.path.name}" + (
            f" -> {self.target.parent.name}/{self.target.name}" if self.target else ""
        )


@dataclass(frozen=True, slots=True)
class Fail:
    """The call raises this error, without effect."""

    errno: int


@dataclass(frozen=True, slots=True)
class FailAfter:
    """The call takes effect and raises this error all the same."""

    errno: int


@dataclass(frozen=True, slots=True)
class Die:
    """The process dies: before the call, in the middle of it (a write), or after it."""

    when: str = "before"


@dataclass(frozen=True, slots=True)
class Meanwhile:
    """Someone else does this first; then the call goes on."""

    action: Callable[[], object]


Fault = Fail | FailAfter | Die | Meanwhile
Plan = Callable[[Call], Fault | None]


def at(index: int, fault: Fault) -> Plan:
    """The `index`-th call of all."""
    return lambda call: fault if call.index == index else None


def on(op: str, nth: int, fault: Fault) -> Plan:
    """The `nth` call of this kind."""
    return lambda call: fault if (call.op, call.nth) == (op, nth) else None


def no_fault(call: Call) -> Fault | None:
    """A healthy disk."""
    return None


class FaultyDisk(Disk):
    """See the module. `calls` is what was asked, in order; `failed` the calls that raised."""

    def __init__(self, plan: Plan = no_fault, *, free_bytes: int | None = None) -> None:
        self.plan = plan
        self.calls: list[Call] = []
        self.failed: list[Call] = []
        self.num_free_bytes = free_bytes
        self._nth: dict[str, int] = {}
        self._open: dict[int, Path] = {}
        self._dead = False
        self._unsynced_data: dict[Path, int] = {}  # file -> its bytes that an fsync has covered
        self._unsynced_names: list[tuple[str, Path, Path, bytes | None]] = []

    def create(self, path: Path) -> int:
        fd = self._do("create", path, lambda: Disk.create(self, path))
        self._open[fd] = path
        self._unsynced_data[path] = 0
        self._unsynced_names.append(("create", path, path, None))
        return fd

    def write(self, fd: int, data: memoryview) -> int:
        torn = data[: len(data) // 2]
        self._unsynced_data.setdefault(self._open[fd], os.fstat(fd).st_size)
        return self._do(
            "write",
            self._open[fd],
            lambda: Disk.write(self, fd, data),
            torn=lambda: Disk.write(self, fd, torn),
        )

    def fsync(self, fd: int) -> None:
        self._do("fsync", self._open[fd], lambda: None)
        self._unsynced_data.pop(self._open[fd], None)

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)
        Disk.close(self, fd)

    def rename(self, source: Path, target: Path) -> None:
        replaced = target.read_bytes() if target.is_file() else None

        def rename() -> None:
            Disk.rename(self, source, target)
            self._unsynced_names.append(("rename", source, target, replaced))
            if source in self._unsynced_data:
                self._unsynced_data[target] = self._unsynced_data.pop(source)

        self._do("rename", source, rename, target=target)

    def link(self, source: Path, target: Path) -> None:
        def link() -> None:
            Disk.link(self, source, target)
            self._unsynced_names.append(("create", target, target, None))

        self._do("link", source, link, target=target)

    def num_links(self, path: Path) -> int:
        return self._do("num_links", path, lambda: Disk.num_links(self, path))

    def unlink(self, path: Path) -> None:
        self._do("unlink", path, lambda: Disk.unlink(self, path))

    def mkdir(self, path: Path) -> None:
        def mkdir() -> None:
            Disk.mkdir(self, path)
            self._unsynced_names.append(("mkdir", path, path, None))

        self._do("mkdir", path, mkdir)

    def rmdir(self, path: Path) -> None:
        self._do("rmdir", path, lambda: Disk.rmdir(self, path))

    def fsync_folder(self, path: Path) -> None:
        self._do("fsync_folder", path, lambda: None)
        self._unsynced_names = [entry for entry in self._unsynced_names if entry[2].parent != path]

    def listdir(self, path: Path) -> list[str]:
        return self._do("listdir", path, lambda: Disk.listdir(self, path))

    def free_bytes(self, path: Path) -> int:
        return Disk.free_bytes(self, path) if self.num_free_bytes is None else self.num_free_bytes

    def token(self) -> str:
        return f"{next(_tokens):06d}"

    def open(self, root: Path, relative: str) -> int:
        fd = self._do("open", root / relative, lambda: Disk.open(self, root, relative))
        self._open[fd] = root / relative
        return fd

    def read(self, fd: int, num_bytes: int) -> bytes:
        return self._do("read", self._open[fd], lambda: Disk.read(self, fd, num_bytes))

    def lose_power(self, *, data: bool, names: bool, zeros: bool = False) -> None:
        """Lose what no fsync has covered.

        Args:
            data: lose bytes.
            names: lose names.
            zeros: files keep their size, with zeros in place of the lost bytes.
        """
        for path, durable in self._unsynced_data.items() if data else ():
            if path.exists():
                size = path.stat().st_size
                os.truncate(path, durable)
                if zeros:
                    os.truncate(path, size)
        for op, source, target, replaced in reversed(self._unsynced_names if names else []):
            if not target.exists():
                continue
            if op == "mkdir":
                shutil.rmtree(target)
            elif op == "create":
                target.unlink()
            else:
                target.replace(source)
                if replaced is not None:
                    target.write_bytes(replaced)

    def _do(
        self,
        op: str,
        path: Path,
        real: Callable[[], T],
        *,
        target: Path | None = None,
        torn: Callable[[], T] | None = None,
    ) -> T:
        if self._dead:
            raise Crash(f"{op} {path} after death")
        call = Call(len(self.calls), op, self._nth.get(op, 0), path, target)
        self.calls.append(call)
        self._nth[op] = call.nth + 1
        fault = self.plan(call)
        if isinstance(fault, Die):
            self._dead = True
            if fault.when == "after":
                real()
            elif fault.when == "middle" and torn is not None:
                torn()
            raise Crash(str(call))
        if isinstance(fault, Meanwhile):
            fault.action()
        if isinstance(fault, FailAfter):
            real()
        if isinstance(fault, Fail | FailAfter):
            self.failed.append(call)
            raise OSError(fault.errno, "injected", str(path))
        return real()


def tree(root: Path) -> Mapping[str, bytes]:
    """Return every file below a folder with its bytes; temporary ones too."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
