"""Garbage collection in a process that answers requests: what is loaded is exempted from it."""

from __future__ import annotations

import gc


def exempt_what_is_loaded() -> None:
    """Exempt every object of this moment from garbage collection.

    The libraries of a model are some hundred thousand objects, and looking through them holds up
    all threads for 50 to 100 ms each time. What is no longer referred to is freed as before.
    """
    gc.collect()
    gc.freeze()
