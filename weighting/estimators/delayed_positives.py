"""S: the share of positive labels that arrive after their first copy was emitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weighting.estimators.prior import Prior, PriorConfig

Array = NDArray[np.float64]


class ArrivalRatio:
    """S = L / (L + I): fading counts of late and in-window positives, shrunk to their long-run share.

    Pure counting of what arrived: under growing traffic it lags behind a change of volume by up to the attribution window.
    """

    def __init__(self, config: PriorConfig) -> None:
        """Start at the assumed share of late positives."""
        self._share = Prior(config)

    def get(self) -> float:
        """S, in (0, 1)."""
        return self._share.get()

    def update(self, time_us: NDArray[np.int64], label: Array, late: NDArray[np.bool_]) -> None:
        """Count N copies: event times (N,), labels (N,), and which of them are late positives (N,). Negatives say nothing about S."""
        positive = label > 0
        self._share.update(
            time_us[positive],
            late[positive].astype(np.float64),
            (~late[positive]).astype(np.float64),
        )

    def snapshot(self) -> dict[str, Any]:
        """State after the last update, as plain numbers."""
        return self._share.snapshot()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume after the update that the snapshot was taken behind."""
        self._share.restore(state)
