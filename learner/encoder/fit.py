"""Fit of an encoder to the settings, seen from its configuration before any weight is read."""

from __future__ import annotations

from typing import Any

from torch import nn

from learner.config import CROSS_ENCODER, LearnerConfig
from learner.encoder.head import kind_of
from learner.encoder.load import MEAN, describe, skeleton
from learner.errors import ModelUnsupported, TuningUnsupported
from learner.passes.device import check_device
from learner.passes.padding import LENGTH_STEP, Padded, padded_length
from learner.passes.pooling import POOLINGS
from learner.tuning import registry
from learner.tuning.frozen import FrozenTuning

_POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions")


def check_fit(config: LearnerConfig) -> None:
    """Refuse a device, model or setting that training would fail with later.

    Raises:
        DeviceMissing: `config.device` cannot be used here.
        ModelMissing: there is no such model.
        ModelUnsupported: it has an architecture, a head or a length that does not fit.
        TuningUnsupported: `config.tuning` does not fit it.
    """
    check_device(config.device)
    found = describe(config.model, download=config.download)
    _check_head(config, found.config)
    model = skeleton(config.model, found.config)
    _check_positions(config, model)
    registry.named(config.tuning, model, POOLINGS[found.pooling or MEAN], Padded())


def _check_head(config: LearnerConfig, model: Any) -> None:
    """Refuse a fine-tuned head that scores of pairs cannot start from."""
    if config.interaction != CROSS_ENCODER or kind_of(config.model, model) is None:
        return
    if config.tuning == FrozenTuning.name:
        raise TuningUnsupported(
            f"learner.tuning: got frozen, which keeps unit vectors of texts, and the fine-tuned "
            f"head of {config.model!r} reads states before they are made one; use top:N, full, "
            "lora:R or ia3"
        )


def _check_positions(config: LearnerConfig, model: Any) -> None:
    """Refuse texts longer than the table of positions; relative positions have none."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith(_POSITION_TABLES):
            room = module.num_embeddings - _offset(module)
            if padded_length(config.max_tokens) > room:
                raise ModelUnsupported(
                    f"learner.max_tokens: got {config.max_tokens}, {config.model!r} has positions "
                    f"for {room // LENGTH_STEP * LENGTH_STEP} tokens"
                )


def _offset(table: nn.Embedding) -> int:
    """Return the number of rows that stand for no position."""
    if table.padding_idx is not None:  # RoBERTa counts from there
        return table.padding_idx + 1
    return int(getattr(table, "offset", 0))
