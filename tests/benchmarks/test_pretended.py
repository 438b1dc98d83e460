"""A device pretended on a CPU: every way to wait for it is seen, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.accelerating.pretended import DEVICE, Pretended
from learner.passes.device import moved
from learner.transfer import to_device, to_host


def backward_that_reads(x: Tensor) -> None:
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, given: Tensor) -> Tensor:
            return given.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return gradient * float(gradient.sum())

    Reads.apply(x).sum().backward()  # type: ignore[no-untyped-call]


WAITS: dict[str, Callable[[Tensor], object]] = {
    "a number": lambda x: x[0].item(),
    "a number of what was calculated": lambda x: float((x * 2).sum().detach()),
    "a condition": lambda x: bool((x > 0).all()),
    "an index": lambda x: [0, 1, 2, 3][x.argmax()],
    "a list": lambda x: x.tolist(),
    "an array": lambda x: x.detach().numpy(),
    "an array by numpy": lambda x: np.asarray(x.detach()),
    "a copy": lambda x: x.cpu(),
    "a copy by name": lambda x: x.to("cpu"),
    "a text": lambda x: f"{x.sum()}",
    "a size": lambda x: x.nonzero(),
    "a mask": lambda x: x[x > 0],
    "a mask that is written by": lambda x: x.detach().index_put_((x > 0,), torch.zeros(())),
    "distinct numbers": lambda x: torch.unique(x),
    "equality": lambda x: torch.equal(x, x),
    "a backward pass": backward_that_reads,
    "numbers of the host": lambda x: torch.tensor([1, 2], device=x.device),
    "memory that is not pinned": lambda x: torch.ones(4).to(x.device),
    "tensors of both": lambda x: x + torch.ones(4),
    "a copy into a tensor of the host": lambda x: torch.zeros(4).copy_(x),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_seen_with_its_line(name: str) -> None:
    x = torch.tensor([1.0, -2.0, 3.0, -4.0], requires_grad=True)
    with Pretended([x]) as gpu:
        WAITS[name](x)
    assert gpu.waits
    assert all(Path(wait.rpartition(":")[0]).name == Path(__file__).name for wait in gpu.waits)
    assert gpu.reads == 0


def test_a_calculation_with_one_read_waits_for_nothing() -> None:
    x = torch.tensor([1.0, -2.0, 3.0, -4.0], requires_grad=True)
    with Pretended([x]) as gpu:
        assert x.device == DEVICE
        places = moved(torch.tensor([2, 0]), x.device)
        weights, mask = to_device([torch.ones(2), torch.tensor([True, False])], x.device)
        chosen = x[places] + torch.arange(2, device=x.device) * weights
        parts = torch.split(chosen.masked_fill(mask, 0.0), [1, 1])
        torch.cat(parts).sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        norm = torch.nn.utils.clip_grad_norm_([x], 1.0)
        scale = np.float32(3) * torch.ones(3).sum().item()  # of the host
        values, length = to_host([x * float(scale), norm])
        assert float(values.sum()) * float(length)
    assert (gpu.reads, gpu.waits) == (1, [])
