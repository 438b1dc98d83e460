"""The gate on a real store: harmful versions are refused, honest ones of a learning model never."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from learner import version_layout as layout
from learner.artifact import Document, ScoringInput, Store, Version
from learner.store import blobs
from learner.trainer import Trainer
from serving.errors import Refused
from serving.inference.slot import LoadedModel, Slot
from serving.rollout.comparison import Replayed
from serving.rollout.evaluation import Margins, check_evaluation
from serving.rollout.watcher import Watcher, WatcherConfig
from serving.telemetry import Telemetry
from tests.learner.saving import cut, owner
from tests.learner.training import WORDS, batches, reader, text, trainer
from weighting.sample import Sample
from weighting.tasks import CLICK

Files = dict[str, bytes]
ENCODER = (layout.MODEL, layout.FROZEN, layout.MOVING)


def requests() -> list[ScoringInput]:
    documents = tuple(Document(text=text(item), id=f"SKU-{item}") for item in range(0, 40, 3))
    queries = [f"query {word}" for word in WORDS[:5]]
    return [ScoringInput(query=query, documents=documents) for query in queries]


def preferring(sample: Sample, *, by_query: bool) -> Sample:
    """Click some items: the same whatever was searched, or others for each query.

    The first is learned by priors of items too, the second by what knows the query alone.
    """
    if sample.task != CLICK:
        return sample
    group = int(sample.item_id.removeprefix("SKU-")) // 8
    liked = (group + sum(sample.query.encode()) * by_query) % 5 == 0
    return msgspec.structs.replace(sample, label=int(liked))


def learn(learner: Trainer, number: int, *, seed: int, by_query: bool) -> None:
    for batch in batches(number, seed=seed):
        learner.step([preferring(s, by_query=by_query) for s in batch])


class Server:
    """A server that has answered `requests` with each version, or none yet."""

    def __init__(self, store: Store, *, seen: bool) -> None:
        self.slot, self.seen = Slot(), seen
        self.watcher = Watcher(
            store,
            self.slot,
            Telemetry(CollectorRegistry()),
            WatcherConfig(),
            replayed=self._replayed,
        )

    def _replayed(self, model: LoadedModel) -> list[Replayed]:
        if not self.seen:
            return []
        scores = model.scorer.score(requests())
        return [Replayed(request=r, scores=s) for r, s in zip(requests(), scores, strict=True)]

    @property
    def served(self) -> str | None:
        return None if self.slot.current is None else self.slot.current.name


class Shop:
    """A learner, its store, and a server of it."""

    def __init__(
        self, root: Path, *, seen: bool = True, by_query: bool = False, **changes: Any
    ) -> None:
        self.by_query = by_query
        self.learner = trainer(**changes)
        self.writer, self.store = owner(root), Store(root)
        self.server = Server(self.store, seen=seen)

    def publish(self, files: Files | None = None, **metadata: Any) -> Version:
        learner = self.learner
        honest = {"samples": learner.num_samples, "evaluation": learner.evaluation()}
        metadata = {**honest, **metadata}
        content = learner.files() if files is None else files
        version = self.writer.save(content, cut(learner.step_number, **metadata))
        self.writer.announce(version)
        self.server.watcher.poll()
        return version

    def learn(self, number: int, *, seed: int) -> None:
        learn(self.learner, number, seed=seed, by_query=self.by_query)


KINDS: list[dict[str, Any]] = [
    {"tuning": "top:1"},
    {"tuning": "frozen"},
    {"tuning": "full"},
    {"tuning": "lora:4", "lr": 1e-2},
    {"tuning": "top:1", "interaction": "cross_encoder"},
    {"tuning": "top:1", "lr": 1e-5, "model": "minilm-l6:2"},
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_next_version_is_never_refused(tmp_path: Path, kind: dict[str, Any]) -> None:
    shop = Shop(tmp_path, **kind)
    unseen = Server(shop.store, seen=False)
    sizes = [0, 0, 1, 1, 2, 4, 8, 1, 1, 3, 8, 1, 1]
    for place, size in enumerate(sizes):
        shop.learn(size, seed=1000 * place)
        version = shop.publish()
        unseen.watcher.poll()
        for server in (shop.server, unseen):
            assert server.watcher.refused == {}
            assert server.served == version.name
    assert shop.server.slot.swaps == unseen.slot.swaps == len(sizes)


def of_model(change: Callable[[str, torch.Tensor], torch.Tensor]) -> Callable[[Files], Files]:
    def harmed(files: Files) -> Files:
        new = {}
        for file in [name for name in files if name in ENCODER]:
            tensors = blobs.tensors_from_bytes(files[file])
            changed = {name: change(name, tensor) for name, tensor in tensors.items()}
            new[file] = blobs.tensors_to_bytes(changed)
        return {**files, **new}

    return harmed


def of_residuals(change: Callable[[Any], Any]) -> Callable[[Files], Files]:
    def changed(files: Files) -> Files:
        vectors = blobs.arrays_from_bytes(files[layout.RESIDUALS])["vectors"]
        new = change(vectors.copy()).astype(np.float32)
        return {**files, layout.RESIDUALS: blobs.arrays_to_bytes({"vectors": new})}

    return changed


def random_matrix(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Ten times as large: untrained as the others are, one of their size would be as good."""
    if tensor.dim() < 2:
        return tensor
    drawn = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
    return drawn * 10 * tensor.std()


def zero_top(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor) if name.startswith("encoder.layer.1.") else tensor


def row(value: float) -> Callable[[str, torch.Tensor], torch.Tensor]:
    def changed(name: str, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        if name == "embeddings.word_embeddings.weight":
            tensor[-1] = value  # of a piece that no probe and no request has
        return tensor

    return changed


def permuted_vocabulary(files: Files) -> Files:
    raw = json.loads(files["tokenizer.json"])
    vocabulary = raw["model"]["vocab"]
    names = [name for name in vocabulary if not name.startswith("[")]
    order = np.random.default_rng(0).permutation(len(names)).tolist()
    ids = [vocabulary[name] for name in names]
    raw["model"]["vocab"] = {
        **vocabulary,
        **{name: ids[place] for name, place in zip(names, order, strict=True)},
    }
    return {**files, "tokenizer.json": json.dumps(raw).encode()}


def nan_in_an_estimator(files: Files) -> Files:
    state = msgspec.msgpack.decode(files[layout.ESTIMATORS])
    logistic = state["tasks"]["click"]["conditional"]["model"]
    mean = np.frombuffer(logistic["table"]["mean"], "<f8").copy()
    mean[-1] = np.nan
    logistic["table"]["mean"] = mean.tobytes()
    return {**files, layout.ESTIMATORS: msgspec.msgpack.encode(state)}


HARMFUL: dict[str, tuple[str, Callable[[Files], Files]]] = {
    "random matrices": ("fixed|agreement|distribution", of_model(random_matrix)),
    "a zeroed layer": ("agreement|distribution", of_model(zero_top)),
    "inverted residuals": ("agreement|distribution", of_residuals(lambda vectors: -vectors)),
    "NaN residuals": ("load", of_residuals(lambda vectors: vectors * np.nan)),
    "a permuted vocabulary": ("fixed|agreement", permuted_vocabulary),
    "a NaN row": ("load", of_model(row(float("nan")))),
    "a wrong row": ("fixed", of_model(row(7.0))),
    "NaN in an estimator": ("load", nan_in_an_estimator),
}


@cache
def thirty_steps(tuning: str) -> Files:
    """Files of a learner that has taken thirty steps; one that restores them goes on from there."""
    learner = trainer(tuning=tuning, lr=1e-5)
    learn(learner, 30, seed=0, by_query=True)
    return learner.files()


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("tuning", ["top:1", "full"])
@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_version_is_refused_and_the_next_honest_one_is_served(
    tmp_path: Path, name: str, tuning: str, seen: bool
) -> None:
    check, harm = HARMFUL[name]
    if (name, tuning) == ("a wrong row", "full"):
        pytest.skip("training may move any row; no request has asked for this one")
    shop = Shop(tmp_path, tuning=tuning, seen=seen, by_query=True, lr=1e-5)
    shop.learner.restore(reader(thirty_steps(tuning)))
    good = shop.publish().name
    shop.learn(1, seed=500)
    bad = shop.publish(harm(shop.learner.files())).name
    assert shop.server.served == good
    assert shop.server.watcher.refused[bad].split(":")[0] in check.split("|"), (
        shop.server.watcher.refused[bad]
    )
    shop.learn(1, seed=600)
    assert shop.publish().name == shop.server.served


def test_a_manifest_with_a_bad_evaluation_is_refused_whatever_the_weights(tmp_path: Path) -> None:
    shop = Shop(tmp_path, tuning="top:1")
    shop.learn(30, seed=0)
    figures = {
        "click_num_samples": 570.0,
        "click_positive_ratio": 0.06,
        **with_interval("click_within_list_auc", 0.72, 0.03),
        **with_interval("click_position_normalized_entropy", 0.9, 0.05),
        "click_predicted_to_observed": 1.1,
    }
    good = shop.publish(evaluation=figures).name
    for name, value in (
        ("click_within_list_auc", 0.31),
        ("click_position_normalized_entropy", 3.0),
        ("click_predicted_to_observed", 9.0),
        ("click_predicted_to_observed", 0.1),
    ):
        bad = shop.publish(evaluation={**figures, name: value}).name
        assert shop.server.served == good
        figure = name.removeprefix("click_")
        assert shop.server.watcher.refused[bad].startswith(
            f"evaluation: click {figure} is {value:.3f}"
        )
    assert (
        shop.publish(evaluation={**figures, "click_within_list_auc": 0.6}).name
        == shop.server.served
    )


def test_the_name_of_an_attribute_is_no_task() -> None:
    margins = Margins(auc=0.1, entropy=0.2, calibration=0.7)

    def figures(alpha: float) -> dict[str, float]:
        ends = {"num_samples": 5000.0, "positive_ratio": 0.1, "auc": alpha}
        return {f"attribute_alone:fit_{end}": value for end, value in ends.items()}

    check_evaluation(figures(0.1), figures(0.9), margins)


def with_interval(name: str, value: float, error: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - 1.96 * error, f"{name}_high": value + 1.96 * error}


@pytest.mark.parametrize("pooled", [False, True])
def test_few_samples_say_little(pooled: bool) -> None:
    margins = Margins(auc=0.1, entropy=0.2, calibration=0.7)

    def figures(n: float, auc: float) -> dict[str, float]:
        found = {"click_num_samples": n, "click_positive_ratio": 0.1}
        found |= with_interval("click_position_normalized_entropy", 1.0, n**-0.5)
        found["click_predicted_to_observed"] = 1.0
        if pooled:
            return {**found, "click_auc": auc}
        return {**found, **with_interval("click_within_list_auc", auc, (12 * 0.09 * n) ** -0.5)}

    name = "auc" if pooled else "within_list_auc"
    check_evaluation(figures(60, 0.35), figures(60, 0.95), margins)
    check_evaluation(figures(5000, 0.66), figures(5000, 0.75), margins)
    with pytest.raises(Refused, match=rf"click {name} is 0\.350"):
        check_evaluation(figures(5000, 0.35), figures(5000, 0.95), margins)
    with pytest.raises(Refused, match=rf"click {name} is 0\.430"):  # below chance
        check_evaluation(figures(5000, 0.43), figures(5000, 0.51), margins)
    check_evaluation(figures(5000, 0.43), figures(5000, 0.44), margins)


def test_a_pooled_auc_says_nothing_where_there_is_one_within_lists() -> None:
    margins = Margins(auc=0.1, entropy=0.2, calibration=0.7)
    served = {"click_num_samples": 5000.0, "click_positive_ratio": 0.1, "click_auc": 0.95}
    served |= with_interval("click_within_list_auc", 0.6, 0.01)
    check_evaluation({**served, "click_auc": 0.3}, served, margins)


def test_versions_under_other_settings_are_compared_by_distribution_alone(tmp_path: Path) -> None:
    shop = Shop(tmp_path, tuning="top:1", lr=1e-5)
    shop.learn(30, seed=0)
    shop.publish()
    files = of_model(random_matrix)(shop.learner.files())
    assert shop.publish(files, config_sha256="1" * 64).name == shop.server.served
