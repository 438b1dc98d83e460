"""Layers of BERT's kind one by one: the bits of the model's own pass, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from learner import arithmetic
from learner.passes.bert_layers import bert_layers
from learner.passes.flat_passes import Flat
from learner.passes.packing import Packed, passes_for
from learner.passes.pooling import POOLINGS
from learner.passes.varlen import text_by_text
from learner.tuning.top_layers import TopLayersTuning
from tests.learner.families import WITH_SDPA
from tests.learner.test_packing import model_of, texts_of_lengths

FAMILIES = [name for name, config in WITH_SDPA.items() if bert_layers(model_of(config))]
LENGTHS = (3, 7, 7, 12)


def both_ways(passes: Packed, run: Any) -> tuple[Any, Any]:
    """Return what `run` gives layer by layer, and through the model's own pass."""
    found = []
    for passes.by_layers in (True, False):
        found.append(run())
    return found[0], found[1]


def test_families_are_those_of_the_kind() -> None:
    assert {"bert", "roberta", "electra"} <= set(FAMILIES)


@pytest.mark.parametrize("kind", ["packed", "flat"])
@pytest.mark.parametrize("top", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_vectors_and_gradients_have_the_same_bits(name: str, top: int, kind: str) -> None:
    arithmetic.use(1)
    model = model_of(WITH_SDPA[name])
    passes = Packed(model) if kind == "packed" else Flat(model, text_by_text)
    tuning = TopLayersTuning(model, POOLINGS["mean"], passes, top)
    moving = tuning.trainable_parameters()

    def learned() -> list[Tensor]:
        vectors = tuning.finish(tuning.prefix(texts_of_lengths(LENGTHS)))
        return [vectors.detach(), *torch.autograd.grad(vectors[:, :3].sum(), moving)]

    by_layers, whole = both_ways(passes, learned)
    assert all(map(torch.equal, by_layers, whole))
    assert any(gradient.abs().max() > 0 for gradient in by_layers[1:])


def test_a_model_that_does_more_than_its_layers_goes_through_its_own_pass() -> None:
    model = model_of(WITH_SDPA["bert"])
    kind = type(model)

    class Scaled(kind):  # type: ignore[misc, valid-type]
        """One that scales the states behind its layers."""

        def forward(self, *given: Any, **others: Any) -> Any:
            output = super().forward(*given, **others)
            output.last_hidden_state = 2 * output.last_hidden_state
            return output

    model.__class__ = Scaled
    passes = passes_for(model)
    assert isinstance(passes, Packed)
    assert not passes.by_layers
    model.__class__ = kind
    assert passes_for(model).by_layers  # type: ignore[attr-defined]
