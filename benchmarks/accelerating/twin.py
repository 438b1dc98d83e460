"""Twins on a CPU of what a GPU has: the same calls, the same traps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from learner.encoder.graphs import Made


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
