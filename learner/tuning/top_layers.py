"""Fine-tuning of the last N layers of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from learner.encoder.padding import pad
from learner.encoder.pooling import Pool
from learner.encoder.tokens import Ids
from learner.errors import TuningUnsupported
from learner.tuning.tuning import frozen, id_rows, in_half_precision, padded_ids


class TopLayersTuning:
    """The prefix of a text is its hidden states below the layers that move."""

    keeps_prefix = True

    def __init__(self, model: Any, pool: Pool, num_layers: int) -> None:
        """Find the last `num_layers` layers.

        Raises:
            TuningUnsupported: they cannot be reached one by one, or there are fewer.
        """
        self.name = f"top:{num_layers}"
        self._model = model
        self._pool = pool
        layers = getattr(getattr(model, "encoder", None), "layer", None)
        if not isinstance(layers, nn.ModuleList):
            raise TuningUnsupported(
                f"learner.tuning: {self.name} needs an encoder with encoder.layer, "
                f"{type(model).__name__} has none; use full or frozen"
            )
        if num_layers > len(layers):
            raise TuningUnsupported(
                f"learner.tuning: got {self.name}, the encoder has {len(layers)} layers"
            )
        self._top = layers[len(layers) - num_layers :]

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the last N layers."""
        return list(self._top.parameters())

    def prefix(self, texts: Sequence[Ids]) -> list[Tensor]:
        """Return hidden states (T, D) per text, in half precision, padding removed."""
        rows = id_rows(texts)
        ids, mask = padded_ids(self._model, rows)
        with frozen(self._model):
            output = self._model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        states = output.hidden_states
        hidden = states[len(states) - 1 - len(self._top)]
        return in_half_precision(hidden[i, : len(row)] for i, row in enumerate(rows))

    def finish(self, prefixes: Sequence[Tensor]) -> Tensor:
        """Run the last N layers."""
        hidden, mask = pad([prefix.float() for prefix in prefixes])
        attend = mask[:, None, None, :].bool()
        for layer in self._top:
            output = layer(hidden, attend)
            hidden = output[0] if isinstance(output, tuple) else output
        return self._pool(hidden, mask)
