"""The state, learned again: from one version to a later one by the journal alone, by a trainer and a pipeline that never crashed.

The checkpoints in between are compared on the way, each at its own place in the journal: every file, to the byte. A checkpoint is cut
between two steps, so at a place two states are right: the one right behind the step, and the one after all that was ready by then.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from consumers.errors import LogTruncated
from consumers.kafka.source import KafkaSource
from consumers.pipeline import FLUSH, Pipeline, Replayed, polls_of
from consumers.source import Source
from consumers.telemetry import Telemetry
from deploy.admin import lineage
from deploy.process.observability import new_registry
from deploy.process.terminal import Output
from deploy.roles import wiring
from deploy.settings.tree import Settings
from deploy.verification.recount import Check, Deep
from learner.artifact import Corrupt, Store, Version
from learner.errors import LogRewritten
from learner.process_group import SingleProcess
from learner.store import blobs
from learner.store.blobs import Disk
from learner.store.journal.records import JournalPosition, Outcome, Step
from learner.store.journal.tail import read_tail
from learner.trainer import Trainer
from weighting.errors import WeightError
from weighting.provenance import Poll
from weighting.sample import Batch
from weighting.weigher import Weigher

OFFSETS = "next offsets"  #: stands among the files that differ

_Steps = Sequence[tuple[JournalPosition, Step, Outcome | None]]  # with the place behind each


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A checkpoint that was passed."""

    version: str
    differs: tuple[str, ...]  #: files that are others; none where all are the same


class Unlearnable(Exception):
    """What lies between two versions cannot be learned again here to the byte; says why."""


def deep(settings: Settings, store: Store, out: Output) -> Deep:
    """Return step 5 of `verify.run`."""

    def check(since: Version, until: Version) -> Check:
        passed: list[Compared] = []
        num_steps = until.step - since.step
        try:
            with contextlib.closing(
                KafkaSource(settings.kafka, tuple(settings.kafka.topics.kinds())).start()
            ) as source:
                with out.progress("steps learned again", num_steps) as advance:
                    for compared in relearn(settings, store, source, since, until, advance):
                        passed.append(compared)
        except Unlearnable as error:
            return Check(
                step="state", outcome="undecided", text=str(error), num_compared=len(passed)
            )
        except (LogRewritten, LogTruncated, Corrupt) as error:
            return Check(step="state", outcome="differs", text=str(error), num_compared=len(passed))
        wrong = [each for each in passed if each.differs]
        if not wrong:
            text = f"{num_steps:,} steps since {since.name} learned again: {len(passed)} versions passed, every file the same"
            return Check(step="state", outcome="equal", text=text, num_compared=len(passed))
        told = "; ".join(f"{each.version} ({', '.join(each.differs)})" for each in wrong[:5])
        text = f"{num_steps:,} steps since {since.name} learned again: {len(wrong)} of {len(passed)} versions differ: {told}"
        return Check(
            step="state",
            outcome="differs",
            text=text,
            num_compared=len(passed),
            versions=tuple(each.version for each in wrong),
        )

    return check


def relearn(
    settings: Settings,
    store: Store,
    source: Source,
    since: Version,
    until: Version,
    advance: Callable[[int], None] = lambda num_steps: None,
) -> Iterator[Compared]:
    """Take the state of `since`, do all that is journaled up to `until`, and yield each checkpoint of its chain that was passed.

    Args:
        settings: those that the versions were made under.
        store: whose versions.
        source: all topics, used by nobody else.
        since: where to begin.
        until: where to end; it went on from `since`.
        advance: hears how many steps were done.

    Raises:
        Unlearnable: another environment, other settings, several ranks, or an order in between: it would rightly end on other bytes.
        LogRewritten: the log does not give any more what was journaled.
        LogTruncated: the record that `since` consumed last is another one.
        Corrupt: a file or a frame does not hold.
    """
    _refuse(settings, store, since, until)
    trainer = Trainer(settings.learner, Weigher(settings.weighting))
    pipeline, _ = wiring.new_pipeline(
        settings,
        source,
        _Nowhere(),
        Telemetry(new_registry()),
        clock=time.time,
        excluded=wiring.excluded(settings, until.run_state),
    )
    wiring.restore(since, store.read, trainer, pipeline, since.next_offsets)
    passing = [
        version for version in lineage.lineage(store, until) if since.seq < version.seq <= until.seq
    ]
    last = polls_of(store.read(until, "training/rank-0.msgpack"))
    yield from _Again(
        trainer, pipeline, _steps(store, since, until), last, since, until, passing, advance
    ).run()


class _Again:
    """One pass over the journal."""

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
        self._trainer, self._pipeline, self._steps, self._last, self._advance = (
            trainer,
            pipeline,
            steps,
            last,
            advance,
        )
        self._since, self._quarantine = since, until.run_state.quarantine
        self._left: dict[
            JournalPosition, dict[int, list[Version]]
        ] = {}  # by place and number of turns of the next record
        for version in passing:
            place, skip = _at(version)
            self._left.setdefault(place, {}).setdefault(skip, []).append(version)
        self._differs: dict[str, tuple[str, ...]] = {}
        self._passed: list[Compared] = []
        self._over = False

    def run(self) -> Iterator[Compared]:
        """See `relearn`."""
        self._compare(*_at(self._since))
        number = 0
        for batch in self._pipeline.batches(self._feed()):
            if isinstance(batch, Batch) and number == len(
                self._steps
            ):  # was ready when `until` was cut, and is not journaled
                self._end()
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
        """The journal, cut wherever a checkpoint was. The pipeline asks for more once it has done all that was ready."""
        place, done = _at(self._since)
        for behind, step, _ in self._steps:
            (part,) = step.parts
            yield from self._between(place, done, part.polls, step.step - 1)
            done = max([done, *self._skips(place)])
            self._give_up(place)
            yield Replayed(part.polls[done:], part.cause)
            place, done = behind, 0
        yield from self._between(
            place, done, self._last, self._steps[-1][1].step if self._steps else self._since.step
        )
        self._end()
        yield Replayed((), FLUSH)  # gives control back

    def _end(self) -> None:
        for place in list(self._left):
            self._give_up(place)
        self._over = True

    def _between(
        self, place: JournalPosition, done: int, polls: Sequence[Poll], number: int
    ) -> Iterator[Replayed]:
        """Do the turns behind step `number` that a checkpoint contains, and compare it."""
        if (
            self._trainer.step_number == number
        ):  # else more than one batch was ready, and this moment never was
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
            raise LogRewritten(
                f"step {step.step}", expected=str(part), found=f"{batch.cause}: {batch.polls}"
            )
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
        """Compare the state as it is with the checkpoints of this place; those that are equal are passed."""
        versions = self._left.get(place, {}).get(skip)
        if not versions:
            return
        files = self._trainer.files()
        files |= {
            f"training/{name}.msgpack": part for name, part in self._pipeline.snapshot().items()
        }
        digests = {path: blobs.digest(data) for path, data in files.items()}
        for version in list(versions):
            differs = [
                path
                for path in sorted({*digests, *version.files})
                if digests.get(path) != version.files.get(path)
            ]
            if version.next_offsets != self._pipeline.next_offsets():
                differs.append(OFFSETS)
            self._differs[version.name] = tuple(differs)
            if not differs:
                self._passed.append(Compared(version=version.name, differs=()))
                versions.remove(version)

    def _give_up(self, place: JournalPosition) -> None:
        """No more states come at this place: what is left there differs."""
        for versions in self._left.pop(place, {}).values():
            for version in versions:
                differs = self._differs.get(version.name, ("its place in the journal",))
                self._passed.append(Compared(version=version.name, differs=differs))


class _Nowhere:
    """Dead letters were set aside the first time."""

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


def _refuse(settings: Settings, store: Store, since: Version, until: Version) -> None:
    environment = wiring.fingerprint(settings, SingleProcess())
    for version in (since, until):
        if version.journal is None or version.run_state.world_size != 1:
            raise Unlearnable(
                f"{version.name}: {'no journal' if version.journal is None else 'several ranks'}: not learned again here"
            )
        if version.manifest["config_sha256"] != wiring.config_sha256(settings):
            raise Unlearnable(
                f"{version.name} was made under other settings: give those of its learner"
            )
        other = sorted(
            key
            for key, value in environment.items()
            if version.manifest["fingerprint"].get(key) != value
        )
        if other:
            raise Unlearnable(
                f"{version.name} was made in another environment ({', '.join(other)}): equal within a tolerance only"
            )
    if (
        since.run_state.bit_exact != until.run_state.bit_exact
        or since.run_state.exclusions != until.run_state.exclusions
    ):
        raise Unlearnable(
            f"between {since.name} and {until.name} the environment or the exclusions changed"
        )
    for between in store.manifests():
        replay = between.run_state.replay
        passed = since.seq < between.seq < until.seq and not any(
            a <= between.seq < b for a, b in until.run_state.superseded
        )
        if passed and (
            between.kind == "reset"
            or (between.kind == "restore" and replay is not None and replay.mode == "anew")
        ):
            raise Unlearnable(
                f"between {since.name} and {until.name} lies an order ({between.kind}, {between.name}): begin behind it"
            )


def _steps(
    store: Store, since: Version, until: Version
) -> list[tuple[JournalPosition, Step, Outcome | None]]:
    """Return the journal from one version to the other.

    Raises:
        Corrupt: it does not lead there.
    """
    start, end = _at(since)[0], _at(until)[0]
    if not any(span.holds(start) for span in until.timeline):
        raise Unlearnable(
            f"the journal behind {since.name} is gone, or {until.name} did not come from it"
        )
    steps: list[tuple[JournalPosition, Step, Outcome | None]] = []
    if start == end:
        return steps
    tail = read_tail(store.root, Disk(), until.timeline, start)
    for place, record in tail.records:
        if isinstance(record, Step):
            steps.append((place, record, None))
        elif steps:
            steps[-1] = (place, steps[-1][1], record)
        if place == end:
            return steps
    why = tail.damage.reason if tail.damage else "the end of the journal"
    raise Corrupt(
        f"journal/{end.segment}", expected=f"whole records up to byte {end.byte}", found=why
    )


def _at(version: Version) -> tuple[JournalPosition, int]:
    """Return where a version stands in the journal, and how many turns of the next record it contains."""
    assert version.journal is not None
    return version.journal.place, sum(version.journal.skip)
