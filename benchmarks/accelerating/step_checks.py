"""Checks of a training step on a device: what waits for it, copies, and the optimiser's kernel.

As those of `checks`, each has a twin on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch

from benchmarks.accelerating.found import SINGLE, Found
from benchmarks.accelerating.model import SMALL, Ours, equal
from benchmarks.accelerating.pretended import CountedReads, Pretended
from benchmarks.accelerating.twin import interpreted_adamw, on_device, tensors_of
from learner.passes.flat_passes import Flat
from learner.training.adamw import fastest
from learner.transfer import to_device, to_host
from tests.learner.training import batches, trainer


def no_waiting(device: str) -> Found:
    """An update reads nothing from the device."""
    if not device.startswith("cuda"):
        ours = Ours(SMALL, device, 16)
        with Pretended(tensors_of(ours.encoder.model, ours.head)) as pretended:
            for seed in range(2):
                ours.step(equal(16, 32, seed=seed))
        return _waits(pretended.waits)
    ours, batch = Ours(SMALL, device, 16, precision="bfloat16"), equal(16, 32, seed=0)
    ours.step(batch)  # what is captured and allocated once
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    passes = ours.encoder.passes
    assert isinstance(passes, Flat)
    assert passes.captures is not None
    assert passes.captures.trusted, "captures were switched off, so none was watched"
    return Found(0.0, 0.0, "encoder, loss, clipping and optimiser")


def _waits(waits: Sequence[str]) -> Found:
    """Return how often a pretended device kept its host waiting."""
    return Found(float(len(waits)), 0.0, "; ".join(waits[:3]) or "a pretended device")


def one_read(device: str) -> Found:
    """A step of the learner reads the device once, by `to_host`, and waits for it nowhere else."""
    stream = batches(4)
    if not device.startswith("cuda"):
        own = trainer(device=device, lr=1e-4)
        with Pretended(on_device(own)) as pretended:
            for batch in stream:
                own.step(batch)
        assert pretended.reads == len(stream), f"{pretended.reads} reads in {len(stream)} steps"
        return _waits(pretended.waits)
    own = trainer(device=device, lr=1e-4, precision="bfloat16")
    for batch in stream[:3]:  # what is captured, compared and allocated once
        own.step(batch)
    reads = CountedReads()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with reads:
            own.step(stream[3])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert reads.number == 1, f"{reads.number} reads in a step"
    return Found(0.0, 0.0, "the whole step")


def copies(device: str) -> Found:
    """What is sent to the device in one copy comes back as it was, in one read."""
    draw = torch.Generator().manual_seed(0)
    sent = [torch.randn(3, 5, generator=draw), torch.zeros(0, 4), torch.tensor(2.5)]
    numbers = torch.arange(7)
    *floats, whole = to_device([*sent, numbers], torch.device(device))
    back = to_host([*floats, whole.float()])
    pairs = zip(back, [*sent, numbers.float()], strict=True)
    return Found(float(not all(np.array_equal(a, b.numpy()) for a, b in pairs)), 0.0)


def one_kernel(device: str) -> Found:
    """AdamW in one kernel against torch's kernels of lists, for steps below, at and above B."""
    if find_spec("triton") is None:
        return Found(0.0, 0.0, "no Triton, which comes with torch for CUDA: torch's kernels")
    from learner.training.adamw_kernel import Fused

    if device.startswith("cuda"):
        fused, note = Fused(), "Triton"
        assert isinstance(fastest(torch.device(device)), Fused), "it was not taken"
    else:
        fused, note = Fused(interpreted_adamw()), "Triton's interpreter"
    return Found(fused.difference(torch.device(device)), SINGLE, note)
