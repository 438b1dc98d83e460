"""Functions of tensors, recorded once and replayed over the same memory, forward and backward.

A replay reads and writes where the recording did. So inputs are copied there, a result is copied
out, and gradients are lent: they hold until the next replay of any recording that shares the
memory, which recordings of one recorder do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Made: TypeAlias = list[Tensor | None]
_WARM_UPS = 3
"""Runs before a recording, as torch takes: libraries make what they keep in the first ones."""


class Recorder(Protocol):
    """What records work of a device, and replays it.

    Attributes:
        turn: held while a recording is replayed and its result copied, and to warm up, as they
            share memory.
    """

    turn: threading.Lock

    def alone(self, device: torch.device) -> AbstractContextManager[None]:
        """Keep all other recordings of this process out."""

    def warm_up(self, run: Callable[[], object]) -> None:
        """Run what will be recorded, where it will be recorded."""

    def record(self, run: Callable[[], Made]) -> tuple[Made, Callable[[], None]]:
        """Record what a function does.

        Returns:
            What it returned, and a function that does it again, into the same memory.
        """


class CudaGraphs:
    """Records CUDA graphs, which share one pool of memory and the stream that they come from."""

    _alone = threading.Lock()  # torch allows one recording at a time in a process

    def __init__(self) -> None:
        """Touch no device yet."""
        self.turn = threading.Lock()
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    @contextmanager
    def alone(self, device: torch.device) -> Iterator[None]:
        """Keep all other recordings of this process out; see `Recorder`."""
        here = torch.cuda.current_stream(device)
        with self._alone, torch.cuda.device(device), torch.cuda.stream(here):  # a failure leaves it
            if self._stream is None:
                self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
                self._pool = torch.cuda.graph_pool_handle()
            yield

    def warm_up(self, run: Callable[[], object]) -> None:
        """Run on the stream of the recordings; see `Recorder`."""
        assert self._stream is not None
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                run()
        here.wait_stream(self._stream)

    def record(self, run: Callable[[], Made]) -> tuple[Made, Callable[[], None]]:
        """Record a CUDA graph; see `Recorder`.

        In torch's default mode any other thread that allocates memory would spoil it.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            made = run()
        return made, graph.replay


class Recording:
    """A function of tensors as it was recorded; call it with inputs of the same shapes."""

    def __init__(
        self,
        recorder: Recorder,
        run: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        moving: Sequence[nn.Parameter] = (),
    ) -> None:
        """Record a function.

        Its graph is dropped once its backward pass is recorded. Else the nodes of the parameters
        in it would stay those of the recording's stream, and each backward pass would wait for
        that stream once per parameter.

        Args:
            recorder: as it is within `Recorder.alone`.
            run: one tensor of the inputs; it reads nothing from the device.
            inputs: its own from here on; none has a gradient.
            moving: parameters whose gradient is wanted; none for the forward pass alone.

        Raises:
            RuntimeError: of torch, of any kind: it cannot be recorded.
        """
        self._turn, self._inputs, self._moving = recorder.turn, tuple(inputs), tuple(moving)
        self._number = 0  # of replays
        found: list[Tensor] = []  # of the last forward pass, with its graph

        def forward() -> Made:
            found[:] = [run(*self._inputs)]
            return [found[0].detach()]

        def backward() -> Made:
            grads = torch.autograd.grad(found.pop(), self._moving, self._given, allow_unused=True)
            return list(grads)

        def once() -> None:
            (made,) = forward()
            if self._moving:
                assert made is not None
                self._given = torch.zeros_like(made)
                backward()

        with self._turn:  # a library's own memory is that of the stream, for replays too
            recorder.warm_up(once)
        (made,), self._forward = recorder.record(forward)
        assert made is not None
        self._made = made
        self._gradients: Made = []
        self._backward: Callable[[], None] | None = None
        if self._moving:
            self._gradients, self._backward = recorder.record(backward)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return what the function gives, of memory of its own, with a gradient if recorded."""
        if not self._moving:
            return self.forward(inputs)
        found: Tensor = _Replay.apply(self, inputs, *self._moving)  # type: ignore[no-untyped-call]
        return found

    @property
    def number(self) -> int:
        """Number of the last replay."""
        return self._number

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Replay the forward pass; return a copy of its result."""
        with self._turn:
            for own, new in zip(self._inputs, inputs, strict=True):
                assert own.shape == new.shape, "inputs of another size"
                own.copy_(new)
            self._forward()
            self._number += 1
            return self._made.clone()

    def backward(self, given: Tensor, number: int) -> Made:
        """Replay the backward pass of a forward pass; return gradients in the recording's memory.

        Args:
            given: gradient of what the forward pass returned.
            number: of the forward pass.

        Raises:
            RuntimeError: there was a replay since, and what is needed has been overwritten.
        """
        assert self._backward is not None
        if number != self._number:
            raise RuntimeError("a recorded pass was replayed again before its backward pass")
        with self._turn:
            self._given.copy_(given)
            self._backward()
            self._number += 1
            return [None if own is None else own.detach() for own in self._gradients]


class _Replay(torch.autograd.Function):
    """A recording as one node; it lives until it is used."""

    @staticmethod
    def forward(
        ctx: Any, recording: Recording, inputs: Sequence[Tensor], *moving: nn.Parameter
    ) -> Tensor:
        found = recording.forward(inputs)
        ctx.recording, ctx.number = recording, recording.number
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> Any:
        return None, None, *ctx.recording.backward(given, ctx.number)
