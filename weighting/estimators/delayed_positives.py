"""Delayed-positive rate S: the share of positive labels that arrive after their first copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weighting.checks import check_labels
from weighting.estimators.prior import Prior, PriorConfig

Array = NDArray[np.float64]


class DelayedPositiveRate:
    """Fading counts: S = delayed / (delayed + in-window), shrunk to the long run.

    Pure counting of what arrived: under growing traffic it lags behind a change of volume by up to
    the attribution window.
    """

    def __init__(self, config: PriorConfig) -> None:
        """Start at the assumed rate."""
        self._share = Prior(config)

    def get(self) -> float:
        """S, in (0, 1)."""
        return self._share.get()

    def update(self, time_us: NDArray[np.int64], label: Array, delayed: NDArray[np.bool_]) -> None:
        """Count N copies; negatives say nothing about S.

        Args:
            time_us: (N,) event times.
            label: (N,) labels.
            delayed: (N,) True for delayed positives.
        """
        check_labels(label)
        positive = label > 0
        if not positive.any():
            return
        is_delayed = delayed[positive].astype(np.float64)
        self._share.update(time_us[positive], is_delayed, 1 - is_delayed)

    def snapshot(self) -> dict[str, Any]:
        """State after the last update, as plain numbers."""
        return self._share.snapshot()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`."""
        self._share.restore(state)
