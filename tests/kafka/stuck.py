"""A learner process whose model never returns from its sixth step, as in a deadlock."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from threading import Event

from deploy.roles.learn import LearnRole
from deploy.settings.load import load
from learner.trainer import StepReport, Trainer
from weighting.sample import Sample


class Stuck(Trainer):
    """Gets no further."""

    def step(self, samples: Sequence[Sample]) -> StepReport:
        if self.step_number == 5:
            Event().wait()
        return super().step(samples)


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:] if word != "--set")
    LearnRole(load(None, {}, given), trainer=Stuck).run()
