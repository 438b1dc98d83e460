"""Garbage collection: what is loaded is exempted, what comes after it is not."""

from __future__ import annotations

import gc

from deploy.process.garbage import exempt_what_is_loaded


class Node:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_loaded_is_not_looked_through_again() -> None:
    loaded = Node()
    assert any(each is loaded for each in gc.get_objects())
    try:
        exempt_what_is_loaded()
        fresh = Node()
        watched = gc.get_objects()
        assert not any(each is loaded for each in watched)
        assert any(each is fresh for each in watched)
    finally:
        gc.unfreeze()
