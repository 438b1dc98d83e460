"""Exchange between processes before a step: samples, and vectors of the starting encoder.

Legend: N samples of all processes, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from learner.parts.part import Vectors
from learner.process_group import ProcessGroup
from learner.ranker import Ranker
from weighting.sample import Sample


def gather(group: ProcessGroup, samples: Sequence[Sample]) -> tuple[Sequence[Sample], range]:
    """Return all processes' samples, in rank order, and the places of our own."""
    if group.world == 1:
        return samples, range(len(samples))
    shares = [
        msgspec.msgpack.decode(data, type=list[Sample])
        for data in group.gather(msgspec.msgpack.encode(list(samples)))
    ]
    start = sum(len(share) for share in shares[: group.rank])
    return [s for share in shares for s in share], range(start, start + len(samples))


class StartingVectors:
    """The starting encoder's vectors of a step's texts; each process encodes its own samples.

    Attributes:
        unread: vectors on the device, to be read for `read`.
    """

    def __init__(self, ranker: Ranker, samples: Sequence[Sample]) -> None:
        """Let the device encode the texts of our own samples, without waiting for it."""
        self._ranker = ranker
        self._samples = samples
        texts = dict.fromkeys(text for s in samples for text in (s.query, s.text))
        self._rows = {text: row for row, text in enumerate(texts)}
        self._queued = ranker.queue_starting(list(texts))
        self.unread = self._queued.unread

    def read(self, group: ProcessGroup, vectors: Vectors) -> tuple[Vectors, Vectors]:
        """Return vectors (N, D) of queries and items of all processes.

        Args:
            group: the processes.
            vectors: what was `unread`, on the host.
        """
        distinct = self._ranker.starting.read(self._queued, vectors)
        queries = distinct[[self._rows[s.query] for s in self._samples]]
        items = distinct[[self._rows[s.text] for s in self._samples]]
        if group.world == 1:
            return queries, items
        shares = group.gather(np.stack([queries, items]).tobytes())
        width = self._ranker.encoder.width
        pieces = [np.frombuffer(d, np.float32).reshape(2, -1, width) for d in shares]
        queries, items = np.concatenate(pieces, axis=1)
        return queries, items
