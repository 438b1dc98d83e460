"""The product's own pipeline over a stream of lists: samples, weigher, trainer, served score.

A list a second of event time. Every clicked item with a known purchase label is a sample of the
purchase task; labels are final, so no delay correction acts. A batch closes at the first list with
`learner.batch_size` samples, as in the consumers' pipeline. Judging loads the version that would be
published.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.learning_data.dataset import Item, ShownList
from benchmarks.learning_judging.zero_shot import Embedder
from deploy.fitting import samples
from deploy.fitting.examples import Examples
from deploy.settings.tree import Settings
from learner.request import Document, Scorer, ScoringInput
from learner.scorer import load_scorer
from learner.trainer import Trainer
from weighting.sample import Sample
from weighting.weigher import Weigher

_SECOND_US = 1_000_000


def samples_of(shown: ShownList, number: int, items: Mapping[str, Item]) -> list[Sample]:
    """Return the samples of a list as the join makes them, number `number` of the stream."""
    own = Examples(
        id=shown.id,
        query=shown.query,
        time_us=number * _SECOND_US,
        rows=[(number << 20) + index for index in range(len(shown.items))],
        items=list(shown.items),
        texts=[items[item].text for item in shown.items],
        attributes=[dict(items[item].attributes) for item in shown.items],
        positions=list(shown.positions),
        labels=[int(clicked) for clicked in shown.clicked],
        weights=[1.0] * len(shown.items),
        bought=list(shown.purchased),
    )
    return samples.samples_of(own, "lists")[0]


@dataclass(slots=True)
class Cost:
    """What learning took.

    Attributes:
        num_samples: learned.
        seconds: by the clock, of samples and steps.
        cpu_seconds: of this process, in the same time.
        encoder_cpu_seconds: forward and backward passes of the encoder among them.
    """

    num_samples: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    encoder_cpu_seconds: float = 0.0


class Learner:
    """A trainer with the product's settings, and what its learning cost."""

    def __init__(self, settings: Settings, items: Mapping[str, Item]) -> None:
        """Start untrained."""
        self._items = items
        self._settings = settings
        self.trainer = Trainer(settings.learner, Weigher(settings.weighting))
        self.cost = Cost()

    def learn(self, lists: Sequence[ShownList], *, earlier: int = 0) -> None:
        """Learn a stream in one pass, from its start, or after so many earlier lists."""
        pending: list[Sample] = []
        with self._measured():
            for number, shown in enumerate(lists, 1):
                pending += samples_of(shown, earlier + number, self._items)
                if len(pending) >= self._settings.learner.batch_size or number == len(lists):
                    self.trainer.step(pending)
                    self.cost.num_samples += len(pending)
                    pending = []

    def encoder(self) -> Embedder:
        """Return the encoder as it is now."""
        ranker = self.trainer.ranker
        return Embedder(ranker.encoder, ranker.texts)

    @contextmanager
    def scorer(self) -> Iterator[ServedScores]:
        """Load the version that would be published now, as serving does."""
        with tempfile.TemporaryDirectory() as folder:
            for name, data in self.trainer.files().items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            threads = self._settings.learner.threads
            yield ServedScores(load_scorer(Path(folder), "now", threads=threads), self._items)

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Add the time inside to the cost; that in the encoder by hooks around its passes."""
        encoder_seconds = _Stopwatch()
        encoder = self.trainer.ranker.encoder
        hooks = [
            encoder.register_forward_pre_hook(encoder_seconds.start),
            encoder.register_forward_hook(encoder_seconds.stop),
        ]
        backward = torch.Tensor.backward

        def timed(*args: Any, **kwargs: Any) -> None:
            encoder_seconds.start()
            backward(*args, **kwargs)  # type: ignore[no-untyped-call]
            encoder_seconds.stop()

        began, cpu_began = time.perf_counter(), time.process_time()
        torch.Tensor.backward = timed  # type: ignore[method-assign]
        try:
            yield
        finally:
            torch.Tensor.backward = backward  # type: ignore[method-assign]
            for hook in hooks:
                hook.remove()
            self.cost.seconds += time.perf_counter() - began
            self.cost.cpu_seconds += time.process_time() - cpu_began
            self.cost.encoder_cpu_seconds += encoder_seconds.total


class _Stopwatch:
    """CPU seconds of this process between `start` and `stop`, summed up."""

    def __init__(self) -> None:
        self.total = 0.0
        self._began = 0.0

    def start(self, *_: Any) -> None:
        self._began = time.process_time()

    def stop(self, *_: Any) -> None:
        self.total += time.process_time() - self._began


class ServedScores:
    """The score that serving would sort by."""

    def __init__(self, scorer: Scorer, items: Mapping[str, Item]) -> None:
        """Take a loaded version."""
        self._scorer = scorer
        self._items = items

    def scores(self, query: str, items: Sequence[str]) -> NDArray[np.float64]:
        """Return the scores (n,) of n items under a query."""
        documents = tuple(
            Document(id=item, text=own.text, attributes=dict(own.attributes))
            for item in items
            if (own := self._items[item])
        )
        return self._scorer.score([ScoringInput(query=query, documents=documents)])[0].score
