"""Learning again, by the journal alone, from one version to a later one that it led to.

A trainer and a pipeline that never crashed do it. The checkpoints in between are compared on the
way, each at its own place in the journal: every file, to the byte. A checkpoint is taken between
two steps, so at a place two states are right: the one right behind the step, and the one after all
that was ready by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from consumers.assembler import FLUSH
from consumers.pipeline import Pipeline
from consumers.reading.replay import Replayed
from consumers.source import Source
from consumers.state import polls_of
from consumers.telemetry import Telemetry
from deploy.admin import lineage
from deploy.process.observability import new_registry
from deploy.roles import wiring
from deploy.roles.start import counts_of
from deploy.settings.tree import Settings
from deploy.verification import journal_steps
from deploy.verification.journal_steps import place_of
from learner import arithmetic
from learner import version_layout as layout
from learner.artifact import Store, Version
from learner.errors import LogRewritten
from learner.store import blobs
from learner.store.journal.records import JournalPosition, Outcome, Step
from learner.trainer import Trainer
from weighting.errors import WeightError
from weighting.provenance import Poll
from weighting.sample import Batch
from weighting.weigher import Weigher

OFFSETS = "next offsets"
"""Name of next offsets among the files that differ."""

_Steps = Sequence[tuple[JournalPosition, Step, Outcome | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A checkpoint that was passed.

    Attributes:
        version: its name.
        differs: its files that are not the same.
    """

    version: str
    differs: tuple[str, ...]


def relearn(
    settings: Settings,
    store: Store,
    source: Source,
    since: Version,
    until: Version,
    advance: Callable[[int], None] = lambda num_steps: None,
) -> Iterator[Compared]:
    """Restore `since`, repeat the journal up to `until`, and yield each checkpoint passed.

    Args:
        settings: those that the versions were made under.
        store: the versions.
        source: all topics, with no other user.
        since: the version to begin with.
        until: the version to end with; it came from `since`.
        advance: called with the number of steps taken.

    Raises:
        Unlearnable: another environment, other settings, several ranks, or an operator command in
            between: it would rightly end on other bytes.
        LogRewritten: the log does not have any more what was journaled.
        LogTruncated: the record that `since` consumed last is another one.
        Corrupt: a file or a frame is damaged.
    """
    arithmetic.use(settings.learner.threads)
    journal_steps.refuse_other_environment(settings, since, until)
    journal_steps.refuse_commands_between(store, since, until)
    trainer = Trainer(settings.learner, Weigher(settings.weighting))
    pipeline, _ = wiring.new_pipeline(
        settings,
        source,
        _NullSink(),
        Telemetry(new_registry()),
        clock=time.time,
        counts=counts_of(since),
        excluded=wiring.excluded(settings, until.run_state),
    )
    wiring.restore(since, store.read, trainer, pipeline, since.next_offsets)
    passing = [
        version for version in lineage.lineage(store, until) if since.seq < version.seq <= until.seq
    ]
    last = polls_of(store.read(until, layout.ingest_path("rank-0")))
    steps = journal_steps.journaled_steps(store, since, until)
    yield from _Pass(trainer, pipeline, steps, last, since, until, passing, advance).run()


class _Pass:
    """One pass over the journal.

    Checkpoints still to compare are kept by place in the journal, and by how many polls of the next
    record they contain.
    """

    def __init__(
        self,
        trainer: Trainer,
        pipeline: Pipeline,
        steps: _Steps,
        last: Sequence[Poll],
        since: Version,
        until: Version,
        passing: Iterable[Version],
        advance: Callable[[int], None],
    ) -> None:
        self._trainer = trainer
        self._pipeline = pipeline
        self._steps = steps
        self._last = last
        self._advance = advance
        self._since = since
        self._quarantine = until.run_state.quarantine
        self._left: dict[JournalPosition, dict[int, list[Version]]] = {}
        for version in passing:
            place, skip = place_of(version)
            self._left.setdefault(place, {}).setdefault(skip, []).append(version)
        self._differs: dict[str, tuple[str, ...]] = {}
        self._passed: list[Compared] = []
        self._over = False

    def run(self) -> Iterator[Compared]:
        """See `relearn`."""
        self._compare(*place_of(self._since))
        number = 0
        for batch in self._pipeline.batches(self._feed()):
            if isinstance(batch, Batch) and number == len(self._steps):
                self._end()  # it was ready when `until` was taken, and is not journaled
            elif isinstance(batch, Batch):
                place, step, outcome = self._steps[number]
                self._step(batch, step, outcome)
                self._compare(place, 0)
                self._advance(1)
                number += 1
            yield from self._passed
            self._passed.clear()
            if self._over:
                return

    def _feed(self) -> Iterator[Replayed]:
        """Yield the journal, divided wherever a checkpoint was taken.

        The pipeline asks for more once it has done all that was ready.
        """
        place, done = place_of(self._since)
        for behind, step, _ in self._steps:
            (part,) = step.parts
            yield from self._between(place, done, part.polls, step.step - 1)
            done = max([done, *self._skips(place)])
            self._give_up(place)
            yield Replayed(part.polls[done:], part.cause)
            place, done = behind, 0
        number = self._steps[-1][1].step if self._steps else self._since.step
        yield from self._between(place, done, self._last, number)
        self._end()
        yield Replayed((), FLUSH)  # gives control back

    def _end(self) -> None:
        for place in list(self._left):
            self._give_up(place)
        self._over = True

    def _between(
        self, place: JournalPosition, done: int, polls: Sequence[Poll], number: int
    ) -> Iterator[Replayed]:
        """Yield the polls behind step `number` that a checkpoint contains, and compare it."""
        # with another step number more than one batch was ready: this moment never was
        if self._trainer.step_number == number:
            self._compare(place, done)
        for skip in [skip for skip in self._skips(place) if skip > done]:
            yield Replayed(polls[done:skip], None)
            self._compare(place, skip)
            done = skip

    def _skips(self, place: JournalPosition) -> list[int]:
        return sorted(self._left.get(place, {}))

    def _step(self, batch: Batch, step: Step, outcome: Outcome | None) -> None:
        (part,) = step.parts
        if (batch.polls, batch.cause) != (part.polls, part.cause):
            found = f"{batch.cause}: {batch.polls}"
            raise LogRewritten(f"step {step.step}", expected=str(part), found=found)
        if outcome is not None:
            self._trainer.num_micro_batches = outcome.num_micro_batches
        if any(first <= step.step < end for first, end in self._quarantine):
            self._trainer.skip(batch.samples)
            return
        try:
            self._trainer.step(batch.samples)
        except WeightError:
            self._trainer.skip(batch.samples)

    def _compare(self, place: JournalPosition, skip: int) -> None:
        """Compare the state with the checkpoints of this place; equal ones are passed."""
        versions = self._left.get(place, {}).get(skip)
        if not versions:
            return
        files = self._trainer.files()
        for name, part in self._pipeline.snapshot().items():
            files[layout.ingest_path(name)] = part
        digests = {path: blobs.digest(data) for path, data in files.items()}
        for version in list(versions):
            paths = sorted({*digests, *version.files})
            differs = [path for path in paths if digests.get(path) != version.files.get(path)]
            if version.next_offsets != self._pipeline.next_offsets():
                differs.append(OFFSETS)
            self._differs[version.name] = tuple(differs)
            if not differs:
                self._passed.append(Compared(version=version.name, differs=()))
                versions.remove(version)

    def _give_up(self, place: JournalPosition) -> None:
        """Record that the checkpoints left at this place differ: no more states come there."""
        for versions in self._left.pop(place, {}).values():
            for version in versions:
                differs = self._differs.get(version.name, ("its place in the journal",))
                self._passed.append(Compared(version=version.name, differs=differs))


class _NullSink:
    """A sink that drops dead letters: they were set aside the first time."""

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Iterable[tuple[str, bytes]] = (),
    ) -> None:
        """Drop it."""

    def flush(self) -> None:
        """Nothing waits."""
