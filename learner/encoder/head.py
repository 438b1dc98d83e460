"""Head of a fine-tuned cross-encoder: the first token's state of a pair to one logit.

Legend: N pairs, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from learner.encoder import given_files
from learner.encoder.load import describe
from learner.encoder.token_types import separator_of
from learner.errors import ModelUnsupported
from learner.passes.packing import fitting

_HEAD = "ForSequenceClassification"


class _Family(NamedTuple):
    """Where transformers keeps the two linear maps of a head, and what is between them."""

    dense: str
    out: str
    activation: nn.Module


_ROBERTA = _Family("classifier.dense", "classifier.out_proj", nn.Tanh())
_FAMILIES: Mapping[str, _Family] = {
    "bert": _Family("bert.pooler.dense", "classifier", nn.Tanh()),
    "distilbert": _Family("pre_classifier", "classifier", nn.ReLU()),
    "electra": _Family("classifier.dense", "classifier.out_proj", nn.GELU()),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


class Head(nn.Module):
    """Logit of a pair: w' f(W x + b) + c, where x is the state of its first token.

    Attributes:
        kind: family of the model that it comes from, which says what f is.
        separator: token id that divides a pair, where the model has types of tokens.
    """

    def __init__(self, kind: str, width: int, *, separator: int | None = None) -> None:
        """Make a head without values."""
        super().__init__()
        self.kind = kind
        self.separator = separator
        self.dense: nn.Linear = nn.utils.skip_init(nn.Linear, width, width)  # type: ignore[no-untyped-call]
        self.out: nn.Linear = nn.utils.skip_init(nn.Linear, width, 1)  # type: ignore[no-untyped-call]
        self._activation = _FAMILIES[kind].activation

    def forward(self, states: Tensor) -> Tensor:
        """Return logits (N,) of states (N, D); a pair's bits are the same for any N."""
        number, width = states.shape
        missing = states.new_zeros(fitting(number, width) - number, width)
        hidden = self._activation(self.dense(torch.cat([states, missing])))
        logits: Tensor = (hidden * self.out.weight).sum(-1) + self.out.bias
        return logits[:number]


def kind_of(name: str, config: Any) -> str | None:
    """Return the kind of a model's fine-tuned head, None where it has none.

    Args:
        name: of the model, for errors.
        config: as transformers loads it.

    Raises:
        ModelUnsupported: it has a head that scores cannot start from.
    """
    heads = [each for each in config.architectures or () if each.endswith(_HEAD)]
    if not heads:
        return None
    refused = ""
    if config.model_type not in _FAMILIES:
        refused = f"expected a model of {', '.join(_FAMILIES)}"
    elif config.num_labels not in (1, 2):
        refused = "expected 1 output, or 2, of which the second says that the item fits"
    if refused:
        raise ModelUnsupported(
            f"learner.interaction: cross_encoder starts from the head of {name!r}, a {heads[0]} "
            f"({config.model_type}) with a fine-tuned head of {config.num_labels} output(s); "
            f"{refused}. To drop the head and train one per task from zero, save the encoder "
            "alone: AutoModel.from_pretrained(folder).save_pretrained(other)."
        )
    return str(config.model_type)


def load_head(name: str, model: Any, tokenizer: Any, *, download: bool = False) -> Head | None:
    """Load the head of a fine-tuned cross-encoder, None where a model has none.

    Of two outputs it gives the difference, which is the log odds of the second.

    Args:
        name: as in `LearnerConfig.model`.
        model: its encoder.
        tokenizer: of the model.
        download: whether it may be fetched from a model hub.

    Raises:
        ModelMissing: it cannot be loaded.
        ModelUnsupported: scores cannot start from its head, or values are missing.
    """
    described = describe(name, download=download)
    kind = kind_of(name, described.config)
    if kind is None:
        return None
    with given_files.reading(name, given_files.WEIGHTS):
        whole, report = AutoModelForSequenceClassification.from_pretrained(
            described.path,
            dtype=torch.float32,
            local_files_only=not download,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below
        )
    given_files.check_loaded(name, whole, report)
    given_files.check_finite(name, whole.named_parameters())
    family = _FAMILIES[kind]
    own = (f"{family.dense}.", f"{family.out}.")
    if missing := sorted(key for key in report["missing_keys"] if key.startswith(own)):
        raise ModelUnsupported(
            f"learner.model: {name!r}: config.json says that it has a fine-tuned head, but there "
            f"are no values for {missing[0]}. Name the folder that has them."
        )
    head = Head(kind, int(model.config.hidden_size), separator=separator_of(name, model, tokenizer))
    dense, out = whole.get_submodule(family.dense), whole.get_submodule(family.out)
    with torch.no_grad():
        head.dense.load_state_dict(dense.state_dict())
        for ours, theirs in ((head.out.weight, out.weight), (head.out.bias, out.bias)):
            ours.copy_(theirs if len(theirs) == 1 else theirs[1:] - theirs[:1])
    return head
