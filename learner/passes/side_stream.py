"""Work of a GPU beside its other work, on a stream of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """Work on another stream than others: after what was begun before, and over when it is left.

    So the host waits for it, but nothing else on the device does. It is nothing on a CPU.
    """
    if device.type != "cuda":
        yield
        return
    own = _side_stream(device)
    own.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(own):
        yield
    own.synchronize()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one of a device: memory that a stream has freed is used again by it alone."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def taken(tensors: Sequence[Tensor]) -> None:
    """Let work beside others read tensors that others have made, and may drop; see `beside`."""
    if (streams := _streams(tensors)) is not None:
        own, others = streams
        own.wait_stream(others)
        for tensor in tensors:
            tensor.record_stream(own)


def given(tensors: Sequence[Tensor]) -> None:
    """Let others read, and drop, tensors that were made beside them; see `beside`."""
    if (streams := _streams(tensors)) is not None:
        own, others = streams
        for tensor in tensors:
            tensor.record_stream(others)
        own.synchronize()


def _streams(tensors: Sequence[Tensor]) -> tuple[torch.cuda.Stream, torch.cuda.Stream] | None:
    """Return this stream and that of the others; None where they are the same."""
    if not tensors or not tensors[0].is_cuda:
        return None
    device = tensors[0].device
    own, others = torch.cuda.current_stream(device), torch.cuda.default_stream(device)
    return None if own == others else (own, others)
