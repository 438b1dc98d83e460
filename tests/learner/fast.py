"""A learner that costs nothing: its state is a running hash of its steps, and their history.

It does to the store all that the real one does: acquire, replay, poll, journal, step, save,
announce, prune. How it polls and where its batches close depends on a seed of each life, as a clock
would have it, so that only the journal can bring a step back. `check` holds the oracle: the state
is what one clean run over its own history gives, the history takes each record of the log exactly
once, and it is the one that the timeline of the newest manifest names.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from learner.artifact import Store, Version
from learner.errors import StoreFailed
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.store.journal.records import JournalPosition, Part, Step
from learner.store.journal.tail import read_tail
from learner.store.journal.writer import Journal
from learner.store.manifest import CheckpointMetadata, Reset, ResumePoint
from learner.store.recovery.plan import RecoveryPlan
from learner.store.recovery.point import RecoveryPoint
from tests.fakes.disk import FaultyDisk
from tests.learner.saving import cut
from weighting.provenance import Poll, Slice

NOW = 1_700_000_000.0
TOPIC = "clicks"
SEGMENT_BYTES = 600


@dataclass(frozen=True)
class Log:
    """Partitions of records, each a few bytes."""

    partitions: tuple[tuple[bytes, ...], ...]

    @classmethod
    def invented(cls, *sizes: int) -> Log:
        return cls(
            tuple(
                tuple(f"{p}@{offset}".encode() for offset in range(size))
                for p, size in enumerate(sizes)
            )
        )

    def __iter__(self) -> Iterator[tuple[int, tuple[bytes, ...]]]:
        """Iterate over partition numbers and their records."""
        return iter(enumerate(self.partitions))

    def num_records(self) -> int:
        return sum(map(len, self.partitions))


@dataclass
class State:
    """Everything that the learner has learned."""

    digest: str = ""
    step: int = 0
    next: dict[int, int] = field(default_factory=dict)
    pending: list[Poll] = field(default_factory=list)
    history: list[Step] = field(default_factory=list)

    def move(self, resets: Iterable[Reset]) -> None:
        """Take offsets that an operator moved, where the next poll is behind them."""
        for reset in resets:
            if (reset.step, sum(reset.skip)) == (self.step, len(self.pending)):
                self.next.update({p: after for p, (_, after) in reset.offsets[TOPIC].items()})

    def consume(self, log: Log, poll: Poll, resets: Iterable[Reset] = ()) -> None:
        self.move(resets)
        for piece in poll.slices:
            assert self.next.get(piece.partition, 0) == piece.start, "not at the state's position"
            records = log.partitions[piece.partition][piece.start : piece.end]
            self.digest = hashlib.sha256(repr((self.digest, piece, records)).encode()).hexdigest()
            self.next[piece.partition] = piece.end
        self.pending.append(poll)

    def apply(self, step: Step) -> None:
        assert list(step.parts[0].polls) == self.pending
        assert step.step == self.step + 1
        text = f"{self.digest} step {step.step} {step.parts[0].cause}"
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.step, self.pending = step.step, []
        self.history.append(step)

    def files(self) -> dict[str, bytes]:
        small = {"digest": self.digest, "step": self.step, "next": self.next}
        return {
            "state.json": json.dumps(small).encode(),
            "training/history.msgpack": msgspec.msgpack.encode((self.history, self.pending)),
        }

    @classmethod
    def read(cls, checkpointer: Checkpointer, version: Version) -> State:
        small = json.loads(checkpointer.read(version, "state.json"))
        history, pending = msgspec.msgpack.decode(
            checkpointer.read(version, "training/history.msgpack"),
            type=tuple[list[Step], list[Poll]],
        )
        next_offsets = {int(p): at for p, at in small["next"].items()}
        return cls(small["digest"], small["step"], next_offsets, pending, history)


def standing() -> float:
    """A clock that stands still: what is in the trash stays there."""
    return NOW


def no_plan(newest: Version | None) -> RecoveryPlan | None:
    return None


class Learner:
    """One life of the learner, from its start to its end."""

    def __init__(
        self,
        root: Path,
        disk: Disk,
        log: Log,
        seed: int,
        *,
        keep: int = 5,
        recovery_plan: Callable[[Version | None], RecoveryPlan | None] = no_plan,
        clock: Callable[[], float] = standing,
    ) -> None:
        self.root = root
        self.log = log
        self.random = random.Random(seed)
        self.saved: list[Version] = []
        self.num_failed = 0
        self.keep = keep
        self.checkpointer = Checkpointer(root, disk, clock)
        self.journal = Journal(root, disk, segment_bytes=SEGMENT_BYTES)
        self.recovery_plan = recovery_plan
        self.state = State()
        self.acquired: RecoveryPoint | None = None

    def run(self, num_polls: int = 1_000_000) -> State:
        """Start, poll so often or until the log is at its end, and make all of it durable.

        A checkpoint that fails is counted, and the next one tried; a journal that fails ends the
        life.
        """
        try:
            self._start()
            while num_polls and (poll := self._poll()):
                num_polls -= 1
                self.state.consume(self.log, poll)
                if self.random.random() < 0.6:
                    self._step("full")
                if self.random.random() < 0.3:
                    self._publish(self.journal.place)
            if self.state.pending:
                self._step("end")
            self._publish(self.journal.place)
        finally:
            self.journal.close()
        return self.state

    def _start(self) -> None:
        acquired = self.acquired = self.checkpointer.acquire(
            self.journal, initial=self._metadata(None), recovery_plan=self.recovery_plan
        )
        if acquired.version is not None:
            self.state = State.read(self.checkpointer, acquired.version)
        before = {(TOPIC, p): self.state.next.get(p, 0) for p, _ in self.log}
        assert before == acquired.next_offsets or acquired.run_state.resets
        next_offsets = {p: offset for (_, p), offset in acquired.next_offsets.items() if offset}
        self.state.next.update(next_offsets)
        (skip,) = acquired.journal.skip or (0,)
        assert len(self.state.pending) == skip
        for place, record in acquired.tail:
            assert isinstance(record, Step)
            for poll in record.parts[0].polls[len(self.state.pending) :]:
                self.state.consume(self.log, poll, acquired.resets)
            self.state.apply(record)
            if self.random.random() < 0.1:
                self._publish(place)
        self.state.move(acquired.resets)
        self.checkpointer.sweep()
        if acquired.version is not None:
            self.checkpointer.announce(acquired.version)

    def _poll(self) -> Poll | None:
        slices = []
        for p, records in self.log:
            start = self.state.next.get(p, 0)
            end = min(len(records), start + self.random.randrange(4))
            if end > start:
                slices.append(Slice(TOPIC, p, start, end, end - start, 0))
        if slices:
            return Poll(tuple(slices))
        at_end = all(self.state.next.get(p, 0) >= len(records) for p, records in self.log)
        return None if at_end else self._poll()

    def _step(self, cause: str) -> None:
        step = Step(self.state.step + 1, (Part(tuple(self.state.pending), cause),))
        self.journal.append(step)
        self.state.apply(step)

    def _publish(self, place: JournalPosition) -> None:
        try:
            version = self.checkpointer.save(self.state.files(), self._metadata(place))
            self.saved.append(version)
            self.checkpointer.announce(version)
            self.checkpointer.prune(self.keep)
        except StoreFailed:
            self.num_failed += 1

    def _metadata(self, place: JournalPosition | None) -> CheckpointMetadata:
        skip = (len(self.state.pending),)
        offsets = {TOPIC: {p: self.state.next.get(p, 0) for p, _ in self.log}}
        resume = place and ResumePoint(segment=place.segment, byte=place.byte, skip=skip)
        return cut(self.state.step, offsets=offsets, journal=resume)


def check(root: Path, log: Log, *, whole_journal: bool = True) -> State:
    """Compare the newest version with its oracle; return its state.

    The journal behind it may be damaged if it need not be whole.
    """
    store = Store(root)
    newest = store.newest()
    assert newest is not None
    assert newest.kind == "checkpoint"
    store.verify(newest)
    assert store.announced() == newest.name
    state = State.read(Checkpointer(root, Disk(), lambda: 0.0), newest)

    clean = State()
    for step in state.history:
        for poll in step.parts[0].polls:
            clean.consume(log, poll, newest.run_state.resets)  # each slice continues the last
        clean.apply(step)
    assert clean == state
    assert {p: at for p, at in state.next.items() if at} == {
        p: len(records) for p, records in log if records
    }
    check_journal(root, newest, state, whole_journal=whole_journal)
    return state


def check_journal(root: Path, newest: Version, state: State, *, whole_journal: bool) -> None:
    """Compare the history of a state with the timeline of its version."""
    first = newest.timeline[0]
    found = read_tail(root, Disk(), newest.timeline, JournalPosition(first.segment, first.start))
    assert found.damage is None or not whole_journal
    records = [record for _, record in found.records]
    begin = records[0].step if records else 0
    end = begin + len(records)
    assert records == [step for step in state.history if begin <= step.step < end]
    assert found.damage is not None or not records or state.history[-1] == records[-1]
    assert newest.journal is not None
    assert read_tail(root, Disk(), newest.timeline, newest.journal.place).records == []


def finish(
    root: Path,
    log: Log,
    seed: int = 0,
    *,
    whole_journal: bool = True,
    clock: Callable[[], float] = standing,
) -> State:
    """One more life, to the end of the log, and then the oracle."""
    learner = Learner(root, FaultyDisk(), log, seed, clock=clock)
    learner.run()
    return check(root, log, whole_journal=whole_journal)
