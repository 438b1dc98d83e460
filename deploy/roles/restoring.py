"""Restoring of a term's parts: the model before the store is claimed, the others once wired."""

from __future__ import annotations

from functools import partial

from consumers.pipeline import Pipeline
from deploy.roles import wiring
from deploy.roles.start import Start
from learner.artifact import Version
from learner.process_group import ProcessGroup
from learner.publish import Publisher
from learner.store.checkpoint import Checkpointer
from learner.trainer import Trainer


class RestoredTrainer:
    """A trainer with the state of one version, read once."""

    def __init__(self, trainer: Trainer, checkpointer: Checkpointer) -> None:
        """Read nothing yet."""
        self._trainer = trainer
        self._read = checkpointer.read
        self._version: str | None = None

    def to(self, version: Version) -> None:
        """Restore the state of a version, unless the trainer has it."""
        if version.name != self._version:
            self._trainer.restore(partial(self._read, version))
            self._version = version.name


def restore(
    start: Start,
    checkpointer: Checkpointer,
    trainer: RestoredTrainer,
    pipeline: Pipeline,
    publisher: Publisher,
    group: ProcessGroup,
) -> None:
    """Restore all parts from the version that a term starts from, if there is one.

    The first rank also sweeps the store, and announces the version unless a replay is under way.
    """
    if start.version is None:
        return
    version = checkpointer.store.version(start.version)
    if group.rank == 0:
        checkpointer.sweep()
        if start.run_state.replay is None:
            checkpointer.announce(version)
    trainer.to(version)
    wiring.restore_pipeline(
        version, checkpointer.read, pipeline, start.next_offsets, num_ranks=group.world
    )
    publisher.restore(version)
