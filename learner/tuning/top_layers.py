"""Fine-tuning of the last N layers of an encoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learner.errors import TuningUnsupported
from learner.passes.forward import Ids, Passes, texts_of
from learner.passes.lower_layers import shallow
from learner.passes.pooling import Pool
from learner.tuning.tuning import frozen, id_rows, in_half_precision

_PATHS = ("encoder.layer", "layers", "h")
"""Where transformers keeps the layers of a model."""


class TopLayersTuning:
    """The prefix of a text is its hidden states below the layers that move."""

    keeps_prefix = True

    def __init__(
        self, model: Any, pool: Pool, passes: Passes, num_layers: int, *, name: str = ""
    ) -> None:
        """Find the last `num_layers` layers; the tuning is ``top:N`` if no other name is given.

        Raises:
            TuningUnsupported: they cannot be reached one by one, or there are fewer.
        """
        self.name = name or f"top:{num_layers}"
        self._model = model
        self._pool = pool
        self._passes = passes
        path, layers = layers_of(model)
        if not layers:
            raise TuningUnsupported(
                f"learner.tuning: {self.name} needs a model with one of {', '.join(_PATHS)}; "
                f"{type(model).__name__} has none; use full or frozen"
            )
        if num_layers > len(layers):
            raise TuningUnsupported(
                f"learner.tuning: got {self.name}, the encoder has {len(layers)} layers"
            )
        self._top = layers[len(layers) - num_layers :]
        whole = num_layers == len(layers)
        self._upper: nn.Module = (
            _upper_part(model, self._top, whole=whole)
            if path == _PATHS[0]
            else _Stack(model, path, self._top)
        )

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the last N layers."""
        return list(self._top.parameters())

    @property
    def entrance(self) -> nn.Module:
        """Return what hands the hidden states to the last N layers."""
        return self._upper.get_submodule("embeddings")

    def prefix(self, texts: Sequence[Ids]) -> list[Tensor]:
        """Return hidden states (T, D) per text, in half precision, padding removed."""
        with frozen(self._model):
            blocks = self._passes.run(self._model, id_rows(texts), layer=-1 - len(self._top))
        return in_half_precision(texts_of(blocks))

    def finish(self, prefixes: Sequence[Tensor]) -> Tensor:
        """Run the last N layers."""
        hidden = [prefix.float() for prefix in prefixes]
        return self._passes.vectors(self._upper, hidden, self._pool)


def layers_of(model: Any) -> tuple[str, nn.ModuleList]:
    """Return the path of a model's layers, and the layers; none where they cannot be reached.

    BERT and its relatives have an encoder in them, Llama's ``layers`` and GPT-2's ``h`` are the
    model's own.
    """
    for path in _PATHS:
        layers: Any = model
        for name in path.split("."):
            layers = getattr(layers, name, None)
        if isinstance(layers, nn.ModuleList):
            return path, layers
    return "", nn.ModuleList()


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
    upper, encoder = shallow(model), shallow(model.encoder)
    encoder._modules["layer"] = top
    if not whole:
        encoder._modules["conv"] = None  # of DeBERTa, beside its first layer
    upper._modules["encoder"] = encoder
    upper._modules["embeddings"] = _Given(int(model.config.hidden_size))
    upper._modules.pop("embeddings_project", None)  # of ELECTRA
    return upper


class _Stack(nn.Module):
    """The top layers alone of a model that holds its layers itself; it shares all parameters.

    Masks, rotations and the last normalisation stay the model's own business. Embeddings of
    positions are in the hidden states already.
    """

    makes_masks = True
    """Whether it makes the masks of its layers, of real tokens, from hidden states too."""

    def __init__(self, model: Any, path: str, top: nn.ModuleList) -> None:
        super().__init__()
        self.embeddings = nn.Identity()
        upper: Any = shallow(model)
        upper._modules[path] = top
        if "drop" in model._modules:  # of GPT-2, once, above the embeddings
            upper._modules["drop"] = nn.Identity()
        if "wpe" in model._modules:
            upper._modules["wpe"] = _NoPositions()
        if "embeddings" in model._modules:  # of ModernBERT
            upper._modules["embeddings"] = _Given(int(model.config.hidden_size))
        upper.config = copy.copy(model.config)
        upper.config.num_hidden_layers = len(top)
        upper.config.use_cache = False  # its places are those of all layers
        if kinds := getattr(model.config, "layer_types", None):
            upper.config.layer_types = kinds[len(kinds) - len(top) :]
        self.upper = upper
        self.config: Any = upper.config

    def forward(self, *, inputs_embeds: Tensor, **others: Any) -> Any:
        """Run the layers on hidden states."""
        return self.upper(inputs_embeds=self.embeddings(inputs_embeds), **others)


class _NoPositions(nn.Module):
    """Embeddings of positions that add nothing."""

    def forward(self, position_ids: Tensor) -> Tensor:
        return torch.zeros(*position_ids.shape, 1, device=position_ids.device)
