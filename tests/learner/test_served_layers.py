"""Layers as a server runs them: the bits of their own passes, for parameters as they are now."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner import arithmetic
from learner.encoder.encoder import Encoder
from learner.encoder.load import with_others
from learner.encoder.prefix_cache import PrefixCache
from learner.passes import served_layers
from tests.learner.families import WITH_SDPA, WITHOUT_SDPA
from tests.learner.test_packing import model_of

FAMILIES = {**WITH_SDPA, **WITHOUT_SDPA}
AS_BERT = ("bert", "electra", "roberta", "xlm-roberta")
PRECISIONS = pytest.mark.parametrize("precision", ["float32", "bfloat16"])
LENGTHS = (1, 2, 7, 7, 30, 16, 17)


def texts(lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray[Any, Any]]:
    draw = np.random.default_rng(0)
    return [draw.integers(5, 40, length) for length in lengths]


def encoder(name: str = "bert", precision: str = "float32", **given: Any) -> Encoder:
    arithmetic.use(1)
    return Encoder(model_of(FAMILIES[name]), **{"tuning": "full", "precision": precision, **given})


def vectors(own: Encoder, given_texts: list[np.ndarray[Any, Any]]) -> torch.Tensor:
    own.cache = PrefixCache()
    with torch.no_grad():
        found: torch.Tensor = own(given_texts)
    return found


def laid_out(own: Encoder) -> list[Any]:
    layers = getattr(own.model, "encoder", None)
    return [getattr(layer, "served_products", None) for layer in getattr(layers, "layer", ())]


@PRECISIONS
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("name", AS_BERT)
def test_layers_have_the_bits_of_their_own_passes(name: str, pooling: str, precision: str) -> None:
    own = encoder(name, precision, pooling=pooling)
    before = vectors(own, texts())
    own.round_weights()
    assert all(laid_out(own))
    assert torch.equal(vectors(own, texts()), before)


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - set(AS_BERT)))
def test_other_families_run_as_before(name: str) -> None:
    own = encoder(name)
    before = vectors(own, texts())
    own.round_weights()
    assert torch.equal(vectors(own, texts()), before)


@PRECISIONS
def test_bits_of_a_text_do_not_depend_on_its_neighbours(precision: str) -> None:
    own, given_texts = encoder(precision=precision), texts((1, 3, 8, 15, 16, 17, 40, 90))
    own.round_weights()
    together = vectors(own, given_texts)

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.integers(0, len(given_texts) - 1), min_size=1, unique=True))
    def check(places: list[int]) -> None:
        assert torch.equal(vectors(own, [given_texts[i] for i in places]), together[places])

    check()


@PRECISIONS
def test_parameters_that_were_written_to_are_laid_out_anew_and_no_others(precision: str) -> None:
    own = encoder(precision=precision)
    own.round_weights()
    before = laid_out(own)
    with torch.no_grad():
        own.model.encoder.layer[1].output.dense.weight *= 1.5
    own.round_weights()
    kept = [found is known for found, known in zip(laid_out(own), before, strict=True)]
    assert kept == [place != 1 for place in range(len(before))]
    plain = encoder(precision=precision)
    plain.model.load_state_dict(own.model.state_dict())
    assert torch.equal(vectors(own, texts()), vectors(plain, texts()))


def test_what_models_share_is_laid_out_once() -> None:
    own = encoder()
    other = Encoder(with_others(own.model, {}), tuning="full", passes=own.passes)
    for one in (own, other):
        one.round_weights()
    assert all(laid_out(own))
    assert all(a is b for a, b in zip(laid_out(own), laid_out(other), strict=True))


def test_parameters_with_other_values_behind_them_are_laid_out_anew() -> None:
    exact = encoder()
    exact.round_weights()
    shared = with_others(exact.model, {})
    lowered = Encoder(shared, tuning="full", precision="bfloat16")
    lowered.round_weights()  # gives the same parameters other values
    fresh = encoder(precision="bfloat16")
    fresh.round_weights()
    assert torch.equal(vectors(lowered, texts()), vectors(fresh, texts()))
    own = encoder()
    own.round_weights()
    weight = own.model.encoder.layer[1].output.dense.weight
    weight.data = weight.data * 1.5
    own.round_weights()
    plain = encoder()
    plain.model.load_state_dict(own.model.state_dict())
    assert torch.equal(vectors(own, texts()), vectors(plain, texts()))


def test_what_learns_goes_by_its_own_layers() -> None:
    own, plain = encoder(), encoder()
    plain.model.load_state_dict(own.model.state_dict())
    own.round_weights()
    for one in (own, plain):
        one(texts()).square().sum(0)[0].backward()
    for found, expected in zip(own.model.parameters(), plain.model.parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None)
        assert found.grad is None or torch.equal(found.grad, expected.grad)


def test_adapters_stay_as_they_are() -> None:
    own = encoder(tuning="lora:2")
    before = vectors(own, texts())
    own.round_weights()
    assert torch.equal(vectors(own, texts()), before)


@pytest.mark.parametrize("gives", ["nothing", "other bits"])
def test_where_the_layout_is_missing_or_changes_bits_products_are_plain(
    monkeypatch: pytest.MonkeyPatch, gives: str
) -> None:
    def other(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *_: Any) -> Any:
        if gives == "nothing":
            raise NotImplementedError
        return torch.nn.functional.linear(rows, weight.to_dense(), bias) + 1e-3

    own = encoder()
    before = vectors(own, texts())
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", other)
    own.round_weights()
    kinds = {products.after_attention.func for products in laid_out(own)}
    assert kinds == {served_layers._plain}
    assert torch.equal(vectors(own, texts()), before)
