"""Least recently used cache of what frozen layers made of a text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from cachetools import LRUCache
from torch import Tensor

from learner.passes.forward import Ids
from learner.passes.side_stream import given, taken

_ENTRY_BYTES = 900
"""Measured, beside numbers and key: objects of Python and torch, entries of the cache's tables."""


def num_bytes(ids: Ids, tensor: Tensor) -> int:
    """Return the memory that a tensor and its key take in a cache."""
    return tensor.nbytes + ids.nbytes + _ENTRY_BYTES


class PrefixCache:
    """Tensors by the token ids of their text.

    Versions with equal frozen layers share one, and threads may use it together. A tensor stays on
    the device where it was computed.
    """

    def __init__(self, max_bytes: int = 512 << 20) -> None:
        """Keep at most `max_bytes`, keys included; the least recently used tensor leaves first."""
        self._kept: LRUCache[bytes, tuple[Tensor, int]] = LRUCache(
            max_bytes, getsizeof=lambda kept: kept[1]
        )
        self._lock = threading.Lock()

    def get(self, ids: Ids) -> Tensor | None:
        """Return the tensor kept for these ids, or None."""
        with self._lock:
            kept = self._kept.get(ids.tobytes())
        return None if kept is None else kept[0]

    def put(self, ids: Ids, tensor: Tensor) -> None:
        """Keep a copy of a tensor, unless it alone is larger than the cache."""
        self._put([ids], [tensor])

    def _put(self, texts: Sequence[Ids], tensors: Sequence[Tensor]) -> None:
        sizes = map(num_bytes, texts, tensors)
        pairs = zip(texts, tensors, sizes, strict=True)
        kept = [(ids, own.clone(), size) for ids, own, size in pairs if size <= self.max_bytes]
        given([copy for _, copy, _ in kept])
        with self._lock:
            for ids, copy, size in kept:
                self._kept.setdefault(ids.tobytes(), (copy, size))

    @property
    def max_bytes(self) -> int:
        """Memory that all texts may take."""
        return int(self._kept.maxsize)

    @property
    def num_bytes(self) -> int:
        """Memory that all texts kept take."""
        with self._lock:
            return int(self._kept.currsize)

    def texts(self) -> list[Ids]:
        """Return the ids of all texts kept, those that came last first."""
        with self._lock:
            keys = list(self._kept)
        return [np.frombuffer(key, dtype=np.int64).copy() for key in reversed(keys)]

    def through(
        self, texts: Sequence[Ids], compute: Callable[[Sequence[Ids]], Iterable[Tensor]]
    ) -> list[Tensor]:
        """Return one tensor per text, computing those that are not kept in one call."""
        found = [self.get(ids) for ids in texts]
        taken([tensor for tensor in found if tensor is not None])
        missing = [i for i, tensor in enumerate(found) if tensor is None]
        if missing:
            computed = list(compute([texts[i] for i in missing]))
            self._put([texts[i] for i in missing], computed)
            for i, tensor in zip(missing, computed, strict=True):
                found[i] = tensor
        return [tensor for tensor in found if tensor is not None]
