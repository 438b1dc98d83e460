"""The tracker that the settings name, opened for a learner or a fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from learner.tracking import tensorboard, wandb
from learner.tracking.background import Background, Open
from learner.tracking.config import TrackingConfig
from learner.tracking.record import Tracker
from learner.tracking.recorder import Recorder
from learner.trainer import Trainer


def check_installed(config: TrackingConfig) -> None:
    """Refuse a tracker whose library is missing.

    Raises:
        TrackerMissing: names the extra.
    """
    if config.to == "tensorboard":
        tensorboard.require()
    elif config.to == "wandb":
        wandb.require()


def start_recorder(
    config: TrackingConfig,
    trainer: Trainer,
    *,
    kind: str,
    root: Path,
    clock: Callable[[], float],
    counted: Callable[[str], None] = lambda outcome: None,
) -> Recorder:
    """Return a recorder of the trainer's next steps; of none if nothing is tracked.

    Args:
        config: the settings.
        trainer: restored, if it is.
        kind: learn or fit, whose curves are apart.
        root: folder of the store.
        clock: seconds since the Unix epoch.
        counted: called with the outcome of each record.

    Raises:
        TrackerMissing: the tracker's library is not installed.
    """
    if config.to == "none":
        return Recorder(config, trainer, None, clock=clock)
    check_installed(config)
    name = root.absolute().name or "steelyard"
    folder = config.folder / name if config.folder else root / "tracking"
    out = Background(
        _opener(config, folder, kind=kind, group=name),
        folder=folder,
        after_step=trainer.step_number,
        max_size_bytes=config.max_size_bytes,
        counted=counted,
    )
    return Recorder(config, trainer, out, clock=clock)


def _opener(config: TrackingConfig, folder: Path, *, kind: str, group: str) -> Open:
    def open_tracker(after_step: int, now_seconds: float) -> Tracker:
        if config.to == "wandb":
            return wandb.WandbTracker(folder, after_step=after_step, kind=kind, group=group)
        return tensorboard.TensorBoardTracker(
            folder / kind, after_step=after_step, now_seconds=now_seconds
        )

    return open_tracker
