"""Metric of the queries: directions in which all of them differ count for little.

Legend: N queries, D width.

With C the covariance of n queries, m their sum / (n + 100), which is their mean once they are
many, and c ten times the mean variance of a direction, a vector x becomes A (x - m) of length 1,
A' A = (C + c I)^-1: the metric of linear discriminant analysis (Fisher 1936), with C shrunk ten
elevenths of the way to a sphere. A product of two such vectors is a cosine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from learner import arithmetic
from learner.parts.part import Vectors
from weighting.checks import check_finite
from weighting.errors import SnapshotError

_SHRINKAGE = 10.0
"""c, in mean variances of a direction."""

_FIRST_QUERIES = 100.0
"""Before so many their mean may be one query, of which nothing would be left without it."""

_LEAST_VARIANCE = 1e-5
"""Below it, sums in single precision know nothing of directions."""


class QueryMetric:
    """Mean and covariance of queries, each counted as often as an item was shown for it.

    Products are torch's, which are the same for any number of rows (`learner.arithmetic`).

    >>> QueryMetric(2, most=1000.0).unit(np.array([[3.0, 4.0]], dtype=np.float32)).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """

    def __init__(self, width: int, *, most: float) -> None:
        """Start with no query: A is the identity, and m zero.

        Args:
            width: D.
            most: queries beyond which all sums are halved, so that newer ones can move them.
        """
        self._most = most
        self._number = 0.0
        self._sum = torch.zeros(width)
        self._products = torch.zeros(width, width)
        self._map: tuple[torch.Tensor, torch.Tensor] | None = None

    def learn(self, queries: Vectors) -> None:
        """Add N unit vectors (N, D).

        Raises:
            WeightError: a vector is not finite.
        """
        check_finite("query vector", queries.sum(axis=-1).astype(np.float64))
        if not len(queries):
            return
        u = torch.from_numpy(queries)
        self._number += len(queries)
        self._sum = self._sum + u.sum(dim=0)
        self._products = self._products + u.T @ u
        if self._number > self._most:
            self._number /= 2
            self._sum, self._products = self._sum / 2, self._products / 2
        self._map = None

    def unit(self, vectors: Vectors) -> Vectors:
        """Return A (x - m), of length 1, of vectors x (N, D). Pure."""
        if self._map is None:
            self._map = self._mean_and_map()
        mean, a = self._map
        return unit(arithmetic.product(torch.from_numpy(vectors) - mean, a.T).numpy())

    def _mean_and_map(self) -> tuple[torch.Tensor, torch.Tensor]:
        width = len(self._sum)
        mean = self._sum.double() / max(self._number, 1.0)
        covariance = self._products.double() / max(self._number, 1.0) - torch.outer(mean, mean)
        variance = float(covariance.diagonal().mean())
        if not variance > _LEAST_VARIANCE:
            return torch.zeros(width), torch.eye(width)
        eye = torch.eye(width, dtype=torch.float64)
        lower = torch.linalg.cholesky(covariance / variance + _SHRINKAGE * eye)
        inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
        shrunk = self._sum.double() / (self._number + _FIRST_QUERIES)
        return shrunk.float(), inverse.float()

    def snapshot(self) -> dict[str, Any]:
        """Return the sums, in single precision, little-endian."""
        return {
            "number": self._number,
            "sum": self._sum.numpy().astype("<f4").tobytes(),
            "products": self._products.numpy().astype("<f4").tobytes(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: a sum is not finite, or of another width.
        """
        width, number = len(self._sum), float(state["number"])
        sums = np.frombuffer(state["sum"], dtype="<f4").astype(np.float32)
        products = np.frombuffer(state["products"], dtype="<f4").astype(np.float32)
        found = len(sums), len(products)
        finite = np.isfinite(sums).all() and np.isfinite(products).all() and 0 <= number < np.inf
        if found != (width, width**2) or not finite:
            raise SnapshotError("metric", found, f"finite sums of width {width}")
        self._number = number
        self._sum = torch.from_numpy(sums)
        self._products = torch.from_numpy(products.reshape(width, width))
        self._map = None


def unit(vectors: Vectors) -> Vectors:
    """Return vectors (N, D) of length 1; zero stays zero."""
    length = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
    found: Vectors = vectors / np.maximum(length, np.float32(1e-9))
    return found
