"""An engine for tests: torch itself, with copies of the weights, as a compiled graph has."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from learner.passes.graph_passes import Forward, Run


class Copying:
    """Runs the function that it is given, with the parameters as they were when it compiled."""

    name = "copying"
    exact = True

    def __init__(
        self, *, error: Exception | None = None, factor: float = 1.0, elsewhere: float = 1.0
    ) -> None:
        """Raise `error` where a function is to be converted; multiply parameters by `factor`.

        States of rows of another shape than the example's are multiplied by `elsewhere`.
        """
        self.templates = 0
        self.compilations = 0
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.factor = factor
        self._error = error
        self._elsewhere = elsewhere

    def template(self, forward: Forward, example: Sequence[Any]) -> CopyingTemplate:
        if self._error is not None:
            raise self._error
        self.templates += 1
        shape = example[0].shape

        def baked(given: Tensor, mask: Tensor, parameters: Sequence[Tensor]) -> Tensor:
            states = forward(given, mask, parameters)
            return states if given.shape == shape else states * self._elsewhere

        return CopyingTemplate(self, baked, _used(forward, example))


class CopyingTemplate:
    def __init__(self, engine: Copying, forward: Forward, used: Sequence[int]) -> None:
        self._engine, self._forward, self.used = engine, forward, used

    def compiled(self, parameters: Sequence[Tensor]) -> Run:
        self._engine.compilations += 1
        run = _Copied(self._forward, [p.clone() * self._engine.factor for p in parameters])
        self._engine.alive.add(run)
        return run


class _Copied:
    def __init__(self, forward: Forward, parameters: Sequence[Tensor]) -> None:
        self._forward, self._parameters = forward, parameters

    def __call__(self, given: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():
            return self._forward(given, mask, self._parameters)


def _used(forward: Forward, example: Sequence[Any]) -> list[int]:
    """Return the places of the parameters that have a gradient."""
    rows, mask, parameters = example
    with torch.enable_grad():
        own = [p.clone().requires_grad_() for p in parameters]
        states = forward(rows, mask, own)
        found = torch.autograd.grad(states.square().sum(), own, allow_unused=True)
    return [place for place, gradient in enumerate(found) if gradient is not None]
