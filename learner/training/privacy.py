"""DP-SGD on a stream: gradients of lists, each clipped, summed with Gaussian noise.

Abadi et al., CCS 2016, with a shown list as the unit, as its samples belong together. Of a step of
N samples, C the largest norm and s the noise multiplier:

    gradient  =  1/N ( sum over lists of g min(1, C / |g|)  +  s C z ),    z ~ Normal(0, 1)

g is the gradient of a list's summed losses over everything that moves; weights and discounts are
in its losses, so a list never counts for more than C, whatever its weights. N is the step's number
of samples, which the guarantee takes as known: neighbouring streams have the same steps, and in one
of them the gradients of one list are zero (zero-out neighbours; Kairouz et al., ICML 2021). Every
parameter has noise in every step, so which of them had a gradient tells nothing.

The noise is SHAKE-256 of a secret, the step, the noise's scale and the sum that it hides, through
the normal quantile function. So a learner that resumes has the same bits, and one that goes back
and learns something else from the same secret has fresh noise; a generator's state in the
checkpoint would give both the same noise, and their difference would show the gradients.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import torch
from scipy.special import ndtri

from learner.passes.device import moved
from learner.training import budget
from learner.training.budget import Budget, PrivacyConfig
from learner.training.contributions import Contributions
from learner.transfer import to_host
from weighting.sample import Sample

_KEY_BYTES = 32
_ROUNDING = 1e-6
"""Share by which a clipped gradient stays below its bound, for the rounding of its norm."""


class _Snapshot(msgspec.Struct, array_like=True):
    secret: bytes
    contributions: bytes


class Privacy:
    """Noise, bound on contributions and budget of a learner.

    Attributes:
        contributions: of the lists.
    """

    def __init__(self, config: PrivacyConfig, secret: Callable[[int], bytes]) -> None:
        """Start at step 0.

        Args:
            config: the settings, with noise.
            secret: gives that many bytes that nobody can guess.

        Raises:
            PrivacyUnsupported: opacus is not installed.
        """
        self._config = config
        self._secret = secret(_KEY_BYTES)
        self.contributions = Contributions(config.max_contributions)
        self._basis(config.noise_multiplier, config.max_contributions, since_step=0)

    def _basis(self, noise_multiplier: float, max_contributions: int, *, since_step: int) -> None:
        found = budget.epsilon(noise_multiplier, max_contributions, self._config.delta)
        self._budget = Budget(
            epsilon=found,
            delta=self._config.delta,
            noise_multiplier=noise_multiplier,
            max_norm=self._config.max_norm,
            max_contributions=max_contributions,
            since_step=since_step,
            num_dropped=0,
        )

    def budget(self) -> Budget:
        """Return the guarantee of each list up to now, and for as long as settings stay."""
        return msgspec.structs.replace(self._budget, num_dropped=self.contributions.num_dropped)

    def new_sum(self, parameters: Sequence[torch.nn.Parameter], num_samples: int) -> PrivateSum:
        """Return an empty sum for a step of N samples."""
        scale = self._config.max_norm / max(num_samples, 1)
        noise = self._config.noise_multiplier * scale
        return PrivateSum(parameters, max_norm=scale, noise=noise, secret=self._secret)

    def snapshot(self) -> bytes:
        """Return the state as msgpack; who has it can take the noise off."""
        return msgspec.msgpack.encode(_Snapshot(self._secret, self.contributions.snapshot()))

    def restore(self, data: bytes, found: Budget | None, *, step: int) -> None:
        """Go on from a version.

        Args:
            data: what `snapshot` returned, empty if there was no noise.
            found: the budget of then, None if there was no noise.
            step: of the version.

        Raises:
            ValueError: the data is none, or has no secret.
        """
        config = self._config
        if found is None:
            self._basis(config.noise_multiplier, config.max_contributions, since_step=step)
            return
        state = msgspec.msgpack.decode(data, type=_Snapshot)
        if len(state.secret) != _KEY_BYTES:
            raise ValueError(f"a secret of {len(state.secret)} bytes, expected {_KEY_BYTES}")
        self._secret = state.secret
        self.contributions.restore(state.contributions)
        self._basis(
            min(config.noise_multiplier, found.noise_multiplier),
            max(config.max_contributions, found.max_contributions),
            since_step=found.since_step,
        )


class PrivateSum:
    """Sum of clipped gradients, to which noise is added once."""

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        *,
        max_norm: float,
        noise: float,
        secret: bytes,
    ) -> None:
        """Start at zero.

        Args:
            parameters: all that moves, in a fixed order.
            max_norm: of each gradient over all parameters.
            noise: its standard deviation.
            secret: what the noise is drawn from.
        """
        self._parameters = parameters
        self._max_norm = max_norm
        self._noise = noise
        self._secret = secret
        self._sums = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def add(self) -> None:
        """Clip the gradient that the parameters have, add it, and drop it from them."""
        pairs = zip(self._parameters, self._sums, strict=True)
        given = [(p.grad, total) for p, total in pairs if p.grad is not None]
        if given:
            norm = torch.nn.utils.get_total_norm([g for g, _ in given])
            factor = (self._max_norm / (norm * (1 + _ROUNDING))).clamp_max(1.0)
            for gradient, total in given:
                total.addcmul_(gradient, factor)
        for p in self._parameters:
            p.grad = None

    @torch.no_grad()
    def finish(self, step: int) -> None:
        """Give every parameter its sum with noise as gradient."""
        hidden = hashlib.blake2b(key=self._secret)
        hidden.update(struct.pack("<qd", step, self._noise))
        for values in to_host(self._sums):  # the noise is a function of what it hides
            hidden.update(values.tobytes())
        for number, (p, total) in enumerate(zip(self._parameters, self._sums, strict=True)):
            seed = hidden.digest() + struct.pack("<q", number)
            z = torch.from_numpy(_normal(seed, total.numel())).view(total.shape)
            p.grad = total.add_(moved(z.to(total.dtype), total.device), alpha=self._noise)


def _normal(seed: bytes, number: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return standard normal numbers: quantiles of the midpoints of 2^53 equal parts of (0, 1)."""
    stream = np.frombuffer(hashlib.shake_256(seed).digest(8 * number), dtype="<u8")
    uniform = ((stream >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    found: np.ndarray[tuple[int], np.dtype[np.float64]] = ndtri(uniform)
    return found


def units_of(samples: Sequence[Sample], places: Sequence[int]) -> list[list[int]]:
    """Group places by list, in order; a sample without a list is alone."""
    units: dict[tuple[str, int], list[int]] = {}
    for i in places:
        list_id = samples[i].list_id
        units.setdefault((list_id, -1 if list_id else i), []).append(i)
    return list(units.values())
