"""Attention of texts of different lengths in one kernel of a GPU.

Legend: T tokens of all texts of a pass, n texts, H heads, d width of a head.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from learner.passes.key_value_prefixes import KeyValuePrefix, between

_LEAST_CAPABILITY = (8, 0)
"""Of a device: FlashAttention 2 needs Ampere or newer."""


class Kernel(Protocol):
    """Attention of each text to itself."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bounds: Bounds,
        *,
        seen: Bounds,
        causal: bool,
        scale: float | None,
    ) -> Tensor:
        """Return (T, H, d) of query (T, H, d), and key and value, which may have fewer heads.

        They lie as `seen` says, where each text has more of them than tokens.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """Where texts lie in one row of T tokens, on the device.

    Attributes:
        offsets: int32 (n + 1,), first token of each text, and T.
        longest: no text has more tokens.
        kernel: their attention.
    """

    offsets: Tensor
    longest: int
    kernel: Kernel

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        causal: bool,
        scale: float | None,
        dropout: float,
        prefix: KeyValuePrefix | None = None,
    ) -> Tensor:
        """Return (T, H, d) of query (H, T, d); key and value may have fewer heads."""
        assert not dropout, "the kernel has none"
        q, k, v = (states.transpose(0, 1) for states in (query, key, value))
        seen = self
        if prefix is not None:
            k, v = (
                between(states, own, self.offsets)
                for states, own in ((k, prefix.keys), (v, prefix.values))
            )
            seen = self._longer(prefix.keys.shape[1])
        return self.kernel(q, k, v, self, seen=seen, causal=causal, scale=scale)

    def _longer(self, number: int) -> Bounds:
        """Return the bounds with so many rows before each text."""
        before = torch.arange(len(self.offsets), device=self.offsets.device) * number
        return replace(
            self, offsets=self.offsets + before.to(self.offsets), longest=self.longest + number
        )


def fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Bounds,
    *,
    seen: Bounds,
    causal: bool,
    scale: float | None,
) -> Tensor:
    """Run torch's kernel, in half precision alone; see `Kernel`.

    What the kernel was taught late, a scale and fewer heads of keys, is done before it.
    """
    varlen_attn = _torch_kernel()
    assert varlen_attn is not None
    if value.dtype in (torch.bfloat16, torch.float16):  # rotations leave the others in float32
        query, key = query.to(value.dtype), key.to(value.dtype)
    heads, width = query.shape[1:]
    if scale is not None and not math.isclose(scale * math.sqrt(width), 1.0, rel_tol=1e-6):
        query = query * (scale * math.sqrt(width))
    if key.shape[1] != heads:
        key, value = (s.repeat_interleave(heads // s.shape[1], dim=1) for s in (key, value))
    found: Tensor = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        bounds.offsets,
        seen.offsets,
        bounds.longest,
        seen.longest,
        **_causal(varlen_attn, causal),
    )
    return found


def _causal(varlen_attn: Callable[..., Any], causal: bool) -> dict[str, Any]:
    """Return what tells the kernel so: a flag in older versions of torch, a window since."""
    if not causal:
        return {}
    old = "is_causal" in inspect.signature(varlen_attn).parameters
    return {"is_causal": True} if old else {"window_size": (-1, 0)}


def _torch_kernel() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def text_by_text(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Bounds,
    *,
    seen: Bounds,
    causal: bool,
    scale: float | None,
) -> Tensor:
    """Attend text by text, on any device: what `fused` is compared with; see `Kernel`."""
    outputs = []
    places = (itertools.pairwise(own.offsets.tolist()) for own in (bounds, seen))
    for (start, end), (first, last) in zip(*places, strict=True):
        q = query[start:end].transpose(0, 1)[None]
        k, v = (states[first:last].transpose(0, 1)[None] for states in (key, value))
        if start < end:
            own = scaled_dot_product_attention(
                q, k, v, is_causal=causal, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
            )
            outputs.append(own[0].transpose(0, 1))
    return torch.cat(outputs)


def kernel_for(device: torch.device) -> Kernel | None:
    """Return the kernel that a device has, None where it has none."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return None
    return None if _torch_kernel() is None else fused
