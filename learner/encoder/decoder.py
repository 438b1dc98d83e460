"""Decoder-only models as encoders: found by what they do, and their texts ended by a token.

In a causal model a token sees those before it alone, so only the last has seen the whole text. It
should be the same token for all texts, as in E5-Mistral (Wang et al., ACL 2024), and not the last
piece of whatever word comes last: tokenizers of decoders add no such token by themselves.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import torch

log = logging.getLogger("steelyard.learner")

_PROBE = ((1, 2, 3), (1, 4, 5))
"""Places in the vocabulary, in fifths, of two texts that begin alike."""


_BARE: Mapping[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "WordLevel", "vocab": {}, "unk_token": ""},
}
"""File of a tokenizer with nothing in it: a post-processor is read as part of one."""


@torch.no_grad()
def is_causal(model: Any) -> bool:
    """Return whether a first token's state is the same whatever comes after it."""
    number = model.get_input_embeddings().num_embeddings
    ids = torch.tensor(_PROBE) * max(1, number // 6) % number
    one, other = (model(input_ids=row[None]).last_hidden_state[0, 0] for row in ids)
    return torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def end_texts(tokenizer: Any, config: Any) -> None:
    """Let a tokenizer add its end-of-text token to each text, also each of a pair.

    A tokenizer that adds a token there already stays as it is. The token is part of the
    tokenizer's own file from here on, and truncation leaves room for it.

    Args:
        tokenizer: changed in place.
        config: of the model, which may name the token where the tokenizer does not.
    """
    if tokenizer.encode("a")[-1:] != tokenizer.encode("a", add_special_tokens=False)[-1:]:
        return
    token = _end(tokenizer, config)
    if token is None:
        log.info("no end-of-text token", extra={"tokenizer": type(tokenizer).__name__})
        return
    tokenizer.eos_token = token
    raw = tokenizer.backend_tokenizer
    written = json.loads(raw.to_str())["post_processor"]
    added = {"id": token, "ids": [raw.token_to_id(token)], "tokens": [token]}
    bare = {**_BARE, "post_processor": _ended(written, added)}
    raw.post_processor = type(raw).from_str(json.dumps(bare)).post_processor


def _end(tokenizer: Any, config: Any) -> str | None:
    """Return the end-of-text token that tokenizer or model name, None if neither does.

    An ordinary token is none: as a special one it would be found inside texts.
    """
    if tokenizer.eos_token is not None:
        return str(tokenizer.eos_token)
    named = getattr(config, "eos_token_id", None)
    ids = named if isinstance(named, list) else [named]
    known = tokenizer.added_tokens_decoder
    return next((str(known[i]) for i in ids if i in known and known[i].special), None)


def _ended(processor: Mapping[str, Any] | None, added: Mapping[str, Any]) -> dict[str, Any]:
    """Return a post-processor, as its file writes it, that ends each text with a token."""
    end = {"SpecialToken": {"id": added["id"], "type_id": 0}}
    if processor is None or processor["type"] not in ("TemplateProcessing", "Sequence"):
        first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
        template = {
            "type": "TemplateProcessing",
            "single": [first, end],
            "pair": [first, end, second, end],
            "special_tokens": {added["id"]: added},
        }
        if processor is None:
            return template
        return {"type": "Sequence", "processors": [processor, template]}
    if processor["type"] == "Sequence":
        before, last = processor["processors"][:-1], processor["processors"][-1]
        ended = _ended(last, added)
        parts = ended["processors"] if ended["type"] == "Sequence" else [ended]
        return {"type": "Sequence", "processors": [*before, *parts]}
    return {
        **processor,
        "single": _with_ends(processor["single"], end),
        "pair": _with_ends(processor["pair"], end),
        "special_tokens": {**processor["special_tokens"], added["id"]: added},
    }


def _with_ends(pieces: list[dict[str, Any]], end: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a template with an end after each text."""
    ended = []
    for piece in pieces:
        ended.append(piece)
        if "Sequence" in piece:
            token = {**end["SpecialToken"], "type_id": piece["Sequence"]["type_id"]}
            ended.append({"SpecialToken": token})
    return ended
