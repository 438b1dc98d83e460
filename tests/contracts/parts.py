"""Parts of an object that keep a state, found by its references."""

from __future__ import annotations

import gc
from types import FunctionType, ModuleType


def stateful_parts(whole: object) -> list[object]:
    """Return everything with a snapshot that an object refers to, itself included."""
    seen, todo, found = {id(whole)}, [whole], []
    while todo:
        part = todo.pop()
        if hasattr(type(part), "snapshot"):
            found.append(part)
        for other in gc.get_referents(part):
            if id(other) not in seen and not isinstance(other, type | ModuleType | FunctionType):
                seen.add(id(other))
                todo.append(other)
    return found
