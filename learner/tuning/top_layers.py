"""Fine-tuning of the last N layers of an encoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learner.encoder.passes import Passes, texts_of
from learner.encoder.pooling import Pool
from learner.encoder.tokens import Ids
from learner.errors import TuningUnsupported
from learner.tuning.tuning import frozen, id_rows, in_half_precision


class TopLayersTuning:
    """The prefix of a text is its hidden states below the layers that move."""

    keeps_prefix = True

    def __init__(self, model: Any, pool: Pool, passes: Passes, num_layers: int) -> None:
        """Find the last `num_layers` layers.

        Raises:
            TuningUnsupported: they cannot be reached one by one, or there are fewer.
        """
        self.name = f"top:{num_layers}"
        self._model = model
        self._pool = pool
        self._passes = passes
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
        self._upper = _upper_part(model, self._top, whole=num_layers == len(layers))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the last N layers."""
        return list(self._top.parameters())

    @property
    def entrance(self) -> nn.Module:
        """Return what hands the hidden states to the last N layers."""
        given: nn.Module = self._upper._modules["embeddings"]
        return given

    def prefix(self, texts: Sequence[Ids]) -> list[Tensor]:
        """Return hidden states (T, D) per text, in half precision, padding removed."""
        with frozen(self._model):
            blocks = self._passes.run(self._model, id_rows(texts), layer=-1 - len(self._top))
        return in_half_precision(texts_of(blocks))

    def finish(self, prefixes: Sequence[Tensor]) -> Tensor:
        """Run the last N layers."""
        hidden = [prefix.float() for prefix in prefixes]
        return self._passes.vectors(self._upper, hidden, self._pool)


class _Given(nn.Module):
    """Embeddings that are hidden states already; zeros for tokens that a model adds as padding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width

    def forward(
        self, input_ids: Tensor | None = None, *, inputs_embeds: Tensor | None = None, **_: Any
    ) -> Tensor:
        if inputs_embeds is not None:
            return inputs_embeds
        assert input_ids is not None
        return torch.zeros(*input_ids.shape, self._width, device=input_ids.device)


def _upper_part(model: Any, top: nn.ModuleList, *, whole: bool) -> Any:
    """Return the model with its top layers alone, which share their parameters with it.

    Masks, relative positions and what follows the layers stay the model's own business.
    """
    upper, encoder = _shallow(model), _shallow(model.encoder)
    encoder._modules["layer"] = top
    if not whole:
        encoder._modules["conv"] = None  # of DeBERTa, beside its first layer
    upper._modules["encoder"] = encoder
    upper._modules["embeddings"] = _Given(int(model.config.hidden_size))
    upper._modules.pop("embeddings_project", None)  # of ELECTRA
    return upper


def _shallow(module: nn.Module) -> nn.Module:
    """Return a module of its own with the same children."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
