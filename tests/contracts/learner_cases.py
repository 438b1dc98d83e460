"""Everything in `learner` that learns online without a gradient, as cases of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import msgspec
import numpy as np

from learner.evaluation.evaluation import MAX_BLOCKS, Evaluation
from learner.evaluation.judged import Judged
from learner.evaluation.position_baseline import PositionBaseline
from learner.evaluation.query_frequency import NUM_PLACES, QueryFrequency
from learner.losses.pointwise import Pointwise
from learner.parts.attributes import Attributes
from learner.parts.client_affinity import ClientAffinity, ClientAffinityConfig
from learner.parts.item_prior import ItemPrior, ItemPriorConfig
from learner.parts.lexical import Lexical, LexicalConfig
from learner.parts.metric import QueryMetric
from learner.parts.part import Outcomes, Pairs
from learner.parts.prototype import Prototype, PrototypeConfig
from learner.parts.registry import make_parts
from learner.parts.stateless import OWN_ENCODER, PAIR_MEMORY, RESIDUAL
from learner.request import ENCODER
from learner.residual import QueryResidual, ResidualConfig
from learner.served import ServedScore
from learner.training.divergence import LossWatch
from learner.training.item_frequency import NUM_BUCKETS, ItemFrequency
from learner.training.rehearsal import Rehearsal, RehearsalConfig
from tests.contracts.case import FEW, Array, Case, at, one
from tests.weighting.streams import sample
from weighting.config import WeigherConfig
from weighting.estimators.attribute_choice import AttributeChoiceConfig
from weighting.sample import client_hash
from weighting.schemes.ratio import ImportanceRatio
from weighting.tasks import TASKS
from weighting.weigher import Weigher


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


class QueryFrequencyCase(Case):
    owner = QueryFrequency
    inputs = ()
    weightless: ClassVar[Mapping[str, float]] = {}
    bound = FEW + 12 * NUM_PLACES

    def make(self) -> QueryFrequency:
        return QueryFrequency()

    def predict(self, model: QueryFrequency, i: int) -> Array:
        return one(float(model.get(f"query {i % 7}")))

    def teach(self, model: QueryFrequency, i: int, values: Mapping[str, float]) -> Array:
        return one(float(model.learn(f"query {i % 7}")))


class ItemFrequencyCase(Case):
    owner = ItemFrequency
    inputs = ()
    weightless: ClassVar[Mapping[str, float]] = {}
    bound = FEW + 32 * NUM_BUCKETS

    def make(self) -> ItemFrequency:
        return ItemFrequency()

    def predict(self, model: ItemFrequency, i: int) -> Array:
        return model.log_frequency([f"item {i % 7}"])

    def teach(self, model: ItemFrequency, i: int, values: Mapping[str, float]) -> Array:
        before = self.predict(model, i)
        model.learn([f"item {i % 7}"])
        return before


class RehearsalCase(Case):
    owner = Rehearsal
    inputs = ()
    weightless: ClassVar[Mapping[str, float]] = {}
    config = RehearsalConfig(size_bytes=100_000, share=0.5)
    bound = config.size_bytes
    weighed = Weigher(WeigherConfig()).weigh([sample(1)])

    def make(self) -> Rehearsal:
        return Rehearsal(self.config, seed=0, losses={task: Pointwise() for task in TASKS})

    def predict(self, model: Rehearsal, i: int) -> Array:
        found = model.draw(self.weighed, np.ones(1), step=i)
        return one(0.0 if found is None else 1.0 + float(found.samples[0].item_id))

    def teach(self, model: Rehearsal, i: int, values: Mapping[str, float]) -> Array:
        before = self.predict(model, i)
        shown = sample(1, item_id=str(i), text="word " * 150, offset=i)
        shown = msgspec.structs.replace(shown, list_id=f"list {i}")
        model.learn(replace(self.weighed, samples=(shown,)))
        return before


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


class PartCase(Case):
    """A part of the served score, or all of them; sizes are of the whole state."""

    inputs: ClassVar[tuple[str, ...]] = ("label", "weight", "examination", "query vector")

    def example(self, i: int) -> dict[str, float]:
        return {"label": float(i % 2), "weight": 0.5, "examination": 0.8, **self.vectors}

    vectors: ClassVar[Mapping[str, float]] = {"query vector": 0.6, "item vector": 1.0}

    def pairs(self, i: int, values: Mapping[str, float]) -> Pairs:
        """One pair; its item and words are among 100, its query among 7."""
        query = np.array([[values["query vector"], 0.8]], dtype=np.float32)
        given = {
            ENCODER: one(0.1 * (i % 5)),
            OWN_ENCODER: one(0.2),
            RESIDUAL: one(np.nan),
            PAIR_MEMORY: one(0.3),
        }
        return Pairs(
            queries=[f"word{i % 100} {i % 7}"],
            clients=[client_hash(f"client {i % 100}")],
            items=[f"item {i % 100}"],
            texts=[f"word{i % 100} other{i % 100}"],
            attributes=[{"brand": f"brand {i % 100}", "price": float(i % 7)}],
            query_vectors=query,
            item_vectors=np.array([[0.1 * (i % 7), values["item vector"]]], dtype=np.float32),
            given=given,
        )

    def outcomes(self, i: int, values: Mapping[str, float]) -> Outcomes:
        return Outcomes(
            label=one(values["label"]),
            weight=one(values["weight"]),
            discount=one(1.0),
            factor=one(1.0),
            examination=one(values["examination"]),
            shown=np.array([i % 3 > 0]),
            lists=np.array([-1]),
            time_us=at(i),
            logit=one(-2.2),
        )

    def predict(self, model: Any, i: int) -> Array:
        pairs = self.pairs(i, self.example(i))
        said: Array = np.nan_to_num(model.predict(pairs))
        return said

    def teach(self, model: Any, i: int, values: Mapping[str, float]) -> None:
        for task in TASKS:
            model.learn(task, self.pairs(i, values), self.outcomes(i, values))


class LexicalCase(PartCase):
    owner = Lexical
    inputs = ()
    weightless: ClassVar[Mapping[str, float]] = {}
    bound = 2 * (60 * 8 + 120 * 20) + FEW  # statistics of texts, and of texts with attributes

    def make(self) -> Lexical:
        return Lexical(LexicalConfig(max_items=60, max_terms=120))


class ItemPriorCase(PartCase):
    owner = ItemPrior
    inputs = ("label", "weight", "examination")
    weightless: ClassVar[Mapping[str, float]] = {"weight": 0.0, "examination": 0.0}
    bound = 60 * 40 + FEW

    def make(self) -> ItemPrior:
        return ItemPrior(ItemPriorConfig(max_items=60))


class AttributesCase(PartCase):
    owner = Attributes
    inputs = ("label", "weight", "examination")
    weightless: ClassVar[Mapping[str, float]] = {"weight": 0.0, "examination": 0.0}
    bound = 64 * 32 + 9 * 33 * 34 + 4 * FEW  # rows, and what is known of 33 coefficients

    def make(self) -> Attributes:
        return Attributes(AttributeChoiceConfig(hash_bits=6))


class QueryMetricCase(Case):
    owner = QueryMetric
    inputs = ("query vector",)
    weightless: ClassVar[Mapping[str, float]] = {}  # every showing counts once
    bound = 100

    def make(self) -> QueryMetric:
        return QueryMetric(2, most=50.0)

    def example(self, i: int) -> dict[str, float]:
        return {"query vector": 0.1 * (i % 7)}

    def predict(self, model: QueryMetric, i: int) -> Array:
        found = model.unit(np.array([[0.1 * (i % 5), 0.9]], dtype=np.float32))
        return found.reshape(-1).astype(np.float64)

    def teach(self, model: QueryMetric, i: int, values: Mapping[str, float]) -> None:
        model.learn(np.array([[values["query vector"], 0.8]], dtype=np.float32))

    def state(self, model: QueryMetric) -> bytes:
        return msgspec.msgpack.encode(model.snapshot())

    def restored(self, state: bytes) -> QueryMetric:
        model = self.make()
        model.restore(msgspec.msgpack.decode(state))
        return model


class PrototypeCase(PartCase):
    owner = Prototype
    bound = 60 * 40 + FEW

    def make(self) -> Prototype:
        return Prototype(2, 8.0, PrototypeConfig(max_items=60))


class ClientAffinityCase(PartCase):
    owner = ClientAffinity
    inputs = ("label", "weight", "examination", "item vector")
    weightless: ClassVar[Mapping[str, float]] = {"weight": 0.0, "examination": 0.0}
    bound = 16 * (49 * 4 + 20) + 98 * 9 + 2 * FEW

    def make(self) -> ClientAffinity:
        return ClientAffinity(2, ClientAffinityConfig(hash_bits=4))


class ServedScoreCase(PartCase):
    owner = ServedScore
    inputs = ("label", "weight", "examination", "query vector", "item vector")
    weightless: ClassVar[Mapping[str, float]] = {}  # an item without weight still has words
    bound = 100_000

    def make(self) -> ServedScore:
        parts = make_parts(width=2, logit_scale=8.0)
        return ServedScore(ImportanceRatio(1.0).invert, parts, dict.fromkeys(TASKS, 0.1))

    def predict(self, model: ServedScore, i: int) -> Array:
        pairs = self.pairs(i, self.example(i))
        return np.concatenate([model.logit(t, model.ask(t, pairs)) for t in TASKS])

    def teach(self, model: ServedScore, i: int, values: Mapping[str, float]) -> None:
        pairs = self.pairs(i, values)
        for task in TASKS:
            model.learn(task, pairs, model.ask(task, pairs), self.outcomes(i, values))

    def state(self, model: ServedScore) -> bytes:
        return msgspec.msgpack.encode((model.snapshot(), model.snapshot_parts()))

    def restored(self, state: bytes) -> ServedScore:
        model = self.make()
        model.restore(*msgspec.msgpack.decode(state))
        return model
