"""A tiny BERT, a stream of shown lists for it, and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from learner.artifact import Store, Version
from learner.config import LearnerConfig
from learner.trainer import Trainer
from tests.learner.saving import cut, owner
from tests.weighting.streams import SECOND, sample
from weighting.config import WeigherConfig
from weighting.sample import Sample
from weighting.tasks import PURCHASE
from weighting.weigher import Weigher

WORDS = ("red", "blue", "shoe", "lamp", "wool", "steel", "small", "grand", "oak", "silk")


def config(**changes: Any) -> LearnerConfig:
    """Settings of a two-layer BERT that moves fast enough to be seen moving."""
    small = {
        "model": "random:2x64",
        "tuning": "full",
        "loss": "pointwise",
        "lr": 1e-3,
        "max_tokens": 24,
    }
    return LearnerConfig(**{**small, **changes})


def trainer(weighting: WeigherConfig | None = None, **changes: Any) -> Trainer:
    """An untrained learner."""
    return Trainer(config(**changes), Weigher(weighting or WeigherConfig()))


def text(number: int) -> str:
    """A product's text, distinct below 1000."""
    return " ".join(WORDS[int(digit)] for digit in f"{number:03d}")


def lists(number: int, *, seed: int = 0, start: int = 0, size: int = 5) -> list[Sample]:
    """Samples of `number` shown lists over three queries, in event order.

    One item of each list is clicked, and some of those are bought.
    """
    draw = np.random.default_rng(seed)
    samples = []
    for i in range(start, start + number):
        query, clicked = f"query {WORDS[int(draw.integers(3))]}", int(draw.integers(size))
        for place, item in enumerate(draw.permutation(40)[:size].tolist(), 1):
            shown = sample(
                int(place - 1 == clicked),
                query=query,
                item_id=f"SKU-{item}",
                text=text(item),
                position=place,
                at=i * SECOND,
                offset=100 * i + place,
            )
            samples.append(msgspec.structs.replace(shown, list_id=f"list-{i}"))
        if draw.random() < 0.7:
            one, label = samples[-size + clicked], int(draw.random() < 0.5)
            changes = {"sample_id": f"b{i}", "task": PURCHASE, "label": label}
            bought = msgspec.structs.replace(one, **changes)
            samples.append(bought)
    return samples


def batches(number: int, *, seed: int = 0) -> list[list[Sample]]:
    """A stream in batches of four lists."""
    return [lists(4, seed=seed + i, start=4 * i) for i in range(number)]


def flipped(samples: Sequence[Sample]) -> list[Sample]:
    """The same with the opposite labels."""
    return [msgspec.structs.replace(s, label=1 - s.label) for s in samples]


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of every parameter."""
    return {name: p.detach().clone() for name, p in trainer.ranker.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Compare bit by bit."""
    equal = [torch.equal(values, second[name]) for name, values in first.items()]
    return first.keys() == second.keys() and all(equal)


def reader(files: dict[str, bytes]) -> Callable[[str], bytes]:
    """Files as `Trainer.restore` reads them."""
    return files.__getitem__


def published(trainer: Trainer, root: Path) -> Version:
    """Save the learner's state as a version of a store, and announce it."""
    checkpointer = owner(root)
    version = checkpointer.save(trainer.files(), cut(trainer.step_number))
    checkpointer.announce(version)
    return Store(root).version(version.name)
