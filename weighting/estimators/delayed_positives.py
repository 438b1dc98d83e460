"""Delayed-positive rate S: the share of positive labels that arrive after their first copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weighting.checks import LABEL, check_labels, check_one
from weighting.estimators.prior import Array, Prior, PriorConfig, Times


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

    def update(self, time_us: int, label: float, delayed: bool) -> None:
        """Count one copy; a negative says nothing about S.

        Args:
            time_us: its event time.
            label: its label.
            delayed: whether it is a delayed positive.
        """
        check_one("label", label, 0 <= label <= 1, LABEL)
        if label > 0:
            self._share.update(time_us, float(delayed), float(not delayed))

    def update_many(self, time_us: Times, label: Array, delayed: NDArray[np.bool_]) -> None:
        """Count N copies, from columns (N,); see `update`."""
        check_labels(label)
        counted = label > 0
        late = delayed[counted].astype(np.float64)
        self._share.update_many(time_us[counted], late, 1 - late)

    def snapshot(self) -> dict[str, Any]:
        """State after the last update, as plain numbers."""
        return self._share.snapshot()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`."""
        self._share.restore(state)
