"""Copies between host and device: to it without waiting, from it in one read.

A device works through what it is given while the host goes on; a read makes the host wait for all
of that. So a training step gives everything first, and reads once, by `to_host`. What goes to the
device is packed, as each copy costs the host a launch, and pinned, as it would wait otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.passes.device import moved

_ALIGNED = 64
"""Bytes that torch aligns a tensor of its own to, so that a packed one is read alike."""


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy tensors of the host to a device in one transfer, without waiting for it.

    Args:
        tensors: of any shapes and types.
        device: that they go to.

    Returns:
        Their copies, in order. These share memory: none may be written to.
    """
    sizes = [-(-tensor.nbytes // _ALIGNED) * _ALIGNED for tensor in tensors]
    packed = torch.empty(sum(sizes), dtype=torch.uint8)
    for part, tensor in zip(torch.split(packed, sizes), tensors, strict=True):
        part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    sent = torch.split(moved(packed, device), sizes)
    pairs = zip(sent, tensors, strict=True)
    return [part[: own.nbytes].view(own.dtype).view(own.shape) for part, own in pairs]


def to_host(tensors: Sequence[Tensor]) -> list[NDArray[np.float32]]:
    """Read float32 tensors of one device in one transfer, and wait for it.

    Nothing else in a training step waits for the device; one with noise of `learner.privacy`, which
    is drawn on the host, does so twice.

    Args:
        tensors: of any shapes, at least one.

    Returns:
        Arrays of the same shapes.
    """
    packed = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    read = _pinned(packed) if packed.is_cuda else packed.cpu()
    parts = np.split(read.numpy(), np.cumsum([tensor.numel() for tensor in tensors])[:-1])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _pinned(packed: Tensor) -> Tensor:
    """Copy a tensor of a GPU to pinned memory, which needs no copy in between."""
    host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
    host.copy_(packed, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(packed.device))
    copied.synchronize()
    return host
