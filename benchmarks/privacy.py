"""Cost of privacy in training: a step with a backward pass per list, beside the plain step.

``python -m benchmarks.privacy [--model M] [--tuning T] [--lists 32] [--rounds 5]``

Steps of invented lists of 10 items, plain and private in turn; CPU time of one thread, median of
the rounds. Also printed: the norms of the lists' gradients, of which `learner.privacy.max_norm`
wants to be the middle or less, and epsilon of noise multipliers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch

from learner.config import LearnerConfig
from learner.trainer import Trainer
from learner.training.budget import PrivacyConfig, epsilon
from weighting.config import WeigherConfig
from weighting.sample import CopyKind, Sample
from weighting.tasks import CLICK
from weighting.weigher import Weigher

_ITEMS = 10
_SECOND = 1_000_000
_WORDS = (
    "red blue green shoe lamp wool steel small grand oak silk chair table phone cover water proof "
    "light heavy garden kitchen winter summer men women kids sport office travel set pack case"
).split()


def lists(number: int, draw: np.random.Generator, start: int) -> list[Sample]:
    """Return the samples of shown lists, one item of each clicked."""
    found = []
    for i in range(start, start + number):
        query, clicked = " ".join(draw.choice(_WORDS, 3)), int(draw.integers(_ITEMS))
        for place in range(_ITEMS):
            found.append(
                Sample(
                    sample_id=f"{i}-{place}",
                    task=CLICK,
                    copy_kind=CopyKind.FIRST,
                    label=int(place == clicked),
                    list_id=f"list-{i}",
                    list_size=_ITEMS,
                    client=0,
                    query=query,
                    item_id="",
                    text=" ".join(draw.choice(_WORDS, 12)),
                    attributes={},
                    position=place + 1,
                    shown_us=i * _SECOND,
                    event_time_us=i * _SECOND,
                    elapsed_us=_SECOND,
                    delay_us=_SECOND if place == clicked else None,
                    window_us=_SECOND,
                    attribution_us=_SECOND,
                    inferred=False,
                    positions=(),
                )
            )
    return found


def norms(config: LearnerConfig, samples: Sequence[Sample]) -> list[float]:
    """Return the norm of each list's gradient at the start, without clipping."""
    trainer = Trainer(config, Weigher(WeigherConfig()))
    found = []
    for list_id in dict.fromkeys(s.list_id for s in samples):
        own = [s for s in samples if s.list_id == list_id]
        found.append(trainer.step(own).gradient_norm * len(own))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--tuning", default="top:1")
    parser.add_argument("--lists", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    plain = LearnerConfig(model=given.model, tuning=given.tuning, lr=1e-9, head_lr=1e-9)
    noisy = LearnerConfig(
        model=given.model,
        tuning=given.tuning,
        privacy=PrivacyConfig(noise_multiplier=1.0),
    )
    trainers = {name: Trainer(c, Weigher()) for name, c in (("plain", plain), ("private", noisy))}
    draw, seconds = np.random.default_rng(0), dict[str, list[float]](plain=[], private=[])
    for number in range(given.rounds + 1):
        samples = lists(given.lists, draw, number * given.lists)
        for name, trainer in trainers.items():
            began = time.process_time()
            trainer.step(samples)
            if number:  # the first warms caches
                seconds[name].append(time.process_time() - began)
    sizes = norms(plain, lists(50, draw, 10**6))
    moving = sum(p.numel() for p in trainers["plain"].ranker.encoder.trainable_parameters())
    ratios = [b / a for a, b in zip(seconds["plain"], seconds["private"], strict=True)]
    result = {
        "model": given.model,
        "tuning": given.tuning,
        "parameters": moving,
        "samples": given.lists * _ITEMS,
        "cpu_seconds": {name: round(statistics.median(s), 3) for name, s in seconds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "list_gradient_norm": [round(float(q), 2) for q in np.quantile(sizes, [0.1, 0.5, 0.9])],
        "epsilon_of_two_steps": {s: round(epsilon(s, 2, 1e-6), 2) for s in (1.0, 2.0, 4.0, 8.0)},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
