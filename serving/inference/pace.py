"""Seconds that a batch takes, estimated online from the batches before it.

Legend: n documents of a batch, t seconds that it took.
"""

from __future__ import annotations

#: Weight that a batch keeps when the next one is learned: about ten batches count.
_DECAY = 0.9
#: Share of the newest estimate in the fixed share, which noise in `t` disturbs most.
_SHAPE_RATE = 0.2
#: Least coefficient of variation of n that tells the fixed part from the proportional one.
_LEAST_SPREAD = 0.1


class Pace:
    """Exponentially weighted least squares of t = fixed + per_document * n, both at least 0.

    Batches of one size cannot tell the two parts apart: then the level is learned, and the share
    of the fixed part stays as it is.

    >>> pace = Pace()
    >>> for n in (10, 20, 40, 20) * 20:
    ...     pace.learn(n, 0.05 + 0.001 * n)
    >>> round(pace.seconds(100), 2)
    0.15
    """

    def __init__(self, guess_seconds: float = 0.02) -> None:
        """Start with a guess of the seconds per document, forgotten with the first batch."""
        self._weight, self._n, self._t = 0.0, 1.0, guess_seconds
        self._nn, self._nt, self._fixed_share = 0.0, 0.0, 0.0

    def learn(self, num_documents: int, seconds: float) -> None:
        """Learn from one batch."""
        n, t = float(num_documents), max(seconds, 1e-9)
        if not self._weight:
            self._n = self._t = 0.0
        self._weight = self._weight * _DECAY + 1.0
        self._n, self._t = self._n * _DECAY + n, self._t * _DECAY + t
        self._nn, self._nt = self._nn * _DECAY + n * n, self._nt * _DECAY + n * t
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        variance = self._nn / self._weight - mean_n * mean_n
        if variance > (_LEAST_SPREAD * mean_n) ** 2:
            slope = (self._nt / self._weight - mean_n * mean_t) / variance
            share = min(1.0, max(0.0, 1.0 - slope * mean_n / mean_t))
            self._fixed_share += _SHAPE_RATE * (share - self._fixed_share)

    @property
    def fixed(self) -> float:
        """Seconds of a batch, however small it is."""
        return self._fixed_share * self._t / (self._weight or 1.0)

    @property
    def per_document(self) -> float:
        """Seconds that each further document costs; more than 0."""
        return max(1e-9, (1.0 - self._fixed_share) * self._t / self._n)

    def seconds(self, num_documents: float) -> float:
        """Return the seconds that a batch of so many documents should take."""
        return self.fixed + self.per_document * num_documents
