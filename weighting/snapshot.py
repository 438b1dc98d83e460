"""Snapshots as msgpack: opened and checked in one place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from weighting.errors import SnapshotError


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
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise SnapshotError(of, repr(error), f"the snapshot of a {of}") from error
