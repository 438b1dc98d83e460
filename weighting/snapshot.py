"""Snapshots as msgpack: opened and checked in one place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from weighting.errors import SnapshotError


def numbers(found: object, shape: tuple[int, ...], of: str) -> NDArray[np.float64]:
    """Return an entry of a snapshot as an array of this shape.

    Raises:
        SnapshotError: it has another shape, or an element that is no finite number.
    """
    array = np.array(found, dtype=np.float64)  # of None, NaN
    if array.shape != shape:
        raise SnapshotError(of, f"shape {array.shape}", f"shape {shape}")
    if not np.isfinite(array).all():
        raise SnapshotError(of, "NaN or infinity", "numbers")
    return array


@contextmanager
def opened(data: bytes, of: str, **expected: object) -> Iterator[Mapping[str, Any]]:
    """Decode a snapshot; inside, what a damaged one leads to is raised as `SnapshotError`.

    Args:
        data: the msgpack of a map.
        of: whose snapshot it should be, for the error.
        expected: entry -> the only value that it may have.

    Raises:
        SnapshotError: an entry is missing, or has another value, type or length.

    >>> with opened(msgspec.msgpack.encode({"format": 1, "n": 5}), "counter", format=1) as state:
    ...     state["n"]
    5
    """
    try:
        state: Mapping[str, Any] = msgspec.msgpack.decode(data)
        for name, value in expected.items():
            if state[name] != value:
                raise SnapshotError(f"{of}: {name}", state[name], value)
        yield state
    except SnapshotError:
        raise
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise SnapshotError(of, repr(error), f"the snapshot of a {of}") from error
