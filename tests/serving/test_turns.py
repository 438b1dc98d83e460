"""Turns of an event loop: one long callback per iteration, and short ones in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from starlette.types import Message, Receive, Scope, Send

from serving.middleware import TurnMiddleware
from serving.turns import Turns


class Iterations:
    """Number of the event loop's iteration."""

    def __init__(self) -> None:
        self.number = 0
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self.number += 1
        asyncio.get_running_loop().call_soon(self._next)


def run(check: Callable[[Turns, Iterations], Awaitable[None]]) -> None:
    async def inside() -> None:
        await check(Turns(), Iterations())

    asyncio.run(inside())


def test_callbacks_come_in_order_one_per_iteration() -> None:
    async def check(turns: Turns, iterations: Iterations) -> None:
        called: list[tuple[int, int]] = []

        def call(index: int) -> None:
            called.append((index, iterations.number))

        for index in range(5):
            turns.take(partial(call, index))
        await turns.wait()
        assert [index for index, _ in called] == list(range(5))
        numbers = [number for _, number in called]
        assert len(set(numbers)) == 5

    run(check)


def test_turns_go_on_after_they_had_run_out() -> None:
    async def check(turns: Turns, iterations: Iterations) -> None:
        for _ in range(3):
            await turns.wait()
            await asyncio.sleep(0)

    run(check)


def test_a_callback_may_take_a_turn() -> None:
    async def check(turns: Turns, iterations: Iterations) -> None:
        called: list[int] = []
        turns.take(lambda: turns.take(lambda: called.append(iterations.number)))
        await turns.wait()
        await turns.wait()
        assert len(called) == 1

    run(check)


def test_a_callback_that_raises_does_not_hold_up_the_next() -> None:
    async def check(turns: Turns, iterations: Iterations) -> None:
        raised: list[str] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: raised.append(str(context["exception"]))
        )
        turns.take(lambda: 1 // 0)
        await turns.wait()
        assert raised == ["integer division or modulo by zero"]

    run(check)


def test_a_cancelled_wait_does_not_hold_up_the_next() -> None:
    async def check(turns: Turns, iterations: Iterations) -> None:
        first, second = asyncio.create_task(turns.wait()), asyncio.create_task(turns.wait())
        await asyncio.sleep(0)
        first.cancel()
        await second
        with pytest.raises(asyncio.CancelledError):
            await first

    run(check)


def test_requests_begin_in_iterations_of_their_own() -> None:
    """What arrives at one moment does not begin at one moment."""

    async def check(turns: Turns, iterations: Iterations) -> None:
        begun: list[int] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            begun.append(iterations.number)

        async def receive() -> Message:
            raise NotImplementedError

        async def send(message: Message) -> None:
            raise NotImplementedError

        middleware = TurnMiddleware(app, turns=turns)
        await asyncio.gather(*(middleware({"type": "http"}, receive, send) for _ in range(6)))
        assert len(set(begun)) == 6

    run(check)
