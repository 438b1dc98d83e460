"""Weights & Biases, offline: folders that `wandb sync` uploads when somebody wants it.

Nothing is sent anywhere from here. wandb refuses to resume a run offline, and a run's steps can
only rise. So each time that a learner begins is a run of its own, with the step that it begins
after in its name and its config, and the runs of one learner have a group in common. After a crash,
steps that were taken again are in two runs, and never twice in one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from learner.errors import TrackerMissing
from learner.extras import needed_by
from learner.tracking.record import NUM_BINS, Record
from learner.tracking.table import table


class WandbTracker:
    """Writer of one offline run."""

    def __init__(self, folder: Path, *, after_step: int, kind: str, group: str) -> None:
        """Begin a run.

        Args:
            folder: of all runs; made if it is missing.
            after_step: the step that the learner goes on from.
            kind: learn or fit.
            group: name of the runs of one learner.

        Raises:
            TrackerMissing: the library is not installed.
            Exception: the library's own errors, and OSError.
        """
        wandb = require()
        folder.mkdir(parents=True, exist_ok=True)
        self._wandb = wandb
        self._run = wandb.init(
            mode="offline",
            dir=str(folder),
            project="steelyard",
            group=group,
            job_type=kind,
            name=f"{kind} after step {after_step}",
            config={"after_step": after_step},
            reinit="create_new",
            settings=wandb.Settings(
                console="off",  # standard output is not recorded
                silent=True,
                quiet=True,
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )

    def write(self, record: Record) -> None:
        """Hand a record to wandb, whose own process writes it."""
        wandb = self._wandb
        found: dict[str, Any] = dict(record.scalars)
        for name, values in record.histograms.items():
            found[name] = wandb.Histogram(np_histogram=np.histogram(values, bins=NUM_BINS))
        for n, own in enumerate(record.lists, 1):
            found[f"predictions/{n}"] = wandb.Html(table(own))
        self._run.log(found, step=record.step)

    def close(self) -> None:
        """End the run, and wandb's process: only its end says that everything is in the file."""
        self._run.finish()
        self._wandb.teardown()


def require() -> Any:
    """Load the library, which reports no errors of its own over the network from here.

    Raises:
        TrackerMissing: it is not installed.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    with needed_by("tracking.to: wandb", TrackerMissing):
        import wandb
    return wandb
