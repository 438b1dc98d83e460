"""State of a trainer as files of a version: copied between two steps, encoded later, read back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
from msgspec import UNSET

from learner import version_layout as layout
from learner.components import Components
from learner.finite import check_tensors
from learner.model_card import model_card
from learner.ranker import Ranker
from learner.ranker_files import copy_of
from learner.tuning import adapters


def copied(
    own: Components, *, step: int, num_samples: int, trained: tuple[int, int]
) -> Callable[[], dict[str, bytes]]:
    """Copy all that the next step changes; return a function that encodes the copies.

    The function may run in any thread while training goes on.

    Args:
        own: of the trainer.
        step: number of steps taken.
        num_samples: in all steps.
        trained: number and digest of samples, as `Trainer` keeps them.
    """
    progress = layout.Progress(
        step=step,
        num_samples=num_samples,
        trained=trained,
        num_micro_batches=own.gradient.num_micro_batches,
        losses=msgspec.structs.replace(own.losses),
        sampler_log_level=own.sampler.log_level,
        privacy=UNSET if own.privacy is None else own.privacy.budget(),
    )
    encoder, heads = own.files.copied()
    residual = own.ranker.residual.copy()
    estimators, stackers = own.weigher.snapshot(), own.served.snapshot()
    parts = own.served.snapshot_parts()
    training_state, weighting = _training_state(own, progress), own.weigher.description()
    attributes = own.served.attribute_coefficients()

    def encode() -> dict[str, bytes]:
        written = encoder()
        # The settings hold a digest of what never moves, which is slow the first time
        state = layout.ScoringState(
            settings=own.files.settings(written, own.weigher.config.on_disk()),
            heads=heads,
            queries=residual.queries,
            residuals=residual.vectors(),
            estimators=estimators,
            stackers=stackers,
            parts=parts,
        )
        training = training_state(residual_counts=residual.encoded())
        progress = training.progress
        return {
            **own.files.fixed,
            **written,
            **layout.scoring_files(state),
            **layout.training_files(training),
            layout.CARD: model_card(
                training.evaluations,
                step=progress.step,
                num_samples=progress.num_samples,
                weighting=weighting,
                attributes=attributes,
                adapter=own.files.adapter(),
                head=own.files.head_kind(),
                budget=progress.budget(),
            ),
        }

    return encode


def _training_state(
    own: Components, progress: layout.Progress
) -> Callable[..., layout.TrainingState]:
    """Copy what only training needs; the counts behind the residuals are given later."""
    state, items, past = own.optimizer.state(), own.gradient.frequency, own.rehearsal
    return partial(
        layout.TrainingState,
        evaluations={task: e.snapshot() for task, e in own.prequential.evaluations.items()},
        clicked=own.prequential.clicked.snapshot(),
        frequency=own.prequential.frequency.snapshot(),
        items=items.snapshot() if items is not None else b"",
        rehearsal=past.snapshot() if past is not None else b"",
        optimizer={name: copy_of(tensor) for name, tensor in state.items()},
        privacy=b"" if own.privacy is None else own.privacy.snapshot(),
        progress=progress,
    )


def restore(own: Components, read: layout.Read) -> layout.Progress:
    """Restore the state that the files of a version hold; arguments and errors as of `Trainer`.

    Returns:
        The progress, of which the trainer takes its own counts.
    """
    scoring, training = layout.read_scoring(read), layout.read_training(read)
    own.files.check(scoring.settings, read("config.json"))
    _restore_ranker(own.ranker, read, scoring)
    with layout.reading(layout.RESIDUAL_COUNTS):
        own.ranker.residual.restore(training.residual_counts, scoring.residuals)
    with layout.reading(layout.ESTIMATORS):
        own.weigher.restore(scoring.estimators)
    own.ranker.exponent = own.weigher.exponent
    with layout.reading(f"{layout.STACKERS}, {layout.PARTS}"):
        own.served.restore(scoring.stackers, scoring.parts)
    with layout.reading(layout.EVALUATIONS):
        for task, evaluation in own.prequential.evaluations.items():
            evaluation.restore(training.evaluations[task])
    with layout.reading(layout.SHOWN):
        _restore_shown(own, training)
    with layout.reading(layout.OPTIMIZER):
        own.optimizer.restore(training.optimizer)
    progress = training.progress
    if own.privacy is not None:
        with layout.reading(layout.PRIVACY):
            own.privacy.restore(training.privacy, progress.budget(), step=progress.step)
    own.gradient.num_micro_batches = progress.num_micro_batches
    own.losses = progress.losses
    own.sampler.log_level = progress.sampler_log_level
    return progress


def _restore_ranker(ranker: Ranker, read: layout.Read, scoring: layout.ScoringState) -> None:
    """Restore encoder, heads and starting values; a number that is not finite is refused."""
    model_files, start = layout.read_model_files(read), layout.read_start(read)
    moving = {**model_files, layout.HEADS: scoring.heads, layout.START: start}
    for path, tensors in moving.items():
        check_tensors(path, tensors)
    with layout.reading(", ".join(model_files)):
        adapters.load(ranker.encoder.model, layout.merged(model_files))
    with layout.reading(layout.HEADS):
        ranker.load_heads(scoring.heads)
    with layout.reading(layout.START):
        ranker.starting.load(start)


def _restore_shown(own: Components, training: layout.TrainingState) -> None:
    own.prequential.clicked.restore(training.clicked)
    own.prequential.frequency.restore(training.frequency)
    if own.gradient.frequency is not None:
        own.gradient.frequency.restore(training.items)
    if own.rehearsal is not None:
        own.rehearsal.restore(training.rehearsal)
