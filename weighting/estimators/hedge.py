"""Hedge with fixed share: probabilities of experts from what each of them lost.

Legend: N experts, T rounds, l_t (N,) their losses in round t, pi_t (N,) their probabilities.

    pi'_t proportional to pi_t exp(-eta l_t);   pi_{t+1} = (1 - alpha) pi'_t + alpha / N

Freund and Schapire (1997) without alpha; Herbster and Warmuth (1998) with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weighting.checks import check_finite

Array = NDArray[np.float64]


class Hedge:
    """Probabilities of N experts, read before each round.

    The mix loss m_t = -1/eta log sum_i pi_t,i exp(-eta l_t,i) of T rounds is at most that of any
    sequence of experts with k changes plus `mix_regret`. With log losses and eta = 1, m_t is the
    loss of the mixture of the experts' predictions itself. With losses in [0, 1], the mean loss
    pi_t . l_t is at most m_t + eta / 8 (Hoeffding).

    >>> hedge = Hedge(2, rate=1.0, share=0.0)
    >>> hedge.update(np.array([0.0, 1.0]))
    >>> hedge.get().round(3).tolist()
    [0.731, 0.269]
    """

    def __init__(self, num_experts: int, *, rate: float, share: float) -> None:
        """Start with equal probabilities.

        Args:
            num_experts: N.
            rate: eta > 0, per unit of loss.
            share: alpha in [0, 1), what is handed round after each round.
        """
        self.rate = rate
        self.share = share
        self._log_pi: Array = np.full(num_experts, -math.log(num_experts))

    def get(self) -> Array:
        """Probabilities (N,). Pure."""
        pi: Array = np.exp(self._log_pi)
        return pi

    def log_probability(self) -> Array:
        """Logarithms (N,) of the probabilities. Pure."""
        return self._log_pi.copy()

    def mix_loss(self, losses: Array) -> float:
        """Mix loss m_t of the next round, before it is learned. Pure."""
        exponents = self._log_pi - self.rate * losses
        return -float(np.logaddexp.reduce(exponents)) / self.rate

    def update(self, losses: Array) -> None:
        """Learn the losses (N,) of a round.

        Raises:
            WeightError: a loss is NaN or infinite; nothing was learned.
        """
        check_finite("loss", losses)
        log_pi = self._log_pi - self.rate * losses
        log_pi = log_pi - np.logaddexp.reduce(log_pi)
        if self.share > 0:
            handed_round = math.log(self.share / len(log_pi))
            log_pi = np.logaddexp(log_pi + math.log1p(-self.share), handed_round)
        self._log_pi = log_pi

    def snapshot(self) -> dict[str, Any]:
        """State after the last `update`, as plain numbers."""
        return {"log_pi": self._log_pi.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`."""
        self._log_pi = np.array(state["log_pi"], dtype=np.float64)


def mix_regret(
    num_experts: int, num_rounds: int, *, rate: float, share: float, num_changes: int = 0
) -> float:
    """Bound of the mix loss less the loss of the best sequence of experts with k changes.

    -1/eta log of what the prior gives the sequence: (1 / N) (alpha / N)^k
    (1 - alpha + alpha / N)^(T - 1 - k). With k = alpha = 0 it is log(N) / eta, so for losses in
    [0, 1] the regret is at most log(N) / eta + eta T / 8: sqrt(T / 2 log N) at the best eta.

    >>> mix_regret(4, 1000, rate=0.5, share=0.0) == math.log(4) / 0.5
    True
    """
    stays = num_rounds - 1 - num_changes
    bound = math.log(num_experts) - stays * math.log1p(share / num_experts - share)
    if num_changes:
        bound -= num_changes * math.log(share / num_experts)
    return bound / rate


def best_rate(num_experts: int, num_rounds: int) -> float:
    """Rate eta = sqrt(8 log N / T) of the least bound for T rounds of losses in [0, 1]."""
    return math.sqrt(8 * math.log(num_experts) / num_rounds)
