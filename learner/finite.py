"""Search for numbers in a version's files that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from learner.errors import Corrupt

_FLOAT64 = {"mean", "variance", "coefficients", "squares"}
"""Keys of an estimator's state under which bytes are an array of float64."""
_EXTRA = "/extra"
"""End of the path under which all bytes are one: further columns of a coefficient table."""


def check_tensors(file: str, tensors: Mapping[str, torch.Tensor | NDArray[np.float32]]) -> None:
    """Look at every number of every tensor.

    Raises:
        Corrupt: one is NaN or infinite; names the first tensor.
    """
    for name, values in sorted(tensors.items()):
        tensor = torch.as_tensor(values)
        # Finite only if every one is: float64 holds any sum of absolute float32s
        if tensor.is_floating_point() and not math.isfinite(float(tensor.double().abs().sum())):
            raise _corrupt(file, name)


def check_numbers(file: str, data: bytes) -> None:
    """Look at every number of a state in msgpack.

    Raises:
        Corrupt: one is NaN or infinite; names the first.
    """
    for path in _not_finite(msgspec.msgpack.decode(data), ""):
        raise _corrupt(file, path)


def _not_finite(state: Any, path: str) -> Iterator[str]:
    if isinstance(state, float) and not math.isfinite(state):
        yield path
    elif isinstance(state, dict):
        for key, value in state.items():
            if isinstance(value, bytes):
                floats = key in _FLOAT64 or path.endswith(_EXTRA)
                if floats and not np.isfinite(np.frombuffer(value, "<f8")).all():
                    yield f"{path}/{key}"
            else:
                yield from _not_finite(value, f"{path}/{key}")
    elif isinstance(state, list):
        for place, value in enumerate(state):
            yield from _not_finite(value, f"{path}/{place}")


def _corrupt(file: str, name: str) -> Corrupt:
    return Corrupt(file, expected="finite numbers", found=f"NaN or infinity in {name.lstrip('/')}")
