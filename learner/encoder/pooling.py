"""Token states to one unit vector per text.

Legend: n texts, T tokens, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from torch import Tensor
from torch.nn.functional import normalize

Pool: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(n, T, D) hidden states and (n, T) mask of real tokens -> (n, D) unit vectors."""


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average the real tokens."""
    real = mask[:, :, None].to(hidden.dtype)
    return normalize((hidden * real).sum(1) / real.sum(1), dim=-1)


def first_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take the first token, which BERT calls ``[CLS]``."""
    return normalize(hidden[:, 0], dim=-1)


POOLINGS: Mapping[str, Pool] = {"mean": mean, "cls": first_token}
"""Name, as written in a version's ``heads.json`` -> pooling."""


def pooling_of(folder: Path) -> str:
    """Return the pooling that a sentence-transformers folder declares; the mean otherwise."""
    declared = folder / "1_Pooling" / "config.json"
    if declared.is_file() and json.loads(declared.read_text()).get("pooling_mode_cls_token"):
        return "cls"
    return "mean"
