"""Owners that are stopped, woken and killed between any two calls on the same store, in an order that a seed decides.

Each owner lives in a thread of its own and waits before every call on its disk until it is its turn; only one runs at any moment. One
that is not chosen for long is what a stopped process is, without the signals; so hundreds of storms take seconds and a seed brings one
back.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.fakes.disk import Call, Crash, Die, Fault, FaultyDisk


@dataclass
class Owner:
    """One that waits for its turn."""

    live: Callable[[FaultyDisk], None]
    poll: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
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
        self.poll.release()
        self.waits.acquire()

    def kill(self) -> None:
        self.killed = True
        self.go_on()
        while not self.done:  # what it does on its way out is dead too
            self.go_on()

    def _wait(self, call: Call | None) -> Fault | None:
        self.waits.release()
        self.poll.acquire()
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
class Told:
    """What happened in a storm."""

    stops: int = 0
    kills: int = 0
    ended: list[BaseException | None] = field(default_factory=list)


def storm(
    seed: int, live: Callable[[FaultyDisk, int], None], *, num_owners: int = 6, at_once: int = 3
) -> Told:
    """Let so many owners live, up to `at_once` of them at the same time; the last ones are killed where they stand."""
    chance, told = random.Random(seed), Told()
    calls_at_once = chance.choice((3, 40, 120))
    alive: list[Owner] = []
    started = 0
    while started < num_owners or alive:
        if started < num_owners and len(alive) < at_once and (not alive or chance.random() < 0.5):
            number = started
            alive.append(Owner(lambda disk, number=number: live(disk, number)))  # type: ignore[misc]
            started += 1
        owner = chance.choice(alive)
        for _ in range(int(chance.expovariate(1 / calls_at_once)) + 1):
            if not owner.done:
                owner.go_on()
        told.stops += not owner.done
        if not owner.done and chance.random() < calls_at_once / 600:
            owner.kill()
            told.kills += 1
        for each in [each for each in alive if each.done]:
            alive.remove(each)
            each.thread.join()
            if not isinstance(each.ended, Crash):
                told.ended.append(each.ended)
    return told
