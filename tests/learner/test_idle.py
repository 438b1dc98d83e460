"""Versions that come and go in the same memory: what a version was is never seen in another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.accelerating.twin import Repeating
from learner import version_layout as layout
from learner.artifact import Corrupt, Scorer, Store, Version
from learner.encoder.encoder import Encoder
from learner.encoder.idle import IdleEncoders, Loan
from learner.passes.captures import Captures
from learner.passes.flat_passes import Flat
from learner.passes.varlen import text_by_text
from learner.scorer import ModelScorer
from learner.store import blobs
from learner.tuning.adapters import name_on_disk
from tests.learner.families import bert
from tests.learner.saving import cut, owner
from tests.learner.test_flat import SIZES
from tests.learner.test_packing import model_of, texts_of_lengths
from tests.learner.test_scorer import assert_equal, requests
from tests.learner.training import batches, trainer

ASKED = requests(3)
LENGTHS = [3, 17, 1, 8]


def versions_of(root: Path, number: int, **changes: Any) -> list[Version]:
    own, checkpointer = trainer(**changes), owner(root)
    found: list[Version] = []
    for batch in batches(number):
        own.step(batch)
        found.append(checkpointer.save(own.files(), cut(own.step_number)))
    return found


def places(scorer: Scorer) -> list[int]:
    """Where what differs between versions lies in memory."""
    assert isinstance(scorer, ModelScorer)
    moving = scorer._ranker.encoder.trainable_parameters()
    return [parameter.data_ptr() for parameter in moving]


@pytest.mark.parametrize(
    "kind",
    [
        {"tuning": "full"},
        {"tuning": "top:1"},
        {"tuning": "lora:2@top:1"},
        {"tuning": "top:1", "precision": "bfloat16"},
        {"tuning": "full", "served": "int8"},
        {"tuning": "lora:2@top:1", "served": "int8"},
        {"tuning": "top:1", "served": "bfloat16"},
    ],
    ids=str,
)
def test_a_version_is_loaded_where_one_was_that_nobody_uses(
    tmp_path: Path, kind: dict[str, Any]
) -> None:
    served = kind.get("served", "learned")
    if served == "int8" and not torch.cpu._is_vnni_supported():
        pytest.skip("this processor has no AVX512-VNNI")
    versions = versions_of(tmp_path, 5, **{k: v for k, v in kind.items() if k != "served"})
    stores = [Store(tmp_path, precision=served) for _ in versions]
    expected = [own.load(v).score(ASKED) for own, v in zip(stores, versions, strict=True)]
    assert not np.array_equal(expected[0][0].score, expected[3][0].score)
    store = Store(tmp_path, precision=served)
    first, second = (store.load(version) for version in versions[:2])
    assert set(places(first)).isdisjoint(places(second))
    place = places(first)
    del first
    third = store.load(versions[2])
    assert places(third) == place
    fourth = store.load(versions[3])
    assert len({tuple(places(scorer)) for scorer in (second, third, fourth)}) == 3
    for scorer, scores in ((third, 2), (second, 1), (fourth, 3), (second, 1)):
        for found, one in zip(scorer.score(ASKED), expected[scores], strict=True):
            assert_equal(found, one)
    place = places(second)
    del second, scorer
    again = store.load(versions[0])  # an older one, as an operator may choose
    assert places(again) == place
    for found, one in zip(again.score(ASKED), expected[0], strict=True):
        assert_equal(found, one)


def test_a_frozen_encoder_is_loaded_anew_too(tmp_path: Path) -> None:
    versions, store = versions_of(tmp_path, 3, tuning="frozen"), Store(tmp_path)
    for version in versions:
        scores = store.load(version).score(ASKED)
        for found, one in zip(scores, Store(tmp_path).load(version).score(ASKED), strict=True):
            assert_equal(found, one)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_a_version_with_other_parameters_is_refused_and_the_next_one_loaded(
    tmp_path: Path, change: str
) -> None:
    own, checkpointer = trainer(tuning="top:1"), owner(tmp_path)
    found: list[Version] = []
    for batch in batches(3):
        own.step(batch)
        files = own.files()
        if len(found) == 1:
            tensors = blobs.tensors_from_bytes(files[layout.MOVING])
            name = sorted(tensors)[-1]
            if change == "unknown":
                tensors["another"] = torch.zeros(1)
            elif change == "shape":
                tensors[name] = torch.zeros(3, 3, 3)
            else:
                del tensors[name]
            files = {**files, layout.MOVING: blobs.tensors_to_bytes(tensors)}
        found.append(checkpointer.save(files, cut(own.step_number)))
    store = Store(tmp_path)
    place = places(store.load(found[0]))
    with pytest.raises(Corrupt, match=layout.MOVING):
        store.load(found[1])
    third = store.load(found[2])
    assert places(third) == place
    for one, other in zip(
        third.score(ASKED), Store(tmp_path).load(found[2]).score(ASKED), strict=True
    ):
        assert_equal(one, other)


def on_disk(encoder: Encoder, factor: float = 1.0) -> dict[str, Tensor]:
    """Parameters that differ between versions, as a file has them."""
    moving = {id(parameter) for parameter in encoder.trainable_parameters()}
    return {
        name_on_disk(name): parameter.detach() * factor
        for name, parameter in encoder.model.named_parameters()
        if id(parameter) in moving
    }


@pytest.mark.parametrize("tuning", ["full", "top:1", "lora:2"])
def test_captures_of_a_version_serve_the_next_one_in_its_place(tuning: str) -> None:
    recorder, texts = Repeating(), texts_of_lengths(LENGTHS)
    model = model_of(bert())
    passes = Flat(model, text_by_text, Captures(recorder, SIZES))
    first = Encoder(model, tuning=tuning, passes=passes)
    first.capture_ahead()
    start, loans = on_disk(first), [Loan()]
    encoders = IdleEncoders(first, loans[0], start)
    used = [first]
    for number in range(5):
        loans.append(Loan())
        factor = 1.0 + number / 10
        encoder = encoders.take({n: t * factor for n, t in start.items()}, loans[-1])
        used.append(encoder)
        twin = Encoder(model_of(bert()), tuning=tuning)
        with torch.no_grad():
            for name, parameter in twin.model.named_parameters():
                if name_on_disk(name) in start:
                    parameter.copy_(start[name_on_disk(name)] * factor)
        before = recorder.number
        with torch.inference_mode():
            torch.testing.assert_close(encoder(texts), twin(texts), rtol=1e-4, atol=1e-5)
        assert recorder.number == before + 1
        if len(loans) > 2:  # the one before stays in use, as a server keeps it
            del loans[0]
    assert len({id(encoder) for encoder in used}) == 3
    assert len(recorder.made) == 3 * len(SIZES)
    assert passes.captures is not None
    assert passes.captures.trusted
