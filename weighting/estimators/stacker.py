"""Stacking of the encoder's logit and the pair memory's into one served logit.

Two coefficients and an intercept, learned from predictions made before either part learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from weighting.checks import check_finite, check_labels, check_weights, drop_weightless
from weighting.constraints import Positive, check, check_order
from weighting.errors import SnapshotError
from weighting.estimators.recursive import RecursiveLogistic

Array = NDArray[np.float64]
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StackerConfig:
    """Start and bounds of the stacker, and how long it remembers.

    With a + b = 1 the served logit is the two parts' mean: calibrated if they are. What is shown
    was chosen by the shop's own search, so among shown items the encoder looks less telling than
    among all: a regression on them alone would switch it off. Hence `least_encoder`.
    """

    encoder: Annotated[Positive, Meta(description="a before any sample.")] = 0.5
    pair_memory: Annotated[Positive, Meta(description="b before any sample.")] = 0.5
    deviation: Annotated[
        Positive, Meta(description="Standard deviation of a and b around that.")
    ] = 0.5
    intercept_deviation: Annotated[
        Positive, Meta(description="Standard deviation of c around 0, in logits.")
    ] = 2.0
    least_encoder: Annotated[Positive, Meta(description="Smallest a.")] = 0.2
    least: Annotated[Positive, Meta(description="Smallest b.")] = 0.01
    largest: Annotated[Positive, Meta(description="Largest a and b.")] = 50.0
    half_life_samples: Annotated[
        Positive, Meta(description="Samples after which what was learned counts half.")
    ] = 20_000.0

    def __post_init__(self) -> None:
        """Check every field, and that both starts are within their bounds."""
        check(self, "stacker")
        check_order(self, "stacker", "least_encoder", "encoder")
        check_order(self, "stacker", "least", "pair_memory")
        for start in ("encoder", "pair_memory"):
            check_order(self, "stacker", start, "largest")


class Stacker:
    """Served logit = a encoder + b pair_memory + c, with a, b > 0.

    `learn` takes the pair memory's logit where the sample was shown and the encoder's as if shown
    first, before either part learned it: the position comes in through the pair memory alone.
    `get` takes both as if shown first.

    >>> Stacker().get(np.array([2.0]), np.array([-1.0])).tolist()
    [0.5]
    """

    def __init__(self, config: StackerConfig | None = None) -> None:
        """Start at the configured mixture."""
        self.config = c = config or StackerConfig()
        self._model = RecursiveLogistic(
            mean=(c.encoder, c.pair_memory, 0.0),
            precision=(c.deviation**-2, c.deviation**-2, c.intercept_deviation**-2),
            low=(c.least_encoder, c.least, -50.0),
            high=(c.largest, c.largest, 50.0),
        )

    def coefficients(self) -> tuple[float, float, float]:
        """a, b and c."""
        a, b, c = self._model.mean
        return float(a), float(b), float(c)

    def get(self, encoder_logit: Array, pair_memory_logit: Array) -> Array:
        """Stacked logits (N,) of two parts' logits (N,). Pure."""
        return self._model.predict(_columns(encoder_logit, pair_memory_logit))

    def learn(
        self, encoder_logit: Array, pair_memory_logit: Array, label: Array, weight: Array
    ) -> None:
        """Learn N samples at once; order within the call does not count.

        Args:
            encoder_logit: (N,) logits of the encoder.
            pair_memory_logit: (N,) logits of the pair memory.
            label: (N,) labels, 0 to 1.
            weight: (N,) weights >= 0.
        """
        encoder, pair_memory, label, weight = (
            np.asarray(column, np.float64)
            for column in (encoder_logit, pair_memory_logit, label, weight)
        )
        check_finite("encoder logit", encoder)
        check_finite("pair memory logit", pair_memory)
        check_labels(label)
        check_weights("weight", weight)
        encoder, pair_memory, label, weight = drop_weightless(
            weight, encoder, pair_memory, label, weight
        )
        if not len(label):
            return
        keep = 2.0 ** (-len(label) / self.config.half_life_samples)
        self._model.learn(_columns(encoder, pair_memory), label, weight, keep=keep)

    def snapshot(self) -> bytes:
        """State after the last `learn`, as msgpack; equal state gives equal bytes."""
        state = {"format": FORMAT, "model": self._model.snapshot()}
        return msgspec.msgpack.encode(state, order="sorted")

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: the bytes are not such a snapshot.
        """
        try:
            state = msgspec.msgpack.decode(data)
            if state["format"] != FORMAT:
                raise SnapshotError("format", state["format"], FORMAT)
            self._model.restore(state["model"])
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise SnapshotError("stacker", repr(error), "a stacker's snapshot") from error


def _columns(encoder_logit: Array, pair_memory_logit: Array) -> tuple[Array, Array, Array]:
    encoder = np.asarray(encoder_logit, dtype=np.float64)
    return encoder, np.asarray(pair_memory_logit, dtype=np.float64), np.ones_like(encoder)
