"""Adversarial training: half of the gradient is taken where the tokens are moved to do harm.

Legend: n texts, T tokens, D width of what goes into the lowest layer that moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_Scored = TypeVar("_Scored")


class Adversarial:
    """1/2 L(x) + 1/2 L(x + d) in place of L(x), d the worst of each token within a radius.

        d <- d + step g / |g|, then back to the ball |d| <= radius |x|, per token

    g is the gradient of L at x + d, K times from d = 0. One time is FGM (Miyato et al., ICLR 2017),
    more are PGD (Madry et al., ICLR 2018), the step then 2.5 / K of the radius. The halves are
    those of Goodfellow et al., ICLR 2015. The radius is per token and a share of its vector's
    length, where Miyato takes one length per text: so it does not depend on what else is in the
    step, or on padding, which has no gradient and is not moved. Costs K more passes.
    """

    def __init__(self, entrance: nn.Module, *, steps: int, radius: float) -> None:
        """Take the module whose output is x, (..., T, D); `steps` is K, 1 or more."""
        self._entrance = entrance
        self._steps = steps
        self._radius = radius

    def backward(self, score: Callable[[], tuple[Tensor, _Scored]]) -> tuple[Tensor, _Scored]:
        """Leave the gradient with the parameters; return L(x), and what came with it.

        Args:
            score: runs the model; returns L and anything else. Each call encodes the same texts in
                the same order.
        """
        with self._watched() as clean:
            loss, scored = score()
        (loss / 2).backward()  # type: ignore[no-untyped-call]
        gradients = [_gradient(x.grad, x) for x in clean]
        moves = [torch.zeros_like(x) for x in clean]
        for left in reversed(range(self._steps)):
            parts = zip(moves, gradients, clean, strict=True)
            moves = [self._moved(d, g, x) for d, g, x in parts]
            with self._watched(moves) as inputs:
                harmed, _ = score()
            if left:
                found = torch.autograd.grad(harmed, inputs, allow_unused=True)
                gradients = [_gradient(g, x) for g, x in zip(found, inputs, strict=True)]
            else:
                (harmed / 2).backward()  # type: ignore[no-untyped-call]
        return loss, scored

    @torch.no_grad()
    def _moved(self, d: Tensor, g: Tensor, x: Tensor) -> Tensor:
        radius = self._radius * x.norm(dim=-1, keepdim=True)
        step = min(1.0, 2.5 / self._steps) * radius
        d = d + step * g / g.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        back: Tensor = (radius / d.norm(dim=-1, keepdim=True).clamp_min(1e-30)).clamp_max(1.0)
        return d * back

    @contextmanager
    def _watched(self, moves: Sequence[Tensor] | None = None) -> Iterator[list[Tensor]]:
        """Move the inputs, in the order of the calls, and yield a list that collects them."""
        inputs: list[Tensor] = []

        def watch(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
            x = output if moves is None else output + moves[len(inputs)]
            if x.requires_grad:
                x.retain_grad()
            else:
                x = x.detach().requires_grad_()
            inputs.append(x)
            return x

        handle = self._entrance.register_forward_hook(watch)
        try:
            yield inputs
        finally:
            handle.remove()


def _gradient(found: Tensor | None, x: Tensor) -> Tensor:
    """Return a gradient; zeros of what the loss does not depend on."""
    return torch.zeros_like(x) if found is None else found
