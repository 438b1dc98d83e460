"""The encoder as it started: vectors that no training moves.

Legend: N texts, D width.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.encoder.device import beside
from learner.encoder.encoder import Encoder
from learner.encoder.prefix_cache import PrefixCache
from learner.encoder.tokens import Ids

_KEPT_BYTES = 128 << 20


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
        if not texts:
            return np.zeros((0, self._width), dtype=np.float32)
        with torch.no_grad():
            rows = self._kept.through(texts, lambda missing: self._copy(missing).cpu())
        return torch.stack(rows).numpy()
