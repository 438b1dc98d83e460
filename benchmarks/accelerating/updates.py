"""Rates of updates: sustained on ragged texts, and of small steps, captured or not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.accelerating.model import Batch, Ours, Plain, Shape, equal, ragged
from benchmarks.accelerating.timing import gemm_flops, median_interval, seconds, wait

PEAK_FLOPS = 989.4e12
"""Dense bfloat16 of an H200 SXM, by its data sheet."""


def sustained(
    shape: Shape, device: str, *, num_tokens: int, rounds: int, steps: int, precision: str
) -> dict[str, Any]:
    """Take turns with transformers over the same ragged batches; return rates and MFU.

    Args:
        shape: of the BERT.
        device: of torch.
        num_tokens: real tokens of a step.
        rounds: in which each takes its turn.
        steps: of a turn.
        precision: of both.
    """
    batches = [ragged(num_tokens, seed=seed) for seed in range(steps)]
    batch_size = len(batches[0].ids)
    ours = Ours(shape, device, batch_size, precision=precision)
    plain = Plain(shape, device, lowered=precision == "bfloat16")
    warm = batches[: min(5, steps)]
    losses = [[contender.step(batch) for batch in warm] for contender in (ours, plain)]
    apart = max(abs(float(a) - float(b)) for a, b in zip(*losses, strict=True))
    flop = sum(shape.flop(batch.lengths) for batch in batches)
    num_samples = sum(len(batch.ids) for batch in batches)
    mine, theirs = [], []
    for _ in range(rounds):
        mine.append(seconds(lambda: _turn(ours, batches), device))
        theirs.append(seconds(lambda: _turn(plain, batches), device))
    gemm = gemm_flops(device, 8_192 if device.startswith("cuda") else 1_024)
    ratio, low, high = median_interval(np.array(theirs) / np.array(mine))
    rate = flop / statistics.median(mine)
    return {
        "mfu": rate / PEAK_FLOPS,
        "mfu_against_measured_gemm": rate / gemm,
        "gemm_tflops": gemm / 1e12,
        "ratio_to_hf": ratio,
        "ratio_to_hf_interval": [low, high],
        "samples_per_second": num_samples / statistics.median(mine),
        "tokens_per_second": steps * num_tokens / statistics.median(mine),
        "hf_samples_per_second": num_samples / statistics.median(theirs),
        "largest_difference_of_losses": apart,
        "passes": type(ours.encoder.passes).__name__,
    }


def _turn(contender: Ours | Plain, batches: Sequence[Batch]) -> None:
    for batch in batches:
        contender.step(batch)


def small(
    shape: Shape, device: str, *, sizes: Sequence[int], length: int, steps: int, precision: str
) -> dict[str, Any]:
    """Time single steps of few texts of one length, captured and not; milliseconds by size."""
    found: dict[str, Any] = {}
    for name in ("captured", "eager"):
        ours = Ours(shape, device, 32, precision=precision)
        if name == "eager" and hasattr(ours.encoder.passes, "captures"):
            ours.encoder.passes.captures = None
        for size in sizes:
            batches = [equal(size, length, seed=seed) for seed in range(5)]
            for batch in batches:
                ours.step(batch)
            times = [_timed(ours, batches[n % 5], device) * 1e3 for n in range(steps)]
            deciles = statistics.quantiles(times, n=100)
            found[f"{name}_{size}"] = {"p50": deciles[49], "p99": deciles[98]}
        captures = getattr(ours.encoder.passes, "captures", None)
        if name == "captured" and device.startswith("cuda"):
            assert captures is not None, "the passes are not those of a GPU"
            assert captures.trusted, "captures were switched off"
    return found


def _timed(ours: Ours, batch: Batch, device: str) -> float:
    wait(device)
    began = time.perf_counter()
    float(ours.step(batch))
    wait(device)
    return time.perf_counter() - began


def memory(device: str) -> float:
    """Return the most memory of a device that was in use so far, in GiB."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.startswith("cuda") else 0.0
