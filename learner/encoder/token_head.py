"""Token classifiers of transformers around a loaded encoder, their head one linear layer.

Legend: T tokens, D width, K labels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification

from learner.encoder.load import Pretrained
from learner.errors import ModelUnsupported

_PROBE_TOKENS = 5
_TOLERANCE = 1e-4


def token_classifier(name: str, pretrained: Pretrained, labels: Sequence[str]) -> Any:
    """Build the family's token classifier: the encoder's parameters, and a head of zeros.

    Args:
        name: of the encoder, for errors.
        pretrained: the encoder.
        labels: K names, in the order of the head's outputs.

    Raises:
        ModelUnsupported: the family has none, or its head is more than a linear layer.
    """
    config = copy.deepcopy(pretrained.model.config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: place for place, label in enumerate(labels)}
    try:
        with torch.random.fork_rng(devices=[]):
            make = AutoModelForTokenClassification.from_config
            model = make(config)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ModelUnsupported(
            f"learner.model: {name!r}: transformers has no token classifier of {config.model_type}"
        ) from error
    report = model.base_model.load_state_dict(pretrained.model.state_dict(), strict=False)
    if report.missing_keys:
        raise ModelUnsupported(
            f"learner.model: {name!r} has no values for {len(report.missing_keys)} tensors of a "
            f"token classifier, such as {report.missing_keys[0]}"
        )
    config.architectures = [type(model).__name__]
    model.float().eval()
    _check_head(name, model)
    return model


def head_of(model: Any) -> nn.Linear | None:
    """Return the layer (D, K) of a token classifier that gives its logits."""
    found = getattr(model, "classifier", None) or getattr(model, "score", None)
    return found if isinstance(found, nn.Linear) else None


def logits_of(model: Any, states: Tensor) -> Tensor:
    """Return logits (T, K) of the encoder's last states (T, D)."""
    head, dropout = head_of(model), getattr(model, "dropout", None)
    assert head is not None
    logits: Tensor = head(dropout(states) if isinstance(dropout, nn.Dropout) else states)
    return logits


@torch.no_grad()
def _check_head(name: str, model: Any) -> None:
    """Compare `logits_of` with the model's own logits, then set the head to zero."""
    head = head_of(model)
    if head is not None:
        head.weight.copy_(torch.arange(head.weight.numel()).sin().view_as(head.weight))
        ids = torch.arange(_PROBE_TOKENS)[None] + min(7, model.config.vocab_size - _PROBE_TOKENS)
        mask = torch.ones_like(ids)
        own = model(input_ids=ids, attention_mask=mask).logits[0]
        states = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[0]
        ours = logits_of(model, states)
        if bool((own - ours).abs().max() <= _TOLERANCE * own.abs().max()):
            for parameter in head.parameters():
                parameter.zero_()
            return
    raise ModelUnsupported(
        f"learner.model: {name!r}: the head of {type(model).__name__} is more than one linear "
        "layer; take an encoder such as BERT, RoBERTa, ELECTRA, DeBERTa or DistilBERT"
    )
