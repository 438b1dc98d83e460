"""Everything in `learner` that learns online without a gradient, as cases of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec
import numpy as np

from learner.evaluation import MAX_BLOCKS, Evaluation, Judged
from learner.position_baseline import PositionBaseline
from learner.residual import QueryResidual, ResidualConfig
from learner.served import ServedScore
from learner.training.divergence import LossWatch
from tests.contracts.case import FEW, Array, Case, at, one
from weighting.schemes.ratio import ImportanceRatio
from weighting.tasks import TASKS


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
        base, items = one(values["base logit"]), [f"item {i}"]
        lists, time_us = [f"list {i}"], int(at(i)[0])
        query = self._query(i)
        model.learn(query, items, vectors, base, *counts, lists=lists, time_us=time_us)

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
        counts = msgspec.msgpack.decode(model.snapshot()[0])["counts"]
        return sum(len(rows) for _, _, rows in counts)


class EvaluationCase(Case):
    owner = Evaluation
    inputs = ("logit", "relevance", "label", "weight", "examination")
    bound = MAX_BLOCKS
    num_distinct = 64 * 300

    def make(self) -> Evaluation:
        return Evaluation()

    def example(self, i: int) -> dict[str, float]:
        score = {"logit": i % 7 - 3.0, "relevance": i % 7 - 2.0, "examination": 0.5}
        return {**score, "label": float(i % 3 == 0), "weight": 1 - i % 2 / 2}

    def predict(self, model: Evaluation, i: int) -> Array:
        return np.array([*model.get().values(), *model.latest().values()])

    def teach(self, model: Evaluation, i: int, values: Mapping[str, float]) -> None:
        model.update(
            Judged(
                logit=one(values["logit"]),
                relevance=one(values["relevance"]),
                label=one(values["label"]),
                weight=one(values["weight"]),
                examination=one(values["examination"]),
                position=np.array([1]),
                lists=np.array([-1]),
            )
        )

    def size(self, model: Evaluation) -> int:
        """Blocks of samples."""
        return len(msgspec.msgpack.decode(model.snapshot())["blocks"])


class PositionBaselineCase(Case):
    owner = PositionBaseline
    inputs = ("label", "weight")
    bound = FEW + 2 * 51 * 9  # two numbers per position

    def make(self) -> PositionBaseline:
        return PositionBaseline()

    def predict(self, model: PositionBaseline, i: int) -> Array:
        return model.predict(np.array([i % 60]))

    def teach(self, model: PositionBaseline, i: int, values: Mapping[str, float]) -> None:
        model.learn(np.array([i % 60]), one(values["label"]), one(values["weight"]))


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


class ServedScoreCase(Case):
    owner = ServedScore
    inputs = ("encoder logit", "pair memory logit", "label", "weight")
    bound = FEW * len(TASKS)

    def make(self) -> ServedScore:
        return ServedScore(ImportanceRatio(1.0).invert)

    def predict(self, model: ServedScore, i: int) -> Array:
        example = self.example(i)
        encoder, memory = one(example["encoder logit"]), one(example["pair memory logit"])
        return np.concatenate([model.logit(task, encoder, memory, prior=0.2) for task in TASKS])

    def teach(self, model: ServedScore, i: int, values: Mapping[str, float]) -> None:
        columns = [one(values[name]) for name in self.inputs]
        for task in TASKS:
            model.learn(task, *columns, prior=0.2)
