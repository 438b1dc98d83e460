"""Passes through the graphs of an engine: torch stands behind them here, with copied weights."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.artifact import ScoringInput, Store
from learner.encoder.encoder import Encoder
from learner.engines import registry as engines
from learner.errors import ModelUnsupported, TuningUnsupported
from learner.passes.graph_passes import GraphPasses
from learner.scorer import ModelScorer
from tests.learner.engines import Copying
from tests.learner.families import WITH_SDPA, WITHOUT_SDPA, bert
from tests.learner.test_idle import versions_of
from tests.learner.test_packing import model_of, texts_of_lengths
from tests.learner.test_scorer import requests

ASKED: list[ScoringInput] = requests(2)
TEXTS = texts_of_lengths([3, 17, 1, 8, 8, 30, 2])


def encoder(config: Any, tuning: str, engine: Copying) -> Encoder:
    own = Encoder(model_of(config), tuning=tuning, passes=GraphPasses(engine))
    own.round_weights()
    return own


@pytest.mark.parametrize("tuning", ["full", "top:1", "frozen", "lora:2@top:1", "ia3"])
def test_an_encoder_has_the_vectors_of_torch_under_each_tuning(tuning: str) -> None:
    own = encoder(bert(), tuning, Copying())
    plain = Encoder(model_of(bert()), tuning=tuning)
    with torch.inference_mode():
        torch.testing.assert_close(own(TEXTS), plain(TEXTS), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            own.first_states(TEXTS), plain.first_states(TEXTS), rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("tuning", ["full", "top:1", "frozen", "lora:2@top:1"])
def test_no_request_waits_for_a_graph_or_is_judged(
    tuning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = encoder(bert(), tuning, Copying())

    def made(*_: Any) -> Any:
        raise AssertionError("a graph was made after the version was loaded")

    monkeypatch.setattr(own.passes, "_made", made)
    with torch.inference_mode():
        own(TEXTS)
        own.first_states(TEXTS)


@pytest.mark.parametrize("name", ["distilbert", "modernbert", "deberta-v2"])
def test_parameters_reach_the_pass_of_each_family(name: str) -> None:
    config = {**WITH_SDPA, **WITHOUT_SDPA}[name]
    own, plain = encoder(config, "full", Copying()), Encoder(model_of(config), tuning="full")
    for model in (own.model, plain.model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.05)
    with torch.inference_mode():
        before = own(TEXTS)
    own.round_weights()
    with torch.inference_mode():
        torch.testing.assert_close(own(TEXTS), plain(TEXTS), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(own(TEXTS), before, rtol=1e-3, atol=1e-4)


def test_an_engine_that_cannot_express_a_model_is_named_with_it() -> None:
    with pytest.raises(ModelUnsupported, match=r"copying cannot run BertModel: no such.*Use torch"):
        encoder(bert(), "full", Copying(error=RuntimeError("no such operation")))


def test_other_vectors_than_those_of_torch_are_refused() -> None:
    with pytest.raises(ModelUnsupported, match="other vectors of BertModel than torch"):
        encoder(bert(), "full", Copying(factor=0.5))


@pytest.mark.parametrize("elsewhere", [-1.0, float("nan")])
def test_a_trace_that_holds_for_one_shape_alone_is_refused(elsewhere: float) -> None:
    with pytest.raises(ModelUnsupported, match="other vectors of BertModel than torch"):
        encoder(bert(), "full", Copying(elsewhere=elsewhere))


def test_prefixes_are_refused() -> None:
    with pytest.raises(TuningUnsupported, match="prefix:2"):
        encoder(bert(), "prefix:2", Copying())


def scores(scorer: Any) -> list[np.ndarray[Any, Any]]:
    assert isinstance(scorer, ModelScorer)
    return [found.score for found in scorer.score(ASKED)]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Copying:
    own = Copying()
    monkeypatch.setattr(engines, "ENGINES", {"copying": lambda precision: own})
    return own


@pytest.mark.parametrize(
    ("changes", "templates", "each"),
    [
        ({"tuning": "full"}, 1, 1),
        ({"tuning": "top:1"}, 2, 1),  # what the frozen layers make of ids is a graph of its own
        ({"tuning": "lora:2@top:1"}, 2, 1),
        ({"tuning": "frozen"}, 1, 1),
        ({"tuning": "top:1", "interaction": "cross_encoder"}, 2, 1),
    ],
    ids=str,
)
def test_versions_that_come_and_go_score_as_in_torch_and_old_graphs_are_freed(
    tmp_path: Path, engine: Copying, changes: dict[str, Any], templates: int, each: int
) -> None:
    versions = versions_of(tmp_path, 5, **changes)
    store, in_use = Store(tmp_path, engine="copying"), []
    for number, version in enumerate(versions):
        before = engine.compilations
        in_use.append(store.load(version))
        del in_use[:-2]  # the one that answers and the former one, as a server has them
        expected = scores(Store(tmp_path).load(version))
        for found, own in zip(scores(in_use[-1]), expected, strict=True):
            np.testing.assert_allclose(found, own, rtol=4e-3)
        assert engine.templates == templates
        if number:
            assert engine.compilations == before + each
    gc.collect()
    # One of each version in memory, of the starting encoder, and of what is frozen
    assert len(engine.alive) <= 5


def test_a_version_that_an_engine_refuses_leaves_the_one_before_as_it_was(
    tmp_path: Path, engine: Copying
) -> None:
    versions = versions_of(tmp_path, 2, tuning="full")
    store = Store(tmp_path, engine="copying")
    first = store.load(versions[0])
    expected = scores(first)
    engine.factor = 0.5
    with pytest.raises(ModelUnsupported, match="other vectors"):
        store.load(versions[1])
    for found, own in zip(scores(first), expected, strict=True):
        np.testing.assert_array_equal(found, own)
    engine.factor = 1.0
    second = scores(store.load(versions[1]))
    for found, own in zip(second, scores(Store(tmp_path).load(versions[1])), strict=True):
        np.testing.assert_allclose(found, own, rtol=4e-3)
