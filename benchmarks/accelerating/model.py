"""The update that is measured: a BERT without dropout, a linear head, a weighted loss.

Legend: L layers of width D, t tokens of a text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertModel

from benchmarks.updating import plain
from learner.encoder.encoder import Encoder
from learner.passes.device import moved
from learner.training.adamw import AdamW, Group

MEAN_TOKENS, MOST_TOKENS, _SIGMA = 48, 128, 0.6


class Shape(NamedTuple):
    """Layers and width of a BERT, with heads of 64 numbers."""

    layers: int
    width: int

    def flop(self, lengths: Sequence[int]) -> float:
        """Floating-point operations of a training step: 72 L D^2 + 12 L t D for each token.

        Forward and backward products of real tokens (Narayanan et al., SC 2021, without
        recomputation and vocabulary).
        """
        width, layers = self.width, self.layers
        return float(sum(t * (72 * layers * width**2 + 12 * layers * t * width) for t in lengths))


BASE, SMALL = Shape(12, 768), Shape(2, 128)


class Batch(NamedTuple):
    """Texts of one step.

    Attributes:
        ids: (t,) token ids of each.
        labels: int64, 0 or 1.
        weights: about 1.
    """

    ids: list[NDArray[np.int64]]
    labels: Tensor
    weights: Tensor

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        return [len(own) for own in self.ids]


def ragged(num_tokens: int, *, seed: int) -> Batch:
    """Draw texts of log-normal lengths, mean 48 and at most 128, of about so many tokens."""
    draw = np.random.default_rng(seed)
    lengths: list[int] = []
    while sum(lengths) < num_tokens:
        drawn = draw.lognormal(np.log(MEAN_TOKENS) - _SIGMA**2 / 2, _SIGMA)
        lengths.append(int(np.clip(round(drawn), 3, MOST_TOKENS)))
    lengths[-1] = max(1, lengths[-1] - (sum(lengths) - num_tokens))
    return _batch(lengths, draw)


def equal(number: int, length: int, *, seed: int) -> Batch:
    """Draw so many texts of one length."""
    return _batch([length] * number, np.random.default_rng(seed))


def _batch(lengths: Iterable[int], draw: np.random.Generator) -> Batch:
    ids = [draw.integers(1_000, 30_000, length) for length in lengths]
    return Batch(
        ids,
        torch.from_numpy((draw.random(len(ids)) < 0.3).astype(np.int64)),
        torch.from_numpy(draw.lognormal(-0.125, 0.5, len(ids)).astype(np.float32)),
    )


def bert(shape: Shape, device: str) -> Any:
    """Return an untrained BERT, the same one each time."""
    config = BertConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=max(1, shape.width // 64),
        intermediate_size=4 * shape.width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = BertModel(config, add_pooling_layer=False)
        return model.to(device)


def weighted_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Return 1/N sum w_i (cross-entropy)_i."""
    device = logits.device
    labels, weights = (moved(own, device) for own in (batch.labels, batch.weights))
    return plain.weighted_loss(logits, labels, weights)


class Ours:
    """Steelyard's encoder and optimiser."""

    def __init__(self, shape: Shape, device: str, batch_size: int, **options: Any) -> None:
        """Start at the untrained BERT; `options` are the encoder's."""
        self.encoder = Encoder(bert(shape, device), **{"tuning": "full", **options})
        self.head = plain.head(shape.width).to(device)
        self.moving = [*self.encoder.trainable_parameters(), *self.head.parameters()]
        self._rule = AdamW([Group(parameters=self.moving, lr=plain.LR)], batch_size)

    def step(self, batch: Batch) -> Tensor:
        """Take a step; return the loss before it, on the device."""
        self._rule.zero_grad()
        loss = weighted_loss(self.head(self.encoder(batch.ids)), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.moving, plain.MAX_GRAD_NORM)
        self._rule.step(len(batch.ids))
        return loss.detach()


class Plain:
    """What one writes with transformers: padded texts, autocast, fused AdamW, mean of tokens."""

    def __init__(self, shape: Shape, device: str, *, lowered: bool) -> None:
        """Start at the untrained BERT."""
        self._model, self._head = bert(shape, device), plain.head(shape.width).to(device)
        self.moving = [*self._model.parameters(), *self._head.parameters()]
        self._rule = torch.optim.AdamW(self.moving, lr=plain.LR, weight_decay=0.0, fused=True)
        self._device, self._lowered = torch.device(device), lowered

    def step(self, batch: Batch) -> Tensor:
        """Take a step; return the loss before it, on the device."""
        self._rule.zero_grad()
        rows = [torch.from_numpy(own) for own in batch.ids]
        ids = pad_sequence(rows, batch_first=True)
        mask = pad_sequence([torch.ones_like(own) for own in rows], batch_first=True)
        if self._device.type == "cuda":
            ids, mask = ids.pin_memory(), mask.pin_memory()
        ids, mask = (own.to(self._device, non_blocking=True) for own in (ids, mask))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._lowered):
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        real = mask[:, :, None].float()
        vectors = normalize((hidden * real).sum(1) / real.sum(1), dim=-1)
        loss = weighted_loss(self._head(vectors), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.moving, plain.MAX_GRAD_NORM)
        self._rule.step()
        return loss.detach()
