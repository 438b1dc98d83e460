"""Several entries under one key, in order of adding; every operation is amortised constant.

Most keys have one entry, which is held without a container. A few are in a list, many in a linked
hash table. So memory is small for the usual key, and no key makes adding or removing slow.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Reversible
from typing import Any, Generic, TypeVar

_K = TypeVar("_K")
_E = TypeVar("_E")

#: The longest list; searching it costs less than hashing.
_MAX_LISTED = 16


class Multimap(Generic[_K, _E]):
    """Entries by key; an entry is hashable by identity, and neither a list nor a dictionary."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        """Begin empty."""
        self._held: dict[_K, Any] = {}

    def __bool__(self) -> bool:
        """Return whether there is any entry."""
        return bool(self._held)

    def __iter__(self) -> Iterator[_K]:
        """Iterate over the keys."""
        return iter(self._held)

    def add(self, key: _K, entry: _E) -> None:
        """Add an entry as the newest of its key."""
        held = self._held.setdefault(key, entry)
        if held is entry:
            return
        if held.__class__ is OrderedDict:
            held[entry] = None
        elif held.__class__ is not list:
            self._held[key] = [held, entry]
        elif len(held) < _MAX_LISTED:
            held.append(entry)
        else:
            self._held[key] = OrderedDict.fromkeys((*held, entry))

    def remove(self, key: _K, entry: _E) -> None:
        """Remove an entry that is there."""
        held = self._held[key]
        if held is entry:
            del self._held[key]
            return
        if held.__class__ is OrderedDict:
            del held[entry]
        else:
            held.remove(entry)
        if len(held) == 1:
            self._held[key] = next(iter(held))

    def newest(self, key: _K) -> _E | None:
        """Return the entry added last."""
        return next(self.newest_first(key), None)

    def newest_first(self, key: _K) -> Iterator[_E]:
        """Iterate over the entries of a key, the newest first."""
        return reversed(self._of(key))

    def oldest_first(self, key: _K) -> Iterator[_E]:
        """Iterate over the entries of a key, the oldest first."""
        return iter(self._of(key))

    def _of(self, key: _K) -> Reversible[_E]:
        held = self._held.get(key)
        if held is None:
            return ()
        entries: Reversible[_E] = held if held.__class__ in (list, OrderedDict) else (held,)
        return entries
