"""Weighted squared error of the value of what was bought."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Values(NamedTuple):
    """Columns (n,) of samples, of which those with a weight were bought for a known value.

    Attributes:
        target: what the head is to tell, in its units.
        weight: what the sample counts; 0 of all others.
    """

    target: Tensor
    weight: Tensor


class PaidValue:
    """Sum of w_i (z_i - t_i)^2 over samples (n,)."""

    def __call__(self, z: Tensor, values: Values) -> Tensor:
        """Return the sum, as a scalar."""
        return (values.weight * (z - values.target).square()).sum()
