"""A process has one number of threads: the learner's, where there is one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploy.roles.up import with_one_number_of_threads
from deploy.roles.wiring import fingerprint
from deploy.settings.tree import Settings
from learner.process_group import SingleProcess
from learner.trainer import Trainer
from weighting.weigher import Weigher

SMALL = replace(Settings().learner, model="random:1x32", threads=2)


@pytest.mark.parametrize(
    ("roles", "threads"), [(("learn", "serve"), 2), (("serve", "learn"), 2), (("serve",), 1)]
)
def test_a_server_beside_a_learner_has_the_learners_threads(
    roles: tuple[str, ...], threads: int
) -> None:
    settings = replace(Settings(), learner=SMALL)
    assert with_one_number_of_threads(settings, roles).serving.watcher.threads == threads


def test_the_fingerprint_says_what_torch_uses_not_what_was_asked_of_it() -> None:
    settings = replace(Settings(), learner=SMALL)
    Trainer(replace(SMALL, threads=4), Weigher(settings.weighting))
    assert fingerprint(settings, SingleProcess())["threads"] == 4
