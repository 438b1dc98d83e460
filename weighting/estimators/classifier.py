"""Interface of the models that can stand for p(y|x)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from river import base


class Classifier(Protocol):
    """Binary classifier over hashed fields, under the position-based likelihood.

    P(y=1 | x, t) = t r(x), t the probability that the sample was examined. It ends the river
    pipeline of `Conditional`, so it is a `river.base.Classifier` as well.
    """

    def logit_one(self, x: Mapping[int, float]) -> float:
        """Logit of r(x), as if examined for certain. Pure; possible before any learning."""

    def known(self, *keys: int) -> float:
        """Share of the prior variance of the last key's effect that samples took away.

        0 when never learned, or when any of the others never was; towards 1 with many samples.
        Pure.
        """

    def learn_one(
        self,
        x: dict[Any, Any],
        y: base.typing.ClfTarget,
        w: float = 1.0,
        examination: float = 1.0,
        time_us: int | None = None,
    ) -> None:
        """Learn one sample of weight w >= 0, examined with a probability in (0, 1].

        Raises:
            WeightError: an input is NaN or out of range; nothing was learned.
        """

    def snapshot(self) -> dict[str, Any]:
        """State after the last sample, as plain numbers and bytes."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: it was taken with other settings, or does not fit.
        """
