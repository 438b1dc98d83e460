"""Owners of one store that are processes of their own, stopped, woken and killed by real signals.

Each writes to a pipe before every call on its disk. A signal is sent behind so many calls of them
all, as a seed decides; where it finds its owner is for the machine to say, so a seed brings back
the plan of a storm, not its every step.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sys
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Self

from deploy.cli.app import exit_code
from learner.artifact import Store
from learner.store.blobs import Disk
from learner.store.journal.records import segment_epoch
from tests.fakes.disk import Call, Fault, FaultyDisk, Meanwhile
from tests.learner.fast import Learner, Log

LOG = Log.invented(110, 80)
PATIENCE_SECONDS = 60.0  #: fails a hang
# A fork server: what is imported once need not be for each of hundreds of owners.
_nursery = multiprocessing.get_context("forkserver")
_nursery.set_forkserver_preload([__name__])


class SharedDisk(FaultyDisk):
    """A disk that many processes write to: what is written stays, whoever dies."""

    def token(self) -> str:
        return Disk.token(self)  # those of a test's own process are not its alone here


@dataclass(frozen=True)
class Moment:
    """The `nth` call of a kind on something of this name: there an owner stops itself."""

    op: str
    name: str
    nth: int = 0


def _live(
    root: Path, seed: int, calls: Connection | None, moment: Moment | None, message: Path
) -> None:
    """Live as an owner in this process; end as `steelyard learn` does."""
    passed = 0

    def plan(call: Call) -> Fault | None:
        nonlocal passed
        if calls is not None:
            os.write(calls.fileno(), b".")
        names = f"{call.path} {call.target}"
        if moment is None or call.op != moment.op or moment.name not in names:
            return None
        passed += 1
        stop = Meanwhile(lambda: os.kill(os.getpid(), signal.SIGSTOP))
        return stop if passed == moment.nth + 1 else None

    try:
        Learner(root, SharedDisk(plan), LOG, seed).run()
    except Exception as error:
        message.write_text(f"{type(error).__name__}: {error}")
        code = exit_code(error)
        if code is None:
            raise
        sys.exit(code)


class Owner:
    """One process. `epoch` is that of its claim, 0 before it has made one."""

    def __init__(
        self, root: Path, seed: int, calls: Connection | None = None, moment: Moment | None = None
    ) -> None:
        self._root, self._message = root, root.with_name(f"{root.name}-{seed}.error")
        self._process = _nursery.Process(
            target=_live, args=(root, seed, calls, moment, self._message), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.is_stopped = False
        self.was_killed = False
        self._handle: int | None = None  # a signal by it can hit nobody else
        with contextlib.suppress(ProcessLookupError):  # it has ended by now
            self._handle = os.pidfd_open(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def has_ended(self) -> bool:
        return self._process.exitcode is not None

    @property
    def _state(self) -> str:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2][0]
        except OSError:
            return "gone"

    @property
    def sentinel(self) -> int:
        return self._process.sentinel

    @property
    def epoch(self) -> int:
        for path in (self._root / "epoch").glob("[0-9]*"):
            if path.read_bytes().split()[1:2] == [str(self.pid).encode()]:
                return int(path.name)
        return 0

    def stop(self) -> None:
        """SIGSTOP, and wait until it stands."""
        self._send(signal.SIGSTOP)
        self.wait_until_stopped()

    def wait_until_stopped(self) -> None:
        """Wait until it stands, by whoever's signal, or has ended."""
        for _ in range(int(PATIENCE_SECONDS / 0.002)):
            if self.has_ended or self._state == "T":
                break
            wait([self._process.sentinel], 0.002)
        self.is_stopped = self._state == "T"
        assert self.is_stopped or self.has_ended

    def wake(self) -> None:
        self._send(signal.SIGCONT)
        self.is_stopped = False

    def kill(self) -> None:
        self.was_killed = True
        self._send(signal.SIGKILL)

    def join(self) -> tuple[int | None, str]:
        """Wait for its end; return the exit code and message."""
        self._process.join(PATIENCE_SECONDS)
        assert self._process.exitcode is not None, "it hangs"
        return self._process.exitcode, self._message.read_text() if self._message.exists() else ""

    def close(self) -> None:
        """End it, whatever it does."""
        self._send(signal.SIGKILL)
        self._process.join()
        self._process.close()
        if self._handle is not None:
            os.close(self._handle)

    def _send(self, number: signal.Signals) -> None:
        if self._handle is None:
            return
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            signal.pidfd_send_signal(self._handle, number)


def of_later(root: Path, epoch: int) -> dict[str, bytes]:
    """Return every file that an owner after this one has made."""
    found = {}
    for version in Store(root).manifests():
        if version.epoch > epoch:
            mark = root / "man" / f"M-{version.seq:08d}"
            found[str(mark)] = mark.read_bytes()
    paths = [(int(path.name), path) for path in (root / "epoch").glob("[0-9]*")]
    paths += [(segment_epoch(path.name), path) for path in (root / "journal").iterdir()]
    paths += [
        (int(path.relative_to(root).parts[1].partition("-")[0]), path)
        for path in (root / "blobs").rglob("*")
        if path.is_file()
    ]
    return found | {str(path): path.read_bytes() for made_by, path in paths if made_by > epoch}


def made_by(root: Path, epoch: int) -> set[str]:
    """Return the versions of an owner.

    Its fence is none: where retention has freed that number it may yet come, below all that counts.
    """
    return {version.name for version in Store(root).versions() if version.epoch == epoch}


@dataclass
class Report:
    """Counts and ends of a storm.

    Attributes:
        stops: by SIGSTOP.
        kills: by SIGKILL.
        zombies: woken when a successor had fenced them.
        ended: exit code and message of those that were not killed.
    """

    stops: int = 0
    kills: int = 0
    zombies: int = 0
    ended: list[tuple[int | None, str]] = field(default_factory=list)


class Storm:
    """Owners, up to three at a time, of one store; the context ends them all."""

    def __init__(self, root: Path, seed: int, *, num_owners: int = 6, at_once: int = 3) -> None:
        self._root, self._chance = root, random.Random(seed)
        self._num_left, self._at_once = num_owners, at_once
        self._seeds = iter(range(seed * 100, seed * 100 + num_owners))
        self._calls, self._calls_made = _nursery.Pipe(duplex=False)
        self._alive: list[Owner] = []
        self.report = Report()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for owner in self._alive:
            owner.close()
        self._calls.close()
        self._calls_made.close()

    def run(self) -> Report:
        """Go on until all have lived."""
        calls_at_once = self._chance.choice((4, 30, 120))
        while self._num_left or self._alive:
            if self._num_left and self._has_room():
                self._num_left -= 1
                self._alive.append(Owner(self._root, next(self._seeds), self._calls_made))
            self._pass(int(self._chance.expovariate(1 / calls_at_once)) + 1)
            self._part()
            if self._alive:
                self._signal(self._chance.choice(self._alive))
            self._part()
        return self.report

    def _has_room(self) -> bool:
        """Decide by chance whether another owner starts, where one may."""
        if len(self._alive) >= self._at_once:
            return False
        return not self._alive or self._chance.random() < 0.5

    def _signal(self, owner: Owner) -> None:
        if self._chance.random() < 0.15:
            owner.kill()
            self.report.kills += 1
        elif not owner.is_stopped:
            owner.stop()
            self.report.stops += owner.is_stopped
        elif (epoch := owner.epoch) and self._has_successor(epoch):
            self._wake_zombie(owner, epoch)
        else:
            owner.wake()

    def _has_successor(self, epoch: int) -> bool:
        return any(version.epoch > epoch for version in Store(self._root).manifests())

    def _wake_zombie(self, zombie: Owner, epoch: int) -> None:
        """Wake an owner that has a successor, while all others stand still: it must end by that."""
        others = [owner for owner in self._alive if owner is not zombie and not owner.is_stopped]
        for owner in others:
            owner.stop()
        self.report.zombies += 1
        before, own = of_later(self._root, epoch), made_by(self._root, epoch)
        zombie.wake()
        while not zombie.has_ended:
            self._pass(1, zombie)
        assert of_later(self._root, epoch) == before, f"owner {epoch} touched its successor's files"
        assert made_by(self._root, epoch) <= own, f"owner {epoch} made a version: it is fenced"
        for owner in others:
            owner.wake()

    def _pass(self, num_calls: int, *owners: Owner) -> None:
        """Wait for so many calls, or until one of the owners ends or none is running."""
        running = [owner for owner in owners or self._alive if not owner.is_stopped]
        while running and num_calls > 0:
            ready = wait([self._calls, *(owner.sentinel for owner in running)], PATIENCE_SECONDS)
            assert ready, "nobody does anything"
            if self._calls not in ready:
                return
            num_calls -= len(os.read(self._calls.fileno(), num_calls))

    def _part(self) -> None:
        """Remove the owners that have ended."""
        for owner in [owner for owner in self._alive if owner.has_ended]:
            code, message = owner.join()
            if code != -signal.SIGKILL or not owner.was_killed:
                self.report.ended.append((code, message))
            self._alive.remove(owner)
            owner.close()
