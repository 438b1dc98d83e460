"""Token types of pairs: 0 up to the first separator of a text, 1 behind it, as BERT was trained.

They follow from the ids, so one text alone has type 0 throughout, as a model that is given none
takes it. A separator that is written out in a query ends the first part early.

Legend: n texts of a pass, T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from learner.errors import ModelUnsupported
from learner.passes.captures import OnDevice

log = logging.getLogger("steelyard.learner")


def token_types(ids: Tensor, separator: int, positions: Tensor | None = None) -> Tensor:
    """Return the types (n, T) of ids (n, T).

    Args:
        ids: of one text in each row, or of packed texts.
        separator: its token id.
        positions: (1, T) of the tokens in their own texts, where those are packed.
    """
    found = (ids == separator).long()
    before = found.cumsum(-1) - found
    if positions is not None:
        places = torch.arange(ids.shape[-1], device=ids.device)
        starts = torch.where(positions == positions.min(), places, 0).cummax(-1).values
        before = before - before.gather(-1, starts.expand_as(before))
    return before.clamp(max=1)


def separator_of(name: str, model: Any, tokenizer: Any) -> int | None:
    """Return the separator that types follow from, None where all tokens have one type.

    A model that has more types is given those that its own tokenizer gives.

    Raises:
        ModelUnsupported: the tokenizer's types follow from something else.
    """
    table = getattr(getattr(model, "embeddings", None), "token_type_embeddings", None)
    if table is None or table.num_embeddings < 2:
        return None
    encoded = tokenizer("a", "b")
    given = encoded.get("token_type_ids")
    if not given or not any(given):
        log.info("pairs have one type of tokens", extra={"tokenizer": type(tokenizer).__name__})
        return None
    separator = tokenizer.sep_token_id
    if separator is not None:
        derived = token_types(torch.tensor([encoded["input_ids"]]), separator)[0].tolist()
        if derived == given:
            return int(separator)
    raise ModelUnsupported(
        f"learner.model: {name!r}: its tokenizer gives the token types {given} to a pair, expected "
        "0 up to the first separator and 1 behind it"
    )


def mark_pairs(model: Any, separator: int | None) -> None:
    """Give a model the token types of its ids from here on, in any pass; None: none."""
    model.pair_separator = separator
    if separator is not None:
        model.embeddings.register_forward_pre_hook(_Marked(separator), with_kwargs=True)


class _Marked(OnDevice):
    """Hook of the embeddings; copies of the model have it too."""

    def __init__(self, separator: int) -> None:
        self._separator = separator

    def __call__(
        self, module: Any, args: tuple[Any, ...], given: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        ids = given["input_ids"]
        if ids is None:
            return None
        types = token_types(ids, self._separator, given.get("position_ids"))
        return args, {**given, "token_type_ids": types}
