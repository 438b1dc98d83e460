"""Pauses of a process that answers requests: kept short, whatever its threads do."""

from __future__ import annotations

import gc
import sys

_SWITCH_SECONDS = 0.001
#: New objects after which the youngest generation is collected.
_OBJECTS = 20_000


def hand_over_often() -> None:
    """Let a thread that waits for the interpreter have it after one millisecond, not five.

    A large body is read in a thread, and the event loop needs the interpreter several times for
    each request that comes meanwhile.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)


def exempt_what_is_loaded() -> None:
    """Exempt every object of this moment from garbage collection, and collect less often.

    The libraries of a model are some hundred thousand objects, and looking through them holds up
    all threads for 50 to 100 ms each time. What is no longer referred to is freed as before.
    Requests leave no cycles behind, and looking for some after every 700 objects takes 4 % of a
    busy processor.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS, *gc.get_threshold()[1:])
