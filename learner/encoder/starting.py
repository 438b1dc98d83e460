"""The encoder as it started: vectors that no training moves.

Legend: N texts, D width.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.encoder.encoder import Encoder
from learner.encoder.prefix_cache import PrefixCache
from learner.passes.forward import Ids
from learner.passes.side_stream import beside
from learner.transfer import to_host

_KEPT_BYTES = 128 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Queued:
    """Vectors of N texts, some of them kept and the others on the device.

    Attributes:
        texts: their ids.
        kept: vectors (D,) on the host, None of those that were not kept.
        unread: (m, D) of these, in order, on the device.
    """

    texts: Sequence[Ids]
    kept: Sequence[Tensor | None]
    unread: Tensor


class StartingEncoder:
    """A copy of an encoder that stays behind when the encoder moves.

    It shares the frozen parameters, and what they made of a text, with the encoder; only those that
    move are copied. Vectors are kept per text.
    """

    def __init__(self, encoder: Encoder) -> None:
        """Copy what training moves, as it is now."""
        self._width = encoder.width
        moving = {id(p) for p in encoder.trainable_parameters()}
        shared = {id(p): p for p in encoder.model.parameters() if id(p) not in moving}
        self._names = [n for n, p in encoder.model.named_parameters() if id(p) in moving]
        self._copy = Encoder(
            copy.deepcopy(encoder.model, shared),
            tuning=encoder.tuning.name,
            pooling=encoder.pooling,
            cache=encoder.cache,
            passes=encoder.passes,
            precision=encoder.precision,
        )
        self._copy.requires_grad_(False)
        self._kept = PrefixCache(max_bytes=_KEPT_BYTES)

    def tensors(self) -> dict[str, Tensor]:
        """Return the starting values of the parameters that move, by name."""
        values = self._copy.model.state_dict()
        return {name: values[name] for name in self._names}

    def digest(self) -> str:
        """Return sha256 over the starting values."""
        digest = hashlib.sha256()
        for name, tensor in self.tensors().items():
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the starting values that `tensors` returned; drop the vectors kept."""
        if set(tensors) != set(self._names):
            raise ValueError(f"starting values: got {sorted(tensors)}, expected {self._names}")
        self._copy.model.load_state_dict(dict(tensors), strict=False)
        self._kept = PrefixCache(max_bytes=_KEPT_BYTES)

    def round_weights(self) -> None:
        """See `Encoder.round_weights`; `digest` can only be asked before."""
        self._copy.round_weights()

    def capture_ahead(self) -> None:
        """See `Encoder.capture_ahead`."""
        self._copy.capture_ahead()

    def encode_ahead(self, texts: Sequence[Ids], pairs: Sequence[Ids] = ()) -> None:
        """Encode all of texts that no training changes, and keep it; from any thread.

        Of pairs that is what the frozen layers make of them. It goes through this copy, so nothing
        of the encoder's own modules is touched, whatever a step does with them meanwhile.
        """
        with beside(self._copy.device):
            self._copy.keep_prefixes([*texts, *pairs])
            self.vectors(texts)

    def vectors(self, texts: Sequence[Ids]) -> NDArray[np.float32]:
        """Return unit vectors (N, D) of N texts' ids, on the host."""
        queued = self.queue(texts)
        return self.read(queued, *to_host([queued.unread]))

    def queue(self, texts: Sequence[Ids]) -> Queued:
        """Let the device encode what is not kept of N texts' ids, without waiting for it."""
        kept = [self._kept.get(ids) for ids in texts]
        missing = [ids for ids, vector in zip(texts, kept, strict=True) if vector is None]
        if not missing:
            return Queued(texts, kept, torch.zeros(0, self._width, device=self._copy.device))
        with torch.no_grad():
            return Queued(texts, kept, self._copy(missing))

    def read(self, queued: Queued, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return unit vectors (N, D) of queued texts; keep those that were not.

        Args:
            queued: by `queue`.
            vectors: its `unread`, on the host.
        """
        read = iter(torch.from_numpy(vectors))
        rows = []
        for ids, kept in zip(queued.texts, queued.kept, strict=True):
            row = next(read) if kept is None else kept
            if kept is None:
                self._kept.put(ids, row)
            rows.append(row)
        return torch.stack(rows).numpy() if rows else np.zeros((0, self._width), dtype=np.float32)
