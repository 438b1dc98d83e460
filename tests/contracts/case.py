"""One class that learns, behind verbs that are the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from tests.weighting.streams import SECOND

Array = NDArray[np.float64]
FEW = 250  # bytes of a state that has a fixed number of numbers
HOUR = 3600 * SECOND


class Case(ABC):
    """One class that learns, behind verbs that are the same for all.

    Example i is a dict of numbers, the same at every call; `learn` takes other values for some of
    them. All but the bounds is done through the class's public methods.

    Attributes:
        owner: the class.
        name: of the case, where one class has several; by default the class's.
        inputs: inputs that can be NaN, by the name with which they are refused.
        weightless: values of inputs with which an example must not change anything; {} if the
            class takes no weights.
        bound: largest `size` whatever is learned.
        num_distinct: examples after which the bound has been reached.
    """

    owner: ClassVar[type]
    name: str = ""
    inputs: ClassVar[tuple[str, ...]]
    weightless: ClassVar[Mapping[str, float]] = {"weight": 0.0}
    bound: ClassVar[int] = FEW
    num_distinct: ClassVar[int] = 300

    def __str__(self) -> str:
        return self.name or self.owner.__name__

    @abstractmethod
    def make(self) -> Any:
        """Make an untrained one."""

    @abstractmethod
    def predict(self, model: Any, i: int) -> Array:
        """Predict example i."""

    @abstractmethod
    def teach(self, model: Any, i: int, values: Mapping[str, float]) -> Array | None:
        """Learn example i; return what was predicted of it on the way, if anything was."""

    def learn(self, model: Any, i: int, changed: Mapping[str, float] | None = None) -> Array | None:
        return self.teach(model, i, {**self.example(i), **(changed or {})})

    def example(self, i: int) -> dict[str, float]:
        rng = np.random.default_rng(i)
        values = {name: float(rng.normal()) for name in self.inputs}
        drawn = {"label": float(rng.random() < 0.4), "weight": float(rng.uniform(0.2, 1))}
        return {**values, **drawn}

    def state(self, model: Any) -> bytes:
        snapshot = model.snapshot()
        return snapshot if isinstance(snapshot, bytes) else msgspec.msgpack.encode(snapshot)

    def restored(self, state: bytes) -> Any:
        model = self.make()
        as_bytes = isinstance(model.snapshot(), bytes)
        model.restore(state if as_bytes else msgspec.msgpack.decode(state))
        return model

    def size(self, model: Any) -> int:
        """Size of the state, in whatever the bound is stated in: bytes."""
        return len(self.state(model))


def at(i: int) -> NDArray[np.int64]:
    return np.array([i * HOUR], dtype=np.int64)


def one(value: float) -> Array:
    return np.array([value])
