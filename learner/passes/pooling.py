"""Token states to one unit vector per text.

Legend: n texts, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import PurePosixPath
from typing import Any, TypeAlias

import msgspec
import torch
from torch import Tensor
from torch.nn.functional import normalize

from learner.errors import ModelUnsupported

Pool: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(n, T, D) hidden states and (n, T) mask of real tokens -> (n, D) unit vectors."""


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average the real tokens."""
    real = mask[:, :, None].to(hidden.dtype)
    return normalize((hidden * real).sum(1) / real.sum(1), dim=-1)


def first_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take the first token, which BERT calls ``[CLS]``."""
    return normalize(hidden[:, 0], dim=-1)


def largest(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take the largest value of each dimension over the real tokens."""
    padding = mask[:, :, None] == 0
    return normalize(hidden.masked_fill(padding, -torch.inf).amax(1), dim=-1)


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take the last real token."""
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return normalize(hidden[rows, mask.sum(1) - 1], dim=-1)


Share: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(T,) place of each token in its text and (T,) tokens of that text -> (T,) its share."""
SHARES: Mapping[Pool, Share] = {
    mean: lambda place, length: 1 / length.clamp_min(1),
    first_token: lambda place, length: (place == 0).float(),
    last_token: lambda place, length: (place == length - 1).float(),
}
"""Pooling -> a token's share, where the vector is a weighted sum of the states of the tokens."""


def first_state(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the first token's state as it is, which heads of cross-encoders read."""
    return hidden[:, 0]


OF_FIRST: Collection[Pool] = (first_token, first_state)
"""Those that read nothing but the first token's state."""
POOLINGS: Mapping[str, Pool] = {
    "mean": mean,
    "cls": first_token,
    "max": largest,
    "lasttoken": last_token,
}
"""Name, as sentence-transformers and a version's ``heads.json`` write it -> pooling."""

POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Keys that sentence-transformers wrote before 6.0, and still reads -> mode."""
_WITHOUT_EFFECT = {"transformer", "normalize", "dropout"}
"""Modules beside the pooling that change no unit vector."""


def pooling_of(name: str, read: Callable[[str], bytes | None]) -> str | None:
    """Return the pooling that a sentence-transformers model declares, None if it is none.

    Args:
        name: of the model, for errors.
        read: returns a file of the model by its path, None where there is none.

    Raises:
        ModelUnsupported: its vectors are made in another way; names it.
    """
    written = read("modules.json")
    modules = [] if written is None else _decoded(name, "modules.json", written)
    folder = "1_Pooling"
    for module in modules:
        kind = str(module["type"]).rpartition(".")[2].lower()
        if kind == "pooling":
            folder = str(module["path"])
        elif kind not in _WITHOUT_EFFECT:
            raise ModelUnsupported(
                f"learner.model: {name!r}: modules.json names the module {module['type']}, which "
                "Steelyard has not. Expected a transformer, a pooling and at most a normalisation."
            )
    path = str(PurePosixPath(folder) / "config.json")
    declared = read(path)
    return None if declared is None else _mode(name, path, _decoded(name, path, declared))


def _mode(name: str, path: str, declared: Mapping[str, Any]) -> str:
    written = declared.get("pooling_mode")
    if written is None:
        written = [mode for flag, mode in POOLING_FLAGS.items() if declared.get(flag)] or ["mean"]
    modes = [written] if isinstance(written, str) else list(written)
    # A factor of the square root of the length is gone in a unit vector
    mode = " with ".join("mean" if mode == "mean_sqrt_len_tokens" else mode for mode in modes)
    if mode not in POOLINGS:
        raise ModelUnsupported(
            f"learner.model: {name!r}: {path} says pooling {mode}, "
            f"expected one of {', '.join(POOLINGS)}"
        )
    return mode


def _decoded(name: str, path: str, data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise ModelUnsupported(f"learner.model: {name!r}: {path}: {error}") from error
