"""The update by Steelyard's own encoder and optimizer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from benchmarks.updating import plain
from benchmarks.updating.texts import Text
from learner import arithmetic
from learner.encoder.encoder import Encoder
from learner.training.adamw import AdamW, Group


class Steelyard:
    """Packed passes, and AdamW whose steps are measured in samples."""

    def __init__(self, batch_size: int, threads: int, *, precision: str = "float32") -> None:
        """Start at the pretrained encoder, all of which moves."""
        arithmetic.use(threads)
        self._encoder = Encoder(plain.pretrained(), tuning="full", precision=precision)
        self._head = plain.head(self._encoder.width)
        moving = [*self._encoder.trainable_parameters(), *self._head.parameters()]
        self._moving = [p for p in moving if not self._is_unused(p)]
        self._optimizer = AdamW([Group(parameters=self._moving, lr=plain.LR)], batch_size)
        self.seconds: dict[str, float] = {}

    def _is_unused(self, parameter: torch.nn.Parameter) -> bool:
        """Tell whether a parameter is the pooler's, which has no part in a mean."""
        pooler = getattr(self._encoder.model, "pooler", None)
        return pooler is not None and any(parameter is own for own in pooler.parameters())

    def round(self, batches: Sequence[Sequence[Text]], number: int) -> list[float]:
        """Take a step per batch; return their losses."""
        return [float(loss) for loss in [self._step(batch) for batch in batches]]

    def _step(self, batch: Sequence[Text]) -> torch.Tensor:
        self._optimizer.zero_grad()
        labels = torch.tensor([text.label for text in batch])
        weights = torch.tensor([text.weight for text in batch])
        with self._timed("forward"):
            vectors = self._encoder([text.ids for text in batch])
            loss = plain.weighted_loss(self._head(vectors), labels, weights)
        with self._timed("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        with self._timed("clip"):
            torch.nn.utils.clip_grad_norm_(self._moving, plain.MAX_GRAD_NORM)
        with self._timed("optimizer"):
            self._optimizer.step(len(batch))
        return loss.detach()

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.process_time() - start
