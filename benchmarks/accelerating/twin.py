"""Twins on a CPU of what a GPU has: the same calls, the same traps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from learner.encoder.captures import Inputs


class Replayed(nn.Module):
    """What a capture is: it reads its own copies, and writes where it wrote before."""

    def __init__(self, module: nn.Module, inputs: Inputs, *, forgets: bool = False) -> None:
        """Take the inputs as its own; one that `forgets` never copies where the texts lie."""
        super().__init__()
        self.module = module
        self.inputs = inputs
        self.forgets = forgets
        self.written: Tensor | None = None
        self.number = 0

    def forward(self, *inputs: Tensor) -> Tensor:
        """Run on the copies; what was returned before changes with it."""
        for own, new in zip(self.inputs, inputs, strict=True):
            if not (self.forgets and own is self.inputs[1]):
                own.copy_(new)
        self.number += 1
        found: Tensor = self.module(*self.inputs)
        if self.written is None:
            self.written = found.detach().clone()
        self.written.copy_(found.detach())
        return found + (self.written - found).detach()


class Copying:
    """Captures by `Replayed`.

    Attributes:
        made: the captures.
    """

    def __init__(self, **options: Any) -> None:
        """Take the options of `Replayed`."""
        self._options = options
        self.made: list[Replayed] = []

    def __call__(self, module: nn.Module, inputs: Inputs) -> Callable[..., Tensor]:
        """Capture a module."""
        self.made.append(Replayed(module, inputs, **self._options))
        return self.made[-1]

    @property
    def number(self) -> int:
        """Number of replays."""
        return sum(made.number for made in self.made)
