"""A learner process whose model never returns from its sixth step, as in a deadlock."""

from __future__ import annotations

import sys
from threading import Event

import numpy as np
from numpy.typing import NDArray

from deploy.roles.learn import LearnRole
from deploy.settings.load import load
from learner.trainer import Trainer
from learner.training.prepared import Prepared
from learner.training_step import StepReport


class Stuck(Trainer):
    """Gets no further."""

    def take(self, prepared: Prepared, counts: NDArray[np.float64] | None = None) -> StepReport:
        if self.step_number == 5:
            Event().wait()
        return super().take(prepared, counts)


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:] if word != "--set")
    LearnRole(load(None, {}, given), trainer=Stuck).run()
