"""Fit of an encoder to the settings, seen from its configuration before any weight is read."""

from __future__ import annotations

from typing import Any

from torch import nn

from learner.config import LearnerConfig
from learner.encoder.device import check_device
from learner.encoder.load import MEAN, describe, skeleton
from learner.encoder.padding import LENGTH_STEP, Padded, padded_length
from learner.encoder.pooling import POOLINGS
from learner.errors import ModelUnsupported
from learner.ranker import CROSS_ENCODER
from learner.tuning import registry

_HEAD = "ForSequenceClassification"
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
    """Refuse a fine-tuned cross-encoder, whose head would be lost."""
    heads = [name for name in model.architectures or () if name.endswith(_HEAD)]
    if heads and config.interaction == CROSS_ENCODER:
        raise ModelUnsupported(
            f"learner.interaction: cross_encoder trains heads of its own, one per task, from zero. "
            f"{config.model!r} is a {heads[0]} with a fine-tuned head of {model.num_labels} "
            "output(s), which would be lost. Name an encoder without one; to drop it on purpose, "
            "save the encoder alone: AutoModel.from_pretrained(folder).save_pretrained(other)."
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
