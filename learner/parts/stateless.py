"""Parts without state of their own: zero-shot cosine, and values that other owners give."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from learner.parts.part import Array, Pairs, cosines

RESIDUAL, PAIR_MEMORY = "query_residual", "pair_memory"
CLIENT_COLUMNS = ("client_text", "client_attributes")
"""Columns of the client's affinity, `learner.parts.client_affinity`."""

OWN_ENCODER = "own_encoder"
"""Column of the encoder's logit for a task with a parent, beside that for the root."""

ENCODER_START, ZERO_SHOT_START = 0.25, 0.25
"""Coefficients before any sample: together they order items as the cosine does."""

TYPICAL_COSINE = 0.35


class Given:
    """Values that another owner's state gives: moving encoder, query residual, pair memory."""

    def __init__(self, name: str, start: float) -> None:
        """Name the column, and its coefficient before any sample."""
        self.columns: Mapping[str, float] = {name: start}
        self._name = name

    def predict(self, pairs: Pairs) -> Array:
        """Return the given values (1, N)."""
        return pairs.given[self._name][None, :]


class ZeroShot:
    """Cosine of the starting encoder: an anchor that no gradient reaches.

    Value: logit_scale (cosine - .35), the scale of the moving encoder's logit.
    """

    columns: Mapping[str, float] = {"zero_shot": ZERO_SHOT_START}

    def __init__(self, logit_scale: float) -> None:
        """Take the scale of the cosine."""
        self._scale = logit_scale

    def predict(self, pairs: Pairs) -> Array:
        """Return the scaled cosines (1, N)."""
        return np.asarray(self._scale * (cosines(pairs) - TYPICAL_COSINE))[None, :]
