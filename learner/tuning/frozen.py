"""A frozen encoder; only heads and query residuals move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learner.passes.forward import Ids, Passes
from learner.passes.pooling import Pool
from learner.tuning.tuning import frozen, id_rows, in_half_precision


class FrozenTuning:
    """The prefix of a text is its vector (D,)."""

    name = "frozen"
    keeps_prefix = True

    def __init__(self, model: Any, pool: Pool, passes: Passes) -> None:
        """Take the encoder."""
        self._model = model
        self._pool = pool
        self._passes = passes

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return none."""
        return []

    @property
    def entrance(self) -> None:
        """Return none."""
        return None

    def prefix(self, texts: Sequence[Ids]) -> list[Tensor]:
        """Return the vector (D,) of each text, in half precision."""
        with frozen(self._model):
            return in_half_precision(self._passes.vectors(self._model, id_rows(texts), self._pool))

    def finish(self, prefixes: Sequence[Tensor]) -> Tensor:
        """Normalise again, since half precision has rounded."""
        return nn.functional.normalize(torch.stack([prefix.float() for prefix in prefixes]), dim=-1)
