"""Torch devices of this machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learner.errors import DeviceMissing


def check_device(name: str, *, setting: str = "learner.device") -> None:
    """Compute one number on a device, to see that it is there.

    Args:
        name: of the device.
        setting: that names it, for the error.

    Raises:
        DeviceMissing: torch does not know it, or cannot use it here; names those that it can.
    """
    try:
        torch.zeros(1, device=name).add(1).item()
    # Torch raises one class of error per backend, NotImplementedError and AssertionError too
    except Exception as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise DeviceMissing(
            f"{setting}: got {name!r}, which torch cannot use here ({reason}). "
            f"Expected one of: {', '.join(_usable())}"
        ) from error


def device_of(model: Any) -> torch.device:
    """Return the device of a model's parameters."""
    device: torch.device = next(model.parameters()).device
    return device


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, without waiting for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _usable() -> list[str]:
    found = ["cpu"]
    if torch.cuda.is_available():
        found += ["cuda", *(f"cuda:{place}" for place in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found
