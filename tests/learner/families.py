"""Small random encoders of many families, saved as folders as other tools leave them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    DebertaConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LongformerConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
    XLNetConfig,
)

from learner.encoder.tokens import letter_tokenizer

_SHAPE: dict[str, Any] = {
    "vocab_size": len(letter_tokenizer()),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.3,  # large enough that a wrong mask or a lost bias shows
}
_DISTIL: dict[str, Any] = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 64,
    "initializer_range": 0.3,
}
_RELATIVE: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
_CONVOLUTION: dict[str, Any] = {"conv_kernel_size": 3}


def bert(**changes: Any) -> BertConfig:
    return BertConfig(**{**_SHAPE, **changes})


def roberta(**changes: Any) -> RobertaConfig:
    return RobertaConfig(**{**_SHAPE, "pad_token_id": 1, **changes})


def gpt2(**changes: Any) -> GPT2Config:
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2Config(**{"vocab_size": _SHAPE["vocab_size"], **shape, **changes})


WITHOUT_SDPA: Mapping[str, PretrainedConfig] = {
    "mpnet": MPNetConfig(**_SHAPE),
    "deberta": DebertaConfig(**_SHAPE, **_RELATIVE),
    "deberta-v2": DebertaV2Config(**_SHAPE, **_RELATIVE, position_biased_input=False),
    "deberta-v2-conv": DebertaV2Config(**_SHAPE, **_RELATIVE, **_CONVOLUTION),
    "longformer": LongformerConfig(**_SHAPE, attention_window=16),
    "xlnet": XLNetConfig(
        vocab_size=_SHAPE["vocab_size"], d_model=32, n_layer=2, n_head=2, d_inner=64
    ),
}
WITH_SDPA: Mapping[str, PretrainedConfig] = {
    "bert": bert(),
    "bert-decoder": bert(is_decoder=True),
    "roberta": roberta(),
    "electra": ElectraConfig(**_SHAPE, embedding_size=16),
    "xlm-roberta": XLMRobertaConfig(**_SHAPE, pad_token_id=1),
    "distilbert": DistilBertConfig(vocab_size=_SHAPE["vocab_size"], **_DISTIL),
    "albert": AlbertConfig(**_SHAPE, embedding_size=16),
    "modernbert": ModernBertConfig(**_SHAPE, pad_token_id=0, local_attention=8),
}


def plain_tokenizer() -> Any:
    """A tokenizer over letters that adds no special token and pads with none."""
    ids = letter_tokenizer().get_vocab()
    vocabulary = {token: i for i, token in enumerate(sorted(ids, key=lambda token: ids[token]))}
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw)  # type: ignore[no-untyped-call]


def saved(
    folder: Path,
    config: PretrainedConfig,
    *,
    model_class: Any = AutoModel,
    dtype: torch.dtype = torch.float32,
    tokenizer: Any = None,
) -> Path:
    """Save an untrained model, the same one each time, and its tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build = model_class.from_config if model_class is AutoModel else model_class
        model = build(config).to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(folder)
    (tokenizer or letter_tokenizer()).save_pretrained(folder)
    return folder
