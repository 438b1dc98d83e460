"""Layers of a model whose matrix products go by the faster library."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from learner import arithmetic


class _Linear(nn.Linear):
    """A linear layer whose product is `arithmetic.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return x W^T + b (..., K) of x (..., D)."""
        return arithmetic.linear(input, self.weight, self.bias)


def use_plain(model: Any) -> None:
    """Let the linear layers of a model multiply as torch has it, undoing `use_fastest`."""
    plain: type[nn.Module] = nn.Linear
    for module in model.modules():
        if isinstance(module, _Linear):
            module.__class__ = plain  # type: ignore[assignment]


def use_fastest(model: Any) -> None:
    """Let the linear layers of a model multiply by `arithmetic.linear` from here on."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Linear
