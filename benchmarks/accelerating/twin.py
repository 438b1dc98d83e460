"""Twins on a CPU of what a GPU has: the same calls, the same traps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from learner.passes.graphs import Made
from learner.trainer import Trainer


class Repeating:
    """Records by keeping the function: a replay runs it again, and writes where it wrote before.

    As recordings share memory, a replay leaves nothing of what all others have written.

    Attributes:
        made: what each recording returned.
        number: of replays.
        turn: see `Recorder`.
    """

    def __init__(self, *, forgets: bool = False) -> None:
        """Record soundly, or `forgets`: replays do nothing."""
        self.turn = threading.Lock()
        self.made: list[Made] = []
        self.number = 0
        self._forgets = forgets

    def alone(self, device: torch.device) -> AbstractContextManager[None]:
        """Keep nobody out."""
        return nullcontext()

    def warm_up(self, run: Callable[[], object]) -> None:
        """Run once."""
        run()

    def record(self, run: Callable[[], Made]) -> tuple[Made, Callable[[], None]]:
        """Run, and keep the function."""
        has_graph = torch.is_grad_enabled()
        made = run()
        self.made.append(made)

        def replay() -> None:
            self.number += 1
            if self._forgets:
                return
            with torch.set_grad_enabled(has_graph):
                again = run()
            with torch.inference_mode():  # which may write to what was made in it
                for others in self.made:
                    for tensor in others:
                        if tensor is not None:
                            tensor.fill_(torch.nan)
                for own, new in zip(made, again, strict=True):
                    if own is not None:
                        assert new is not None
                        own.copy_(new)

        return made, replay


def interpreted_adamw() -> Any:
    """Return the kernel of AdamW as Triton's interpreter runs it, on tensors of a CPU."""
    from triton.runtime.interpreter import InterpretedFunction

    from learner.training.adamw_kernel import move

    return InterpretedFunction(move.fn)


def on_device(trainer: Trainer) -> list[Tensor]:
    """Return the tensors of a learner before its first step that lie on its device."""
    ranker = trainer.ranker
    own = tensors_of(ranker, ranker.encoder.model, ranker.starting._copy.model)
    return [*own, *trainer.components.optimizer._start]


def tensors_of(*modules: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of modules."""
    return [own for module in modules for own in (*module.parameters(), *module.buffers())]
