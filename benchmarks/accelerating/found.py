"""What a check compared, and how two results differ."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

HALF, SINGLE = 2e-2, 1e-3
"""Tolerances, as shares of the largest number."""


class Found(NamedTuple):
    """What a check compared.

    Attributes:
        difference: largest, as a share of the largest number.
        tolerance: for it.
        note: anything else.
    """

    difference: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether it holds; a NaN does not."""
        return self.difference <= self.tolerance


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, as a share of the largest number."""
    found, expected = found.detach(), expected.detach()
    gap = (found.float() - expected.float()).abs().max()
    return float(gap / expected.float().abs().max().clamp_min(1e-12))
