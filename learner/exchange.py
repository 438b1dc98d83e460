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


def starting_vectors(
    group: ProcessGroup, ranker: Ranker, samples: Sequence[Sample], own: range
) -> tuple[Vectors, Vectors]:
    """Return the starting encoder's vectors (N, D) of queries and items.

    As with the scores, each process encodes its own samples.
    """
    mine = samples[own.start : own.stop]
    queries = ranker.starting_vectors([s.query for s in mine])
    items = ranker.starting_vectors([s.text for s in mine])
    if group.world == 1:
        return queries, items
    shares = group.gather(np.stack([queries, items]).tobytes())
    width = ranker.encoder.width
    pieces = [np.frombuffer(d, np.float32).reshape(2, -1, width) for d in shares]
    queries, items = np.concatenate(pieces, axis=1)
    return queries, items
