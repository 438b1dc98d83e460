"""Registry of everything that learns online: how to make, ask, teach and measure each.

A new class that learns is added here; `test_online.py` fails until it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.divergence import LossWatch
from learner.evaluation import MAX_BLOCKS, Evaluation
from learner.residual import QueryResidual, ResidualConfig
from tests.weighting.streams import SECOND, Doc, sample
from weighting.estimators.calibration import Calibration, CalibrationConfig
from weighting.estimators.conditional import Conditional, ConditionalConfig
from weighting.estimators.delayed_positives import DelayedPositiveRate
from weighting.estimators.logistic import DiagonalLogistic
from weighting.estimators.prior import Prior, PriorConfig
from weighting.estimators.propensity import Propensity, PropensityConfig
from weighting.estimators.recursive import RecursiveLogistic
from weighting.estimators.stacker import Stacker
from weighting.estimators.task import TaskConfig, TaskEstimators
from weighting.features import FieldConfig
from weighting.sample import Sample
from weighting.tasks import CLICK, TASKS
from weighting.weigher import Weigher, WeigherConfig

Array = NDArray[np.float64]
SMALL = ConditionalConfig(fields=FieldConfig(hash_bits=6))
NUM_BUCKETS = 64 + 1 + 25
BUCKET_BYTES = 4 + 8 + 8
FEW = 250  # bytes of a state that has a fixed number of numbers
HOUR = 3600 * SECOND


class Case(ABC):
    """One class that learns, behind verbs that are the same for all.

    Example i is a dict of numbers, the same at every call; `learn` takes other values for some of
    them. All but the bounds is done through the class's public methods.

    Attributes:
        owner: the class.
        inputs: inputs that can be NaN, by the name with which they are refused.
        weightless: values of inputs with which an example must not change anything; {} if the
            class takes no weights.
        bound: largest `size` whatever is learned.
        num_distinct: examples after which the bound has been reached.
    """

    owner: ClassVar[type]
    inputs: ClassVar[tuple[str, ...]]
    weightless: ClassVar[Mapping[str, float]] = {"weight": 0.0}
    bound: ClassVar[int] = FEW
    num_distinct: ClassVar[int] = 300

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


def shown(i: int) -> Sample:
    """Example i as a sample; all are distinct."""
    s = sample(i % 2, position=i % 60 + 1, at=i * HOUR, offset=i)
    changes = {"query": f"query {i}", "item_id": f"item {i}", "text": f"text {i}"}
    return msgspec.structs.replace(s, **changes)


class PriorCase(Case):
    owner = Prior
    inputs = ("positive weight", "negative weight")
    weightless: ClassVar[Mapping[str, float]] = dict.fromkeys(inputs, 0.0)

    def make(self) -> Prior:
        return Prior(PriorConfig())

    def example(self, i: int) -> dict[str, float]:
        return {"positive weight": float(i % 3 == 0), "negative weight": float(i % 3 > 0)}

    def predict(self, model: Prior, i: int) -> Array:
        return np.array([model.get(), *model.interval(), model.maximum_likelihood()])

    def teach(self, model: Prior, i: int, values: Mapping[str, float]) -> None:
        model.update(at(i), one(values["positive weight"]), one(values["negative weight"]))


class DelayedPositiveRateCase(Case):
    owner = DelayedPositiveRate
    inputs = ("label",)
    weightless: ClassVar[Mapping[str, float]] = {"label": 0.0}  # negatives say nothing

    def make(self) -> DelayedPositiveRate:
        return DelayedPositiveRate(PriorConfig(initial=0.5))

    def predict(self, model: DelayedPositiveRate, i: int) -> Array:
        return one(model.get())

    def teach(self, model: DelayedPositiveRate, i: int, values: Mapping[str, float]) -> None:
        model.update(at(i), one(values["label"]), np.array([i % 3 == 0]))


class PropensityCase(Case):
    owner = Propensity
    inputs = ("label", "weight", "expected clicks")
    bound = 2 * 51 * 9 + FEW

    def make(self) -> Propensity:
        return Propensity(PropensityConfig())

    def example(self, i: int) -> dict[str, float]:
        return {**super().example(i), "expected clicks": 0.3}

    def predict(self, model: Propensity, i: int) -> Array:
        return model.get([None, *range(1, 80)])

    def teach(self, model: Propensity, i: int, values: Mapping[str, float]) -> None:
        label, weight = one(values["label"]), one(values["weight"])
        model.update([i + 2], label, weight, one(values["expected clicks"]))


class CalibrationCase(Case):
    owner = Calibration
    inputs = ("logit", "label", "weight")

    def make(self) -> Calibration:
        return Calibration(CalibrationConfig())

    def predict(self, model: Calibration, i: int) -> Array:
        return model.predict(one(self.example(i)["logit"]))

    def teach(self, model: Calibration, i: int, values: Mapping[str, float]) -> None:
        model.learn(at(i), *(one(values[name]) for name in self.inputs))


class RecursiveLogisticCase(Case):
    owner = RecursiveLogistic
    inputs = ("input 0", "input 1", "label", "weight")

    def make(self) -> RecursiveLogistic:
        return RecursiveLogistic((0.5, 0.5), (4.0, 4.0), (-5.0, -5.0), (5.0, 5.0))

    def predict(self, model: RecursiveLogistic, i: int) -> Array:
        example = self.example(i)
        return model.predict([one(example["input 0"]), one(example["input 1"])])

    def teach(self, model: RecursiveLogistic, i: int, values: Mapping[str, float]) -> None:
        x, z, y, w = (one(values[name]) for name in self.inputs)
        model.learn((x, z), y, w)


class StackerCase(Case):
    owner = Stacker
    inputs = ("encoder logit", "pair memory logit", "label", "weight")

    def make(self) -> Stacker:
        return Stacker()

    def predict(self, model: Stacker, i: int) -> Array:
        example = self.example(i)
        return model.get(one(example["encoder logit"]), one(example["pair memory logit"]))

    def teach(self, model: Stacker, i: int, values: Mapping[str, float]) -> None:
        model.learn(*(one(values[name]) for name in self.inputs))


class DiagonalLogisticCase(Case):
    owner = DiagonalLogistic
    inputs = ("field", "label", "weight", "examination")
    bound = NUM_BUCKETS * BUCKET_BYTES + FEW

    def make(self) -> DiagonalLogistic:
        return DiagonalLogistic(NUM_BUCKETS, offset=-1.0, effective_samples=50)

    def example(self, i: int) -> dict[str, float]:
        return {**super().example(i), "field": 1.0, "examination": 0.7}

    def predict(self, model: DiagonalLogistic, i: int) -> Array:
        return one(float(model.predict_proba_one(self._fields(i, 1.0), examination=0.7)[True]))

    def teach(self, model: DiagonalLogistic, i: int, values: Mapping[str, float]) -> None:
        label = values["label"]
        y: Any = bool(label) if label == label else label
        x = self._fields(i, values["field"])
        model.learn_one(x, y, w=values["weight"], examination=values["examination"])

    def _fields(self, i: int, value: float) -> dict[int, float]:
        return {0: 0.5, 1 + i % (NUM_BUCKETS - 1): value}


class ConditionalCase(Case):
    owner = Conditional
    inputs = ("label", "weight")
    bound = PropensityCase.bound + NUM_BUCKETS * BUCKET_BYTES + FEW

    def make(self) -> Conditional:
        return Conditional(SMALL, initial=0.1, with_position=True)

    def predict(self, model: Conditional, i: int) -> Array:
        return model.predict([shown(i)]).logit

    def teach(self, model: Conditional, i: int, values: Mapping[str, float]) -> Array:
        prediction = model.predict([shown(i)])
        model.learn(prediction, one(values["label"]), one(values["weight"]))
        return prediction.logit


class TaskEstimatorsCase(Case):
    owner = TaskEstimators
    inputs = ("label", "correction weight")
    weightless: ClassVar[Mapping[str, float]] = {"correction weight": 0.0}
    bound = ConditionalCase.bound + 3 * FEW

    def make(self) -> TaskEstimators:
        return TaskEstimators(TASKS[CLICK], TaskConfig(), SMALL, CalibrationConfig())

    def example(self, i: int) -> dict[str, float]:
        drawn = super().example(i)
        return {"label": drawn["label"], "correction weight": drawn["weight"]}

    def predict(self, model: TaskEstimators, i: int) -> Array:
        rates = model.prior.get(), model.delayed_positive_rate.get()
        return np.array([*model.predict([shown(i)])[1], *rates])

    def teach(self, model: TaskEstimators, i: int, values: Mapping[str, float]) -> Array:
        before = self.predict(model, i)
        prediction, _ = model.predict([shown(i)])
        label, correction = one(values["label"]), one(values["correction weight"])
        model.learn(at(i), prediction, label, np.array([i % 3 == 0]), correction)
        return before


class WeigherCase(Case):
    owner = Weigher
    inputs = ("label",)
    weightless: ClassVar[Mapping[str, float]] = {}  # it makes the weights
    bound = len(TASKS) * TaskEstimatorsCase.bound

    def make(self) -> Weigher:
        return Weigher(WeigherConfig(conditional=SMALL))

    def predict(self, model: Weigher, i: int) -> Array:
        s = shown(i)
        return model.pair_memory_logits(CLICK, s.query, [Doc(s.item_id, s.text, s.attributes)])

    def teach(self, model: Weigher, i: int, values: Mapping[str, float]) -> Array:
        label = values["label"]
        whole = int(label) if label == label else label
        return model.weigh([msgspec.structs.replace(shown(i), label=whole)]).pair_memory_logit


class QueryResidualCase(Case):
    owner = QueryResidual
    inputs = ("clicks", "exposure", "base logit", "item vector")
    weightless: ClassVar[Mapping[str, float]] = {"clicks": 0.0, "exposure": 0.0}
    config = ResidualConfig(max_queries=7, max_items=11)
    bound = config.max_queries * config.max_items
    num_distinct = 700

    def make(self) -> QueryResidual:
        return QueryResidual(3, self.config)

    def example(self, i: int) -> dict[str, float]:
        return {"clicks": i % 2, "exposure": 0.8, "base logit": -0.5, "item vector": 0.4}

    def predict(self, model: QueryResidual, i: int) -> Array:
        return model.get(self._query(i)).astype(np.float64)

    def teach(self, model: QueryResidual, i: int, values: Mapping[str, float]) -> None:
        vectors = np.array([[0.6, values["item vector"], 0.1 * (i % 5)]], dtype=np.float32)
        counts = [values["clicks"]], [values["exposure"]]
        model.learn(self._query(i), [f"item {i}"], vectors, one(values["base logit"]), *counts)

    def _query(self, i: int) -> str:
        return f"query {i // 40 % 9}"  # many items of one, then of the next

    def state(self, model: QueryResidual) -> bytes:
        counts, vectors = model.snapshot()
        return msgspec.msgpack.encode((counts, vectors.tobytes()))

    def restored(self, state: bytes) -> QueryResidual:
        counts, vectors = msgspec.msgpack.decode(state)
        model = self.make()
        model.restore(counts, np.frombuffer(vectors, dtype=np.float32).reshape(-1, 3))
        return model

    def size(self, model: QueryResidual) -> int:
        """Counted (query, item) pairs."""
        queries = msgspec.msgpack.decode(model.snapshot()[0])["queries"]
        return sum(len(counts) for _, counts in queries)


class EvaluationCase(Case):
    owner = Evaluation
    inputs = ("logit", "label", "prior")
    weightless: ClassVar[Mapping[str, float]] = {}  # every sample counts once
    bound = MAX_BLOCKS
    num_distinct = 64 * 300

    def make(self) -> Evaluation:
        return Evaluation()

    def example(self, i: int) -> dict[str, float]:
        return {"logit": i % 7 - 3.0, "label": float(i % 3 == 0), "prior": 0.3}

    def predict(self, model: Evaluation, i: int) -> Array:
        return np.array([*model.get().values(), *model.latest().values()])

    def teach(self, model: Evaluation, i: int, values: Mapping[str, float]) -> None:
        model.update(one(values["logit"]), one(values["label"]), prior=values["prior"])

    def size(self, model: Evaluation) -> int:
        """Blocks of samples."""
        return len(msgspec.msgpack.decode(model.snapshot())["blocks"])


class LossWatchCase(Case):
    owner = LossWatch
    inputs = ("loss",)
    weightless: ClassVar[Mapping[str, float]] = {"num_samples": 0.0}

    def make(self) -> LossWatch:
        return LossWatch()

    def example(self, i: int) -> dict[str, float]:
        return {"loss": 0.5 + 0.01 * (i % 3), "num_samples": 64.0}

    def predict(self, model: LossWatch, i: int) -> Array:
        return np.array([model.mean, model.variance])

    def teach(self, model: LossWatch, i: int, values: Mapping[str, float]) -> None:
        """Judge the step; one that is not finite three times, since two are let pass."""
        finite = values["loss"] == values["loss"]
        for step in range(1 if finite else 3):
            model.judge(i + step, values["loss"], num_samples=int(values["num_samples"]))

    def state(self, model: LossWatch) -> bytes:
        """All but the count of steps that were refused."""
        return msgspec.msgpack.encode(msgspec.structs.replace(model, num_nonfinite=0))

    def restored(self, state: bytes) -> LossWatch:
        return msgspec.msgpack.decode(state, type=LossWatch)


CASES = tuple(case() for case in Case.__subclasses__())
