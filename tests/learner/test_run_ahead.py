"""A batch that is pulled and prepared while the step before runs changes no bit of anything."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from learner.artifact import Store
from learner.errors import Diverged
from learner.loop import train
from learner.ranker import Ranker
from learner.store.blobs import Disk
from learner.store.journal.tail import read_tail
from learner.trainer import Trainer
from learner.training.prepared import Prepared
from learner.training_step import StepReport
from tests.learner.test_loop import Learner, Samples, steps
from tests.learner.training import WORDS, config, lists, trainer
from weighting.competition import CompetitionConfig
from weighting.config import WeigherConfig
from weighting.errors import WeightError
from weighting.estimators.drift import DriftConfig
from weighting.provenance import Poll, Slice
from weighting.sample import Batch, CopyKind, Sample, Signal
from weighting.weigher import Weigher
from weighting.weighted import WeightedBatch

IDLE = Signal.IDLE
AUTO = WeigherConfig(
    exponent="auto",
    competition=CompetitionConfig(
        candidates="uniform, ratio:1", margin=0.01, min_samples=20.0, share=0.01
    ),
)
TINY: dict[str, Any] = {"model": "random:1x32", "publish_every_seconds": 2.0}


def learner(root: Path, *, run_ahead: bool, weighting: WeigherConfig | None = None) -> Learner:
    return Learner(root, trainer=trainer(weighting, run_ahead=run_ahead, **TINY))


def late(samples: Sequence[Sample]) -> list[Sample]:
    """The positive ones again, as copies that come after their list."""
    return [
        msgspec.structs.replace(
            s, sample_id=f"{s.sample_id}-late", copy_kind=CopyKind.LATE_POSITIVE
        )
        for s in samples
        if s.label
    ]


def refused(samples: Sequence[Sample]) -> list[Sample]:
    """With one label that no weight can be made of."""
    return [*samples[:2], msgspec.structs.replace(samples[2], label=7), *samples[3:]]


def batch(kind: str, number: int) -> Samples:
    samples = lists(2, seed=number, start=2 * number)
    if kind == "idle":
        return IDLE
    return {"late": [*samples, *late(samples)], "refused": refused(samples)}.get(kind, samples)


class Polled(Learner):
    """Its journal says what was polled, so that its steps can be told apart."""

    def source(self, stream: Any, seconds: float) -> Iterator[Batch | Signal]:
        for item in super().source(stream, seconds):
            if isinstance(item, Batch):
                n = len(self.consumed)
                poll = Poll((Slice("clicks", 0, n - 1, n, 1, n),))
                item = msgspec.structs.replace(item, polls=(poll,))
            yield item


def contents(learner: Learner) -> tuple[object, ...]:
    """All that is durable but the times of writing: journal and versions."""
    journal = {
        path.name: path.read_bytes() for path in sorted((learner.root / "journal").iterdir())
    }
    versions = [
        (v.files, v.next_offsets, v.step, v.num_samples, v.journal, v.manifest["fresh_events"])
        for v in learner.versions()
    ]
    return journal, versions


def outcome(results: Sequence[StepReport | Signal]) -> list[object]:
    return [
        (r.step, r.result, r.loss, r.gradient_norm, r.figures, r.changes)
        if isinstance(r, StepReport)
        else r
        for r in results
    ]


def both(
    root: Path,
    stream: Sequence[Samples],
    seconds: float,
    weighting: WeigherConfig | None = None,
    **changes: Any,
) -> None:
    """Learn a stream with and without running ahead, and compare every byte."""
    found = []
    for run_ahead in (False, True):
        learning = trainer(weighting, run_ahead=run_ahead, **{**TINY, **changes})
        own = Polled(root / str(run_ahead), trainer=learning)
        results = own.run(*stream, seconds=seconds)
        own.publisher.close()
        found.append((outcome(results), contents(own), own.trainer.files(), own.announced))
    assert found[0] == found[1]


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kinds=st.lists(st.sampled_from(["full", "full", "late", "idle", "refused"]), max_size=9),
    seconds=st.sampled_from([0.0, 0.7, 1.0, 3.0]),
    auto=st.booleans(),
)
def test_journal_versions_and_reports_have_the_same_bytes(
    kinds: list[str], seconds: float, auto: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stream = [batch(kind, number) for number, kind in enumerate(kinds)]
    both(tmp_path_factory.mktemp("both"), stream, seconds, AUTO if auto else None)


def test_under_a_competition_the_scheme_that_a_step_puts_in_force_weighs_the_next_batch(
    tmp_path: Path,
) -> None:
    stream = [batch("full", number) for number in range(12)]
    both(tmp_path, stream, 0.7, AUTO)
    own = learner(tmp_path / "again", run_ahead=True, weighting=AUTO)
    assert any(report.changes for report in steps(own.run(*stream)))


class Watched(Trainer):
    """A step waits until the next batch is prepared, where one is expected to run ahead."""

    def __init__(
        self, weigher: Weigher, *, expected: Callable[[int], bool], **changes: Any
    ) -> None:
        super().__init__(config(run_ahead=True, **{**TINY, **changes}), weigher)
        self._expected = expected
        self._alone = threading.Lock()
        self._done = [threading.Event() for _ in range(10)]
        self.threads: list[str] = []

    def prepare(self, samples: Sequence[Sample]) -> Prepared:
        assert self._alone.acquire(blocking=False), "one batch after the other"
        try:
            found = super().prepare(samples)
            self.threads.append(threading.current_thread().name)
            self._done[len(self.threads)].set()
        finally:
            self._alone.release()
        return found

    def take(self, prepared: Prepared, counts: NDArray[np.float64] | None = None) -> StepReport:
        step = self.step_number + 1
        if self._expected(step):
            assert self._done[step + 1].wait(60), "the next batch waits for this step"
        return super().take(prepared, counts)


def test_the_next_batch_is_weighed_while_a_step_runs_but_in_the_round_of_a_checkpoint(
    tmp_path: Path,
) -> None:
    own = Watched(Weigher(), expected=lambda step: 1 < step < 6)
    learning = Learner(tmp_path, trainer=own)
    reports = steps(learning.run(*(batch("full", number) for number in range(6))))
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    ahead = [name.startswith("run-ahead") for name in own.threads]
    # the first checkpoint is due in the first round, and no other
    assert ahead == [False, False, True, True, True, True]
    figures = [report.figures for report in reports]
    expected = trainer(**TINY)
    for number, found in enumerate(figures):
        expected.step(batch("full", number))  # type: ignore[arg-type]
        assert found == expected.weigher.figures(), "of this step, not of the batch ahead"


def fresh(number: int) -> list[Sample]:
    """Of texts that no other batch has."""
    samples = lists(2, seed=number, start=2 * number)
    return [msgspec.structs.replace(s, text=f"{s.text} {WORDS[number]}") for s in samples]


ENCODED: list[dict[str, Any]] = [
    {"tuning": "full"},
    {"tuning": "top:1", "model": "random:2x64"},
    {"tuning": "top:1", "model": "random:2x64", "dropout": 0.2},
    {"tuning": "top:1", "model": "random:2x64", "interaction": "cross_encoder"},
    {"tuning": "lora:2@top:1", "model": "random:2x64"},
    {"tuning": "frozen"},
    {"tuning": "top:1", "model": "random:2x64", "precision": "bfloat16"},
]


@pytest.mark.parametrize("changes", ENCODED, ids=str)
def test_texts_encoded_ahead_have_the_bits_of_those_that_a_step_encodes(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    both(tmp_path, [*map(fresh, range(5)), IDLE, fresh(0), fresh(5)], 0.7, None, **changes)


class Encoding(Watched):
    """Notes for each step whether it meets none of its texts for the first time."""

    def __init__(self, weigher: Weigher, *, expected: Callable[[int], bool]) -> None:
        super().__init__(weigher, expected=expected, tuning="top:1", model="random:2x64")
        self.known: list[bool] = []

    def take(self, prepared: Prepared, counts: NDArray[np.float64] | None = None) -> StepReport:
        ranker, samples = self.ranker, prepared.weighted.samples
        texts = [ranker.texts.ids(text) for s in samples for text in (s.query, s.text)]
        cache = ranker.encoder.cache
        self.known.append(all(cache.get(ids) is not None for ids in texts))
        return super().take(prepared, counts)


def test_a_step_meets_no_text_for_the_first_time_if_its_batch_ran_ahead(tmp_path: Path) -> None:
    own = Encoding(Weigher(), expected=lambda step: 1 < step < 6)
    Learner(tmp_path, trainer=own).run(*map(fresh, range(6)))
    assert own.known == [False, False, True, True, True, True]


def test_where_memory_runs_out_texts_are_left_to_the_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(Ranker):
        def encode_ahead(self, pairs: Sequence[tuple[str, str]]) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

    learning = trainer(run_ahead=True, **TINY)
    learning.ranker.__class__ = Full
    reports = steps(Learner(tmp_path, trainer=learning).run(*map(fresh, range(4))))
    assert [report.result for report in reports] == ["ok"] * 4
    assert "no memory to encode ahead" in caplog.text


def test_nothing_is_encoded_ahead_by_several_threads_of_a_cpu_or_of_lists_that_are_drawn() -> None:
    one = trainer(**TINY)
    assert one.encodes_ahead
    several = trainer(threads=2, **TINY)
    drawn = trainer(compute_share=0.5, **TINY)
    for learning in (several, drawn):
        assert not learning.encodes_ahead
        learning.encode_ahead(lists(1))
        texts = [learning.ranker.texts.ids(s.text) for s in lists(1)]
        assert all(learning.ranker.starting._kept.get(ids) is None for ids in texts)


def test_figures_between_two_steps_are_of_the_steps_taken(tmp_path: Path) -> None:
    eager = WeigherConfig(drift=DriftConfig(block_samples=1, threshold=0.5))
    found: list[list[dict[str, float]]] = []
    for run_ahead in (False, True):
        own = learner(tmp_path / str(run_ahead), run_ahead=run_ahead, weighting=eager)
        stream = own.source((batch("full", number) for number in range(12)), 0.0)
        rounds = train(stream, own.trainer, own.publisher, own.telemetry, own.journal)
        found.append([own.trainer.evaluation() for _ in rounds])
    changes = [[f["click_changes_of_label"] for f in each] for each in found]
    assert changes[0] == changes[1]
    assert changes[0][-1] > 0


def test_a_checkpoint_holds_no_batch_that_is_not_learned(tmp_path: Path) -> None:
    own = learner(tmp_path, run_ahead=True)
    own.run(*(batch("full", number) for number in range(9)), seconds=0.9)
    own.publisher.close()
    found = [(v.step, v.next_offsets["clicks", 0]) for v in own.versions()]
    assert len(found) > 3
    assert all(step == offset for step, offset in found)


def test_a_batch_that_is_ahead_when_the_stream_ends_is_learned_first(tmp_path: Path) -> None:
    own = learner(tmp_path, run_ahead=True)
    reports = steps(own.run(*(batch("full", number) for number in range(4))))
    own.publisher.close()
    assert [report.step for report in reports] == [1, 2, 3, 4]
    assert own.versions()[-1].step == 4


def test_a_loop_that_is_broken_off_with_a_batch_ahead_takes_no_checkpoint(tmp_path: Path) -> None:
    own = learner(tmp_path, run_ahead=True)
    stream = own.source((batch("full", number) for number in range(9)), 0.0)
    rounds = train(stream, own.trainer, own.publisher, own.telemetry, own.journal)
    for report in rounds:
        if isinstance(report, StepReport) and report.step == 3:
            break
    rounds.close()  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="pulled and not learned"):
        own.publisher.close()
    assert len(own.consumed) == 4


class LostLog(Exception):
    """Stands for what a source raises."""


def learn(own: Learner, stream: Iterator[Batch | Signal], into: list[StepReport | Signal]) -> None:
    """Append each round's result: what came before an error stays."""
    into.extend(train(stream, own.trainer, own.publisher, own.telemetry, own.journal))


def failing(own: Learner, after: int) -> Iterator[Batch | Signal]:
    yield from own.source((batch("full", number) for number in range(after)), 0.0)
    raise LostLog


def test_an_error_of_the_source_is_raised_after_the_steps_before_it(tmp_path: Path) -> None:
    found = []
    for run_ahead in (False, True):
        own = learner(tmp_path / str(run_ahead), run_ahead=run_ahead)
        reports: list[StepReport | Signal] = []
        with pytest.raises(LostLog):
            learn(own, failing(own, 4), reports)
        found.append((outcome(reports), contents(own)[0], own.trainer.files()))
    assert found[0] == found[1]
    assert len(found[0][0]) == 4


class Broken(Weigher):
    """Raises something unexpected at the fourth batch."""

    def weigh(self, samples: Sequence[Sample]) -> WeightedBatch:
        if samples[0].sample_id == batch("full", 3)[0].sample_id:  # type: ignore[index]
            raise RuntimeError("a bug")
        return super().weigh(samples)


def test_an_error_while_weighing_is_raised_in_the_round_of_its_batch_which_is_journaled(
    tmp_path: Path,
) -> None:
    found = []
    for run_ahead in (False, True):
        own = Learner(
            tmp_path / str(run_ahead),
            trainer=Trainer(config(run_ahead=run_ahead, **TINY), Broken()),
        )
        reports: list[StepReport | Signal] = []
        stream = own.source((batch("full", number) for number in range(6)), 0.0)
        with pytest.raises(RuntimeError, match="a bug"):
            learn(own, stream, reports)
        found.append((outcome(reports), contents(own)[0]))
    assert found[0] == found[1]
    assert len(found[0][0]) == 3


class Lost(Trainer):
    """Diverges in its third step."""

    def take(self, prepared: Prepared, counts: NDArray[np.float64] | None = None) -> StepReport:
        if self.step_number == 2:
            raise Diverged(first_step=3, last_step=3, reason="a loss far beyond the others")
        return super().take(prepared, counts)


def test_a_step_that_fails_is_the_error_whatever_the_batch_ahead_met(tmp_path: Path) -> None:
    own = Learner(tmp_path, trainer=Lost(config(run_ahead=True, **TINY), Weigher()))
    with pytest.raises(Diverged):
        learn(own, failing(own, 3), [])
    assert len(own.consumed) == 3
    assert threading.active_count() == len(
        [t for t in threading.enumerate() if not t.name.startswith("run-ahead")]
    ), "no thread is left"


def test_steps_in_quarantine_are_not_weighed_ahead(tmp_path: Path) -> None:
    found = []
    for run_ahead in (False, True):
        own = learner(tmp_path / str(run_ahead), run_ahead=run_ahead)
        stream = own.source((batch("full", number) for number in range(7)), 0.3)
        results = list(
            train(
                stream,
                own.trainer,
                own.publisher,
                own.telemetry,
                own.journal,
                quarantine=[(3, 5), (6, 7)],
            )
        )
        own.publisher.close()
        found.append((outcome(results), contents(own), own.trainer.files()))
    assert found[0] == found[1]
    assert found[0][0].count(IDLE) == 3


def test_a_refused_batch_is_named_in_its_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = learner(tmp_path, run_ahead=True)
    stream = [batch(kind, n) for n, kind in enumerate(["full", "full", "full", "refused", "full"])]
    results = own.run(*stream)
    assert [r.step if isinstance(r, StepReport) else r for r in results] == [1, 2, 3, IDLE, 5]
    assert [r.message for r in caplog.records].count("batch refused") == 1
    with pytest.raises(WeightError):
        own.trainer.prepare(refused(lists(2)))


def test_what_is_calculated_ahead_counts_as_work_and_waiting_for_it_does_not(
    tmp_path: Path,
) -> None:
    working: list[str] = []
    seen: list[list[str]] = []

    class Work:
        def __enter__(self) -> None:
            working.append(threading.current_thread().name)

        def __exit__(self, *_: object) -> None:
            working.remove(threading.current_thread().name)

    own = learner(tmp_path, run_ahead=True)
    tokenise = own.trainer.tokenise

    def tokenised(samples: Sequence[Sample]) -> None:
        seen.append(list(working))
        tokenise(samples)

    own.trainer.tokenise = tokenised  # type: ignore[method-assign]
    stream = own.source((batch("full", number) for number in range(5)), 0.0)
    for _ in train(stream, own.trainer, own.publisher, own.telemetry, own.journal, working=Work):
        assert working == [threading.current_thread().name]
    assert len(seen) == 3
    assert all(any(name.startswith("run-ahead") for name in names) for names in seen)
    assert not working


def test_the_setting_is_in_no_digest() -> None:
    off, on = config(), config(run_ahead=True)
    assert off.on_disk() == on.on_disk()
    assert dataclasses.asdict(off) != dataclasses.asdict(on)


def test_a_journal_of_steps_that_ran_ahead_is_read_as_any_other(tmp_path: Path) -> None:
    own = learner(tmp_path, run_ahead=True)
    own.run(*(batch("full", number) for number in range(4)))
    own.publisher.close()
    last = Store(tmp_path).versions()[-1]
    first = last.timeline[0]
    assert last.journal is not None
    start = type(last.journal.place)(first.segment, first.start)
    found = read_tail(tmp_path, Disk(), last.timeline, start)
    assert [record.step for _, record in found.records] == [1, 2, 3, 4]
