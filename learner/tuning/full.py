"""Full fine-tuning: every parameter of the encoder moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from learner.encoder.pooling import Pool
from learner.encoder.tokens import Ids
from learner.tuning.tuning import id_rows, padded_ids


class FullTuning:
    """The prefix of a text is its token ids; nothing is kept."""

    name = "full"
    keeps_prefix = False

    def __init__(self, model: Any, pool: Pool) -> None:
        """Take the encoder."""
        self._model = model
        self._pool = pool

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return all parameters."""
        return list(self._model.parameters())

    def prefix(self, texts: Sequence[Ids]) -> list[Tensor]:
        """Return token ids (T,) per text."""
        return id_rows(texts)

    def finish(self, prefixes: Sequence[Tensor]) -> Tensor:
        """Run the whole encoder."""
        ids, mask = padded_ids(self._model, prefixes)
        output = self._model(input_ids=ids, attention_mask=mask)
        return self._pool(output.last_hidden_state, mask)
