"""Turns on the event loop: one long callback per iteration, so that short ones go in between."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial


class Turns:
    """Callbacks in the order of their coming, one per iteration of an event loop.

    A batch of answers, and the requests that come into the line in its place, are some ten
    milliseconds of work at one moment. What can be refused at once should not wait behind it.
    Used by one event loop, in its thread.
    """

    def __init__(self) -> None:
        """Start with nothing to call."""
        self._waiting: deque[Callable[[], object]] = deque()

    def take(self, callback: Callable[[], object]) -> None:
        """Call `callback` in its turn, at the earliest in the next iteration."""
        self._waiting.append(callback)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._next)

    async def wait(self) -> None:
        """Go on in a turn of its own."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.take(partial(_begin, turn))
        await turn

    def _next(self) -> None:
        callback = self._waiting.popleft()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)
        callback()


def _begin(turn: asyncio.Future[None]) -> None:
    if not turn.done():  # whose task was cancelled
        turn.set_result(None)
