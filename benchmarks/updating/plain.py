"""The model as one would write it with transformers: padded texts, masked mean, linear head.

Legend: n texts, T tokens of the longest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from learner.encoder.load import load_pretrained

NUM_CLASSES = 2
LR = 2e-5
MAX_GRAD_NORM = 1.0


def pretrained() -> Any:
    """Return the default encoder, without dropout."""
    model = load_pretrained("minilm-l6").model
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def head(width: int) -> nn.Linear:
    """Return the head, the same one each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(width, NUM_CLASSES)


class PlainModel(nn.Module):
    """Logits (n, 2) of padded texts."""

    def __init__(self) -> None:
        """Start at the pretrained encoder."""
        super().__init__()
        self.encoder = pretrained()
        self.head = head(self.encoder.config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits (n, 2) from ids and mask (n, T)."""
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        real = attention_mask[:, :, None].to(output.last_hidden_state.dtype)
        mean = (output.last_hidden_state * real).sum(1) / real.sum(1)
        logits: Tensor = self.head(normalize(mean, dim=-1))
        return logits


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return 1/N sum w_i (cross-entropy)_i."""
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    return (losses * weights).sum() / len(labels)
