"""Everything in `weighting` that learns, as cases of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np

from tests.contracts.case import FEW, HOUR, Array, Case, at, one
from tests.weighting.streams import Doc, sample
from weighting.caps import Caps, CapsConfig
from weighting.competition import Competition, CompetitionConfig
from weighting.config import WeigherConfig
from weighting.estimators.attribute_choice import AttributeChoice, AttributeChoiceConfig
from weighting.estimators.calibration import Calibration, CalibrationConfig
from weighting.estimators.choice import Choice
from weighting.estimators.classifier import Classifier
from weighting.estimators.coefficient_table import OWN
from weighting.estimators.conditional import Conditional, ConditionalConfig
from weighting.estimators.conditional_logit import ConditionalLogit
from weighting.estimators.delayed_positives import DelayedPositiveRate
from weighting.estimators.drift import DriftConfig, DriftDetector, DriftWatch
from weighting.estimators.hedge import Hedge
from weighting.estimators.joint_conditional import JointConditional
from weighting.estimators.joint_logistic import JointLogistic
from weighting.estimators.joint_task import JointTaskEstimators
from weighting.estimators.logistic import DiagonalLogistic
from weighting.estimators.models import make_model
from weighting.estimators.normaliser import Normaliser
from weighting.estimators.prior import Prior, PriorConfig
from weighting.estimators.propensity import Propensity, PropensityConfig, places
from weighting.estimators.recursive import RecursiveLogistic
from weighting.estimators.river_model import RiverModel
from weighting.estimators.stacker import Stacker
from weighting.estimators.stand_in import StandIns
from weighting.estimators.task import Estimates, TaskConfig, TaskEstimators
from weighting.features import FieldConfig
from weighting.field_columns import Columns
from weighting.joint_caps import JointCaps
from weighting.sample import Attribute, Sample
from weighting.tasks import CLICK, TASKS
from weighting.weigher import Weigher

SMALL = ConditionalConfig(fields=FieldConfig(hash_bits=6))
SMALL_CAPS = CapsConfig(hash_bits=8, client_item=1.0)
NUM_ROWS = 64 + 1 + 25
ROW_BYTES = 4 + 4 + 8 + 8 + 8


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
        now = int(at(i)[0])
        model.update(now, values["positive weight"], values["negative weight"])


class PriorOfManyCase(PriorCase):
    name = "Prior of many"

    def teach(self, model: Prior, i: int, values: Mapping[str, float]) -> None:
        model.update_many(at(i), one(values["positive weight"]), one(values["negative weight"]))


class DelayedPositiveRateCase(Case):
    owner = DelayedPositiveRate
    inputs = ("label",)
    weightless: ClassVar[Mapping[str, float]] = {"label": 0.0}  # negatives say nothing

    def make(self) -> DelayedPositiveRate:
        return DelayedPositiveRate(PriorConfig(initial=0.5))

    def predict(self, model: DelayedPositiveRate, i: int) -> Array:
        return one(model.get())

    def teach(self, model: DelayedPositiveRate, i: int, values: Mapping[str, float]) -> None:
        model.update(int(at(i)[0]), values["label"], i % 3 == 0)


class DelayedPositiveRateOfManyCase(DelayedPositiveRateCase):
    name = "DelayedPositiveRate of many"

    def teach(self, model: DelayedPositiveRate, i: int, values: Mapping[str, float]) -> None:
        model.update_many(at(i), one(values["label"]), np.array([i % 3 == 0]))


class PropensityCase(Case):
    owner = Propensity
    inputs = ("label", "weight", "expected clicks")
    bound = 2 * 51 * 9 + FEW

    def make(self) -> Propensity:
        return Propensity(PropensityConfig())

    def example(self, i: int) -> dict[str, float]:
        return {**super().example(i), "expected clicks": 0.3}

    def predict(self, model: Propensity, i: int) -> Array:
        return np.array([model.get(k) for k in (None, *range(1, 80))])

    def teach(self, model: Propensity, i: int, values: Mapping[str, float]) -> None:
        label, weight = values["label"], values["weight"]
        model.update(int(at(i)[0]), i + 2, label, weight, values["expected clicks"])


class PropensityOfManyCase(PropensityCase):
    name = "Propensity of many"

    def teach(self, model: Propensity, i: int, values: Mapping[str, float]) -> None:
        columns = (one(values[name]) for name in self.inputs)
        model.update_many(at(i), places([i + 2]), *columns)


class NormaliserCase(Case):
    owner = Normaliser
    inputs = ("correction weight",)
    weightless: ClassVar[Mapping[str, float]] = {"correction weight": 0.0}

    def make(self) -> Normaliser:
        return Normaliser("running", half_life_samples=50.0)

    def example(self, i: int) -> dict[str, float]:
        return {"correction weight": super().example(i)["weight"]}

    def predict(self, model: Normaliser, i: int) -> Array:
        return one(model.get())

    def teach(self, model: Normaliser, i: int, values: Mapping[str, float]) -> Array:
        correction = one(values["correction weight"])
        return model.update(correction, (0.5 + i % 5) * correction)


class CalibrationCase(Case):
    owner = Calibration
    inputs = ("logit", "label", "weight")

    def make(self) -> Calibration:
        return Calibration(CalibrationConfig())

    def predict(self, model: Calibration, i: int) -> Array:
        return model.predict(one(self.example(i)["logit"]))

    def teach(self, model: Calibration, i: int, values: Mapping[str, float]) -> None:
        model.learn_one(int(at(i)[0]), *(values[name] for name in self.inputs))


class CalibrationOfManyCase(CalibrationCase):
    name = "Calibration of many"

    def teach(self, model: Calibration, i: int, values: Mapping[str, float]) -> None:
        model.learn_many(at(i), *(one(values[name]) for name in self.inputs))


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


class ConditionalLogitCase(Case):
    owner = ConditionalLogit
    inputs = ("input 0", "input 1", "choice", "offset")
    weightless: ClassVar[Mapping[str, float]] = {"choice": 0.0}

    def make(self) -> ConditionalLogit:
        return ConditionalLogit(mean=[0.5, 0.5], precision=[4.0, 4.0])

    def example(self, i: int) -> dict[str, float]:
        return {**super().example(i), "choice": 0.8}

    def predict(self, model: ConditionalLogit, i: int) -> Array:
        values = self.example(i)
        inputs = np.array([[values[name], 0.3] for name in ("input 0", "input 1")])
        return model.probabilities(inputs, np.zeros(2), np.zeros(2, dtype=np.intp))

    def teach(self, model: ConditionalLogit, i: int, values: Mapping[str, float]) -> None:
        inputs = np.array([[values[name], 0.3] for name in ("input 0", "input 1")])
        offset, lists = np.array([values["offset"], 0.0]), np.zeros(2, dtype=np.intp)
        model.learn(inputs, np.array([values["choice"], 0.0]), offset, lists, keep=0.99)


class AttributeChoiceCase(Case):
    owner = AttributeChoice
    inputs = ("label", "weight", "exposure", "examination", "logit")
    weightless: ClassVar[Mapping[str, float]] = {"weight": 0.0, "exposure": 0.0}
    bound = 64 * 32 + 9 * 33 * 34 + 4 * FEW  # rows, and what is known of 33 coefficients

    def make(self) -> AttributeChoice:
        return AttributeChoice(AttributeChoiceConfig(hash_bits=6))

    def example(self, i: int) -> dict[str, float]:
        values = {"label": float(i % 3 == 0), "weight": 0.9, "exposure": 0.8}
        return {**values, "examination": 0.7, "logit": 0.1 * (i % 5) - 2}

    def predict(self, model: AttributeChoice, i: int) -> Array:
        found: Array = np.nan_to_num(model.predict(*self._list(i)))
        return found

    def teach(self, model: AttributeChoice, i: int, values: Mapping[str, float]) -> None:
        model.learn(
            *self._list(i),
            label=np.array([values["label"], 0.0]),
            weight=np.full(2, values["weight"]),
            exposure=np.full(2, values["exposure"]),
            examination=np.full(2, values["examination"]),
            logit=np.array([values["logit"], -2.0]),
            lists=np.zeros(2, dtype=np.intp),
            time_us=np.full(2, int(at(i)[0])),
        )

    def _list(self, i: int) -> tuple[list[str], list[dict[str, Attribute]]]:
        """Two items; brands, names of attributes and words are many, so that rows change hands."""
        brands = [{"brand": f"brand {j % 60}", f"name {i % 30}": "x"} for j in (i, i + 7)]
        return [f"word{i % 70} shoe"] * 2, [dict(own) for own in brands]


class StackerCase(Case):
    owner = Stacker
    inputs = ("label", "weight", "examination")  # NaN of a part is silence
    bound = 2 * FEW

    def make(self) -> Stacker:
        return Stacker({"encoder": 0.5, "memory": 0.5})

    def example(self, i: int) -> dict[str, float]:
        return {**super().example(i), "examination": 0.5, "encoder": i % 5 - 2.0, "memory": 0.1 * i}

    def parts(self, values: Mapping[str, float]) -> Array:
        return np.array([[values["encoder"], 1.0], [values["memory"], 0.5]])

    def predict(self, model: Stacker, i: int) -> Array:
        return model.get(self.parts(self.example(i)))

    def teach(self, model: Stacker, i: int, values: Mapping[str, float]) -> None:
        label, weight = np.array([values["label"], 0.0]), np.full(2, values["weight"])
        lists = np.zeros(2, dtype=np.intp)
        model.learn(
            self.parts(values), label, weight, np.array([values["examination"], 1.0]), lists
        )


class DiagonalLogisticCase(Case):
    owner = DiagonalLogistic
    inputs = ("field", "label", "weight", "examination")
    bound = NUM_ROWS * ROW_BYTES + FEW

    def make(self) -> DiagonalLogistic:
        return DiagonalLogistic(6, 26, offset=-1.0, half_life_seconds=50 * 3600)

    def example(self, i: int) -> dict[str, float]:
        return {**super().example(i), "field": 1.0, "examination": 0.7}

    def predict(self, model: DiagonalLogistic, i: int) -> Array:
        return one(float(model.predict_proba_one(self._fields(i, 1.0), examination=0.7)[True]))

    def teach(self, model: DiagonalLogistic, i: int, values: Mapping[str, float]) -> None:
        label = values["label"]
        y: Any = bool(label) if label == label else label
        x = self._fields(i, values["field"])
        w, t, now = values["weight"], values["examination"], int(at(i)[0])
        model.learn_one(x, y, w=w, examination=t, time_us=now)

    def _fields(self, i: int, value: float) -> dict[int, float]:
        return {OWN: 0.5, OWN + 1 + i % 25: value, i: value}


class JointLogisticCase(DiagonalLogisticCase):
    """A batch of two, of which the second is known."""

    name = "JointLogistic"

    def make(self) -> JointLogistic:
        return JointLogistic(6, 26, offset=-1.0, half_life_seconds=50 * 3600)

    def teach(self, model: DiagonalLogistic, i: int, values: Mapping[str, float]) -> None:
        assert isinstance(model, JointLogistic)
        fields = self._fields(i, values["field"])
        x = Columns(
            keys=np.array([*fields, *fields], dtype=np.uint64),
            values=np.array([*fields.values()] * 2),
            sample=np.array([0, 0, 0, 1, 1, 1]),
            query=np.array([0, 3]),
            pair=np.array([2, 5]),
        )
        label, weight = np.array([values["label"], 0.0]), np.full(2, values["weight"])
        t = np.array([values["examination"], 0.5])
        model.learn_many(x, model.rows_many(x), label, weight, t, at(i).repeat(2))


class ConditionalCase(Case):
    owner = Conditional
    inputs = ("label", "weight")
    bound = PropensityCase.bound + NUM_ROWS * ROW_BYTES + FEW

    def make(self) -> Conditional:
        return Conditional(SMALL, initial=0.1, with_position=True)

    def predict(self, model: Conditional, i: int) -> Array:
        return one(model.predict([shown(i)])[0].logit)

    def teach(self, model: Conditional, i: int, values: Mapping[str, float]) -> Array:
        predictions = model.predict([shown(i)])
        model.learn(predictions, [values["label"]], [values["weight"]])
        return one(predictions[0].logit)


class JointConditionalCase(ConditionalCase):
    name = "JointConditional"

    def make(self) -> JointConditional:
        return JointConditional(SMALL, initial=0.1, with_position=True)

    def predict(self, model: Conditional, i: int) -> Array:
        assert isinstance(model, JointConditional)
        return model.predict_many([shown(i)]).logit

    def teach(self, model: Conditional, i: int, values: Mapping[str, float]) -> Array:
        assert isinstance(model, JointConditional)
        predictions = model.predict_many([shown(i)])
        model.learn_many(predictions, one(values["label"]), one(values["weight"]))
        return predictions.logit


class HedgeCase(Case):
    owner = Hedge
    inputs = ("loss",)
    weightless: ClassVar[Mapping[str, float]] = {}

    def make(self) -> Hedge:
        return Hedge(2, rate=0.5, share=0.01)

    def predict(self, model: Hedge, i: int) -> Array:
        return model.get()

    def teach(self, model: Hedge, i: int, values: Mapping[str, float]) -> None:
        model.update(np.array([values["loss"], 0.1 * i]))


class ChoiceCase(Case):
    owner = Choice
    inputs = ("log probability",)
    weightless: ClassVar[Mapping[str, float]] = {"log probability": -9.0, "weight": 0.0}

    def make(self) -> Choice:
        return Choice(margin=1.0, min_samples=5)

    def predict(self, model: Choice, i: int) -> Array:
        return one(model.expert)

    def example(self, i: int) -> dict[str, float]:
        return {"log probability": -0.1, "weight": 1.0} if i < 10 else super().example(i)

    def teach(self, model: Choice, i: int, values: Mapping[str, float]) -> None:
        probabilities = np.array([-2.0, values["log probability"]])
        if values["weight"] == 0:
            probabilities = np.zeros(2)
        model.update(probabilities, values["weight"])


class StandInsCase(Case):
    owner = StandIns
    inputs = ("product", "label", "weight", "examination")
    bound = 2 * 2 * 6 * 8 + FEW

    def make(self) -> StandIns:
        return StandIns(2, level=-1.0, half_life_samples=50.0)

    def example(self, i: int) -> dict[str, float]:
        return {**super().example(i), "product": 0.1 * (i % 7 - 3), "examination": 0.8}

    def products(self, value: float) -> Array:
        return np.array([[value, 0.1, -0.2, 0.3]])

    def predict(self, model: StandIns, i: int) -> Array:
        return model.predict(self.products(self.example(i)["product"])).ravel()

    def teach(self, model: StandIns, i: int, values: Mapping[str, float]) -> None:
        weight = np.array([[values["weight"]], [0.5 * values["weight"]]])
        label, examination = one(values["label"]), one(values["examination"])
        model.learn(self.products(values["product"]), label, weight, examination)


class CompetitionCase(Case):
    """Its own weigher weighs the samples, from a state that does not move."""

    owner = Competition
    inputs = ("product",)
    weightless: ClassVar[Mapping[str, float]] = {}
    bound = 2 * 2 * 2 * 6 * 8 + 10 * FEW

    def make(self) -> Competition:
        config = CompetitionConfig(
            candidates="uniform, ratio:1", min_samples=3.0, margin=1e-3, share=1e-3
        )
        return Competition(config, dict.fromkeys(TASKS, -1.0))

    def example(self, i: int) -> dict[str, float]:
        return {"product": 0.1 * (i % 7 - 3), "label": float(i % 3 == 0)}

    def predict(self, model: Competition, i: int) -> Array:
        inverted = model.invert(one(0.1 * i), 0.2)
        return np.array([*model.probabilities().values(), model.exponent(), *inverted])

    def teach(self, model: Competition, i: int, values: Mapping[str, float]) -> None:
        config = WeigherConfig(
            exponent="auto", conditional=SMALL, caps=SMALL_CAPS, competition=model.config
        )
        s = msgspec.structs.replace(shown(i), label=int(values["label"]))
        batch = Weigher(config).weigh([s])
        model.learn(batch, np.array([[values["product"], 0.1, -0.2, 0.3]]))


class TaskEstimatorsCase(Case):
    owner = TaskEstimators
    inputs = ("label",)
    weightless: ClassVar[Mapping[str, float]] = {}  # it makes the correction weights
    bound = ConditionalCase.bound + 3 * FEW

    def make(self) -> TaskEstimators:
        return TaskEstimators(TASKS[CLICK], TaskConfig(), SMALL, CalibrationConfig())

    def predict(self, model: TaskEstimators, i: int) -> Array:
        return self._numbers(model.predict([shown(i)]))

    def teach(self, model: TaskEstimators, i: int, values: Mapping[str, float]) -> Array:
        return self._numbers(model.learn([shown(i)], one(values["label"]), one(1.0))[0])

    def _numbers(self, found: Estimates) -> Array:
        return np.concatenate([found.p_positive, found.prior, found.delayed_positive_rate])


class JointTaskEstimatorsCase(TaskEstimatorsCase):
    name = "JointTaskEstimators"

    def make(self) -> TaskEstimators:
        return JointTaskEstimators(TASKS[CLICK], TaskConfig(), SMALL, CalibrationConfig())


class CapsCase(Case):
    owner = Caps
    inputs = ()
    weightless: ClassVar[Mapping[str, float]] = {}
    bound = 256 * (4 + 4 + 8 + 8) + FEW

    def make(self) -> Caps:
        return Caps(TASKS[CLICK], SMALL_CAPS)

    def predict(self, model: Caps, i: int) -> Array:
        return np.array(model.predict(self._shown(i)))

    def teach(self, model: Caps, i: int, values: Mapping[str, float]) -> Array:
        found: Array = model.learn([self._shown(i)])[0]
        return found

    def _shown(self, i: int) -> Sample:
        return msgspec.structs.replace(shown(i), client=1 + i % 7)


class JointCapsCase(CapsCase):
    name = "JointCaps"

    def make(self) -> Caps:
        return JointCaps(TASKS[CLICK], SMALL_CAPS)


class WeigherCase(Case):
    owner = Weigher
    inputs = ("label",)
    weightless: ClassVar[Mapping[str, float]] = {}  # it makes the weights
    bound = len(TASKS) * (TaskEstimatorsCase.bound + CapsCase.bound)

    def make(self) -> Weigher:
        return Weigher(WeigherConfig(conditional=SMALL, caps=SMALL_CAPS))

    def predict(self, model: Weigher, i: int) -> Array:
        s = shown(i)
        return model.pair_memory_logits(CLICK, s.query, [Doc(s.item_id, s.text, s.attributes)])

    def teach(self, model: Weigher, i: int, values: Mapping[str, float]) -> Array:
        label = values["label"]
        whole = int(label) if label == label else label
        return model.weigh([msgspec.structs.replace(shown(i), label=whole)]).pair_memory_logit


class BatchWeigherCase(WeigherCase):
    name = "Weigher per batch"

    def make(self) -> Weigher:
        return Weigher(WeigherConfig(conditional=SMALL, caps=SMALL_CAPS, update_per="batch"))


class ModelCase(Case):
    """A model of river that can stand for p(y|x), by its name; at most three columns of its own."""

    owner = RiverModel
    inputs = ("field", "label", "weight", "examination")
    bound = NUM_ROWS * (ROW_BYTES + 3 * 8) + 2 * FEW

    def __init__(self, name: str) -> None:
        self.name = name

    def make(self) -> Classifier:
        return make_model(self.name, 6, 26, offset=-1.0, half_life_seconds=50 * 3600)

    def example(self, i: int) -> dict[str, float]:
        return {**super().example(i), "field": 1.0, "examination": 0.7}

    def predict(self, model: Classifier, i: int) -> Array:
        return one(model.logit_one(self._fields(i, 1.0)))

    def teach(self, model: Classifier, i: int, values: Mapping[str, float]) -> None:
        label = values["label"]
        y: Any = bool(label) if label == label else label
        x = self._fields(i, values["field"])
        w, t, now = values["weight"], values["examination"], int(at(i)[0])
        model.learn_one(x, y, w=w, examination=t, time_us=now)

    def _fields(self, i: int, value: float) -> dict[int, float]:
        return {OWN: 0.5, OWN + 1 + i % 25: value, i: value}


class DriftDetectorCase(Case):
    owner = DriftDetector
    inputs = ("value", "weight")

    def make(self) -> DriftDetector:
        return DriftDetector(DriftConfig(block_samples=4, threshold=1.0))

    def predict(self, model: DriftDetector, i: int) -> Array:
        return np.array([model.level(), model.num_changes])

    def teach(self, model: DriftDetector, i: int, values: Mapping[str, float]) -> None:
        model.update(values["value"], values["weight"])


class DriftWatchCase(Case):
    owner = DriftWatch
    inputs = ()
    weightless: ClassVar[Mapping[str, float]] = {}  # a weight of 0 is a weight like another
    bound = 3 * FEW

    def make(self) -> DriftWatch:
        return DriftWatch(DriftConfig(block_samples=4, threshold=1.0))

    def predict(self, model: DriftWatch, i: int) -> Array:
        return np.array([*model.level().values(), *model.num_changes().values()])

    def teach(self, model: DriftWatch, i: int, values: Mapping[str, float]) -> None:
        label, weight = one(values["label"]), one(values["weight"])
        model.update([i * HOUR], label, one(0.3), 2 * weight, weight)
