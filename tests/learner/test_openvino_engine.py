"""OpenVINO behind the passes: near torch, the same bits in any batch, refusals by name."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity

from learner import arithmetic
from learner.artifact import Store
from learner.encoder.encoder import Encoder
from learner.encoder.load import load_pretrained
from learner.encoder.prefix_cache import PrefixCache
from learner.engines.openvino_engine import OpenVino
from learner.engines.openvino_import import openvino_for
from learner.engines.registry import passes_of
from learner.errors import ModelUnsupported
from learner.scorer import ModelScorer
from tests.learner.families import WITH_SDPA, WITHOUT_SDPA
from tests.learner.test_idle import versions_of
from tests.learner.test_packing import model_of, texts_of_lengths
from tests.learner.test_scorer import requests

LENGTHS = [3, 17, 1, 8, 8, 30, 2]
REFUSED = {"bert-decoder": "cannot run", "longformer": "other vectors"}


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelUnsupported, match=r'pip install "steelyard\[openvino\]"'):
        OpenVino("float32")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    arithmetic.use(1)


def encoder(model: Any, precision: str, tuning: str = "full") -> Encoder:
    try:
        passes = passes_of("openvino", precision)
    except ModelUnsupported as error:
        pytest.skip(str(error))
    own = Encoder(model, tuning=tuning, passes=passes, precision=precision)
    own.round_weights()
    return own


def test_the_library_is_imported_without_its_reports() -> None:
    code = """
import sys
from learner.engines.openvino_import import openvino_for
openvino_for("a test")
assert sys.modules["openvino_telemetry"] is None
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_conversion_reports_to_nobody_and_leaves_the_log_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("not asked for")

    openvino_for("a test")
    theirs, log = import_module("openvino.tools.ovc.convert_impl"), logging.getLogger()
    with monkeypatch.context() as patch:
        patch.setattr(theirs, "init_ovc_telemetry", never)
        for name in ("setLevel", "addFilter", "addHandler"):
            patch.setattr(log, name, never)
        encoder(model_of(WITH_SDPA["bert"]), "float32")


FAMILIES = {**WITH_SDPA, **WITHOUT_SDPA}
FAMILIES.pop("deberta-v2-conv")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_families_have_the_vectors_of_torch_or_are_refused_by_name(name: str) -> None:
    config = FAMILIES[name]
    if name in REFUSED:
        with pytest.raises(ModelUnsupported, match=f"{REFUSED[name]}.*Model"):
            encoder(model_of(config), "float32")
        return
    own = encoder(model_of(config), "float32")
    texts = texts_of_lengths(LENGTHS)
    with torch.inference_mode():
        found = own(texts)
        expected = Encoder(model_of(config), tuning="full")(texts)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def encoders() -> dict[str, Encoder]:
    return {
        precision: encoder(load_pretrained("minilm-l6:2").model, precision)
        for precision in ("float32", "bfloat16", "int8")
    }


PRECISIONS = pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])


def real_texts(lengths: list[int]) -> list[np.ndarray[Any, Any]]:
    draw = np.random.default_rng(0)
    return [draw.integers(1000, 20_000, length) for length in lengths]


@PRECISIONS
@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=2, max_size=20),
    shuffled=st.randoms(use_true_random=False),
)
def test_a_vector_has_the_same_bits_whatever_is_beside_it(
    encoders: dict[str, Encoder], precision: str, lengths: list[int], shuffled: Any
) -> None:
    own, texts = encoders[precision], real_texts(lengths)
    order = list(range(len(texts)))
    shuffled.shuffle(order)
    with torch.inference_mode():
        together = own([texts[i] for i in order])
        for place, i in enumerate(order):
            assert torch.equal(own([texts[i]])[0], together[place])


@PRECISIONS
def test_vectors_are_near_those_of_torch(encoders: dict[str, Encoder], precision: str) -> None:
    plain, texts = Encoder(load_pretrained("minilm-l6:2").model, tuning="full"), real_texts(LENGTHS)
    with torch.inference_mode():
        found, expected = encoders[precision](texts), plain(texts)
    least = {"float32": 0.99999, "bfloat16": 0.999, "int8": 0.99}[precision]
    assert cosine_similarity(found, expected).min() > least
    assert torch.allclose(found, expected, atol=1e-4) == (precision == "float32")


@PRECISIONS
@pytest.mark.parametrize("tuning", ["top:1", "lora:2"])
def test_a_part_that_is_kept_may_be_kept_or_made_anew(precision: str, tuning: str) -> None:
    own = encoder(load_pretrained("minilm-l6:2").model, precision, tuning)
    texts = real_texts(LENGTHS)
    with torch.inference_mode():
        first, again = own(texts), own(texts)
        own.cache = PrefixCache()
        anew = own(texts[::-1]).flip(0)
    assert torch.equal(first, again)
    assert torch.equal(first, anew)


def test_two_threads_have_the_same_vectors_as_one(encoders: dict[str, Encoder]) -> None:
    own, texts = encoders["float32"], real_texts([9] * 40)
    found: dict[int, Tensor] = {}

    def encode(number: int) -> None:
        with torch.inference_mode():
            found[number] = torch.cat([own([text]) for text in texts])

    threads = [threading.Thread(target=encode, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.inference_mode():
        expected = own(texts)
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"tuning": "full"},
        {"tuning": "lora:2@top:1"},
        {"tuning": "top:1", "interaction": "cross_encoder"},
    ],
    ids=str,
)
def test_versions_that_come_and_go_score_as_in_torch(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    versions, asked = versions_of(tmp_path, 4, **changes), requests(2)
    store = Store(tmp_path, precision="float32", engine="openvino")
    in_use = []
    for version in versions:
        in_use.append(store.load(version))
        del in_use[:-2]
        plain = Store(tmp_path).load(version)
        for own in in_use:
            assert isinstance(own, ModelScorer)
        for found, expected in zip(in_use[-1].score(asked), plain.score(asked), strict=True):
            np.testing.assert_allclose(found.score, expected.score, rtol=4e-3)
