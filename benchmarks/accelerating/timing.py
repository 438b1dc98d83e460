"""What a device can do, and how long it takes for something."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

_GEMM, _COPY_BYTES = 8_192, 1 << 30
_REPEATS = 20


def wait(device: str) -> None:
    """Wait until a device has done all that it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str) -> float:
    """Return how long something takes, with all that it gives to the device."""
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


def gemm_flops(device: str, size: int = _GEMM) -> float:
    """Measure the operations per second of a bfloat16 product of random matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in "ab")
    for _ in range(3):
        a @ b
    each = statistics.median(seconds(lambda: a @ b, device) for _ in range(_REPEATS))
    return 2 * size**3 / each


def copy_rate(device: str, num_bytes: int = _COPY_BYTES) -> float:
    """Measure the bytes per second of a copy on the device, read and written."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    each = statistics.median(seconds(lambda: target.copy_(source), device) for _ in range(5))
    return 2 * num_bytes / each


def median_interval(
    ratios: NDArray[np.float64], *, draws: int = 5_000
) -> tuple[float, float, float]:
    """Return the median of ratios (R,), with its bootstrap 95 % interval over rounds."""
    draw = np.random.Generator(np.random.PCG64(0))
    medians = np.median(ratios[draw.integers(0, len(ratios), (draws, len(ratios)))], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)
