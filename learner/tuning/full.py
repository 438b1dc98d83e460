"""Full fine-tuning: every parameter of the encoder moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from learner.passes.forward import Ids, Passes
from learner.passes.pooling import Pool
from learner.tuning.tuning import id_rows


class FullTuning:
    """The prefix of a text is its token ids; nothing is kept."""

    name = "full"
    keeps_prefix = False

    def __init__(self, model: Any, pool: Pool, passes: Passes) -> None:
        """Take the encoder."""
        self._model = model
        self._pool = pool
        self._passes = passes

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return all parameters."""
        return list(self._model.parameters())

    @property
    def entrance(self) -> nn.Module:
        """Return the table of token embeddings."""
        table: nn.Module = self._model.get_input_embeddings()
        return table

    def prefix(self, texts: Sequence[Ids]) -> list[Tensor]:
        """Return token ids (T,) per text."""
        return id_rows(texts)

    def finish(self, prefixes: Sequence[Tensor]) -> Tensor:
        """Run the whole encoder."""
        return self._passes.vectors(self._model, prefixes, self._pool)
