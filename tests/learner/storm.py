"""Storms of owners that are stopped, woken and killed between any two calls, by a seed.

Each owner lives in a thread of its own and waits before every call on its disk until it is its
turn; only one runs at any moment. One that is not chosen for long is what a stopped process is,
without the signals; so hundreds of storms take seconds and a seed brings one back.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from tests.fakes.disk import Call, Crash, Die, Fault, FaultyDisk


class Live(Protocol):
    """The life of one owner of a storm."""

    def __call__(self, disk: FaultyDisk, number: int) -> None: ...


@dataclass
class Owner:
    """One that waits for its turn."""

    live: Callable[[FaultyDisk], None]
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    waits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    killed: bool = False
    done: bool = False
    ended: BaseException | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.waits.acquire()

    def go_on(self) -> None:
        """Let it do one call."""
        self.turn.release()
        self.waits.acquire()

    def kill(self) -> None:
        self.killed = True
        self.go_on()
        while not self.done:  # what it does on its way out is dead too
            self.go_on()

    def _wait(self, call: Call | None) -> Fault | None:
        self.waits.release()
        self.turn.acquire()
        return Die() if self.killed else None

    def _run(self) -> None:
        try:
            self._wait(None)
            if not self.killed:
                self.live(FaultyDisk(self._wait))
        except BaseException as error:
            self.ended = error
        self.done = True
        self.waits.release()


@dataclass
class Report:
    """Counts and ends of a storm; `ended` has None for an owner that lived to its end."""

    stops: int = 0
    kills: int = 0
    ended: list[BaseException | None] = field(default_factory=list)


def storm(seed: int, live: Live, *, num_owners: int = 6, at_once: int = 3) -> Report:
    """Let owners live, up to `at_once` of them at the same time; return what happened."""
    chance, report = random.Random(seed), Report()
    calls_at_once = chance.choice((3, 40, 120))
    alive: list[Owner] = []
    started = 0
    while started < num_owners or alive:
        if started < num_owners and len(alive) < at_once and (not alive or chance.random() < 0.5):
            alive.append(Owner(partial(live, number=started)))
            started += 1
        owner = chance.choice(alive)
        for _ in range(int(chance.expovariate(1 / calls_at_once)) + 1):
            if not owner.done:
                owner.go_on()
        report.stops += not owner.done
        if not owner.done and chance.random() < calls_at_once / 600:
            owner.kill()
            report.kills += 1
        for each in [each for each in alive if each.done]:
            alive.remove(each)
            each.thread.join()
            if not isinstance(each.ended, Crash):
                report.ended.append(each.ended)
    return report
