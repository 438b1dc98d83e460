"""First tokens alone in the last layer: what all tokens would give, at less cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity
from transformers import XmodConfig

from learner import arithmetic
from learner.encoder.encoder import Encoder, set_dropout
from learner.encoder.prefix_cache import PrefixCache
from learner.errors import ModelUnsupported
from learner.passes.forward import texts_of
from learner.passes.packing import Packed, passes_for
from learner.passes.pooling import first_state
from tests.learner.families import _SHAPE, WITH_SDPA, bert
from tests.learner.test_packing import LENGTHS, model_of, rows, texts_of_lengths

OF_BERT_KIND = ("bert", "roberta", "xlm-roberta", "electra")
with_integers = pytest.mark.skipif(
    not torch.cpu._is_vnni_supported(), reason="this processor has no AVX512-VNNI"
)
TUNINGS = ("full", "top:1", "top:2", "lora:2", "prefix:3")


def expected(own: Packed, model: Any, texts: Sequence[Any]) -> torch.Tensor:
    """First tokens' states (n, D), of those of all tokens."""
    return torch.stack([states[0] for states in texts_of(own.run(model, rows(texts)))])


def calculated_whole(model: Any) -> tuple[Packed, Sequence[Any], torch.Tensor]:
    """Passes that calculate a last layer for all tokens; some texts, and first tokens' states."""
    own = passes_for(model)
    assert isinstance(own, Packed)
    assert not own.first_alone
    texts = texts_of_lengths([3, 8])
    with torch.no_grad():
        return own, texts, own.vectors(model, rows(texts), first_state)


def gradients(model: Any, loss: torch.Tensor) -> Sequence[torch.Tensor]:
    return torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)


@pytest.mark.parametrize("name", OF_BERT_KIND)
def test_states_and_gradients_are_those_of_all_tokens(name: str) -> None:
    model = model_of(WITH_SDPA[name])
    own = passes_for(model)
    assert isinstance(own, Packed)
    assert own.first_alone

    @settings(max_examples=25, deadline=None, database=None)
    @given(LENGTHS)
    def check(lengths: list[int]) -> None:
        texts = texts_of_lengths(sorted(lengths))
        wanted = expected(own, model, texts)
        found = own.vectors(model, rows(texts), first_state)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        towards = torch.linspace(-1, 1, found.numel()).view_as(found)
        one, other = (gradients(model, (states * towards).sum()) for states in (found, wanted))
        largest = max(float(own.abs().max()) for own in other)
        for ours, theirs in zip(one, other, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * largest)

    check()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("tuning", TUNINGS)
def test_under_any_tuning_a_state_has_the_same_bits_whatever_is_beside_it(
    tuning: str, precision: str
) -> None:
    arithmetic.use(1)
    own = Encoder(model_of(bert()), tuning=tuning, precision=precision)
    texts = texts_of_lengths((1, 2, 7, 8, 9, 33, 33, 40), seed=1)
    draw = torch.Generator().manual_seed(0)
    for parameter in own.trainable_parameters():  # adapters start as if they were not there
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    with torch.no_grad():
        together = own.first_states(texts)
        assert isinstance(own.passes, Packed)
        own.passes.first_alone = False
        all_tokens = own.first_states(texts)
        own.passes.first_alone = True
        assert cosine_similarity(together, all_tokens).min() > 0.9999

        @settings(max_examples=20, deadline=None, database=None)
        @given(st.lists(st.integers(0, len(texts) - 1), min_size=1, unique=True))
        def check(places: list[int]) -> None:
            own.cache = PrefixCache()
            found = own.first_states([texts[place] for place in places])
            assert torch.equal(found, together[places])

        check()


def test_the_last_feed_forward_sees_first_tokens_alone() -> None:
    own = Encoder(model_of(bert()), tuning="full", pooling="cls")
    seen: list[list[int]] = [[], []]
    for layer, counts in zip(own.model.encoder.layer, seen, strict=True):
        layer.intermediate.dense.register_forward_pre_hook(
            lambda _, given, counts=counts: counts.append(given[0].numel() // 32)
        )
    with torch.no_grad():
        own(texts_of_lengths([40] * 20))
    assert seen == [[800], [20]]


def test_a_mean_still_reads_all_tokens() -> None:
    texts = texts_of_lengths([5, 17])
    own, plain = Encoder(model_of(bert()), tuning="full", pooling="mean"), model_of(bert())
    with torch.no_grad():
        found = own(texts)
        for ids, vector in zip(texts, found, strict=True):
            states = plain(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0]
            mean = torch.nn.functional.normalize(states.mean(0), dim=0)
            torch.testing.assert_close(vector, mean, rtol=1e-4, atol=1e-4)


def test_dropout_of_the_last_layer_acts_in_training_alone() -> None:
    own = Encoder(model_of(bert()), tuning="full", pooling="cls", dropout=0.5)
    last, texts = own.model.encoder.layer[-1], texts_of_lengths([9, 12])
    for dropout in (last.attention.self.dropout, last.attention.output.dropout):
        set_dropout(own.model, 0.0)
        dropout.p = 0.5
        assert torch.equal(own.eval()(texts), own(texts))
        assert not torch.equal(own.train()(texts), own(texts))


def test_a_layer_that_does_more_than_bert_is_calculated_whole() -> None:
    model = model_of(bert())
    last = model.encoder.layer[-1]

    class Scaled(type(last)):  # type: ignore[misc]
        def forward(self, *given: Any, **others: Any) -> torch.Tensor:
            return 2 * super().forward(*given, **others)  # type: ignore[no-any-return]

    last.__class__ = Scaled
    own, texts, found = calculated_whole(model)
    with torch.no_grad():
        assert torch.equal(found, expected(own, model, texts))


def xmod(**changes: Any) -> XmodConfig:
    """A family whose layers have parts of BERT's names, and adapters of languages beside them."""
    return XmodConfig(**{**_SHAPE, "languages": ["a"], "default_language": "a", **changes})


def test_a_family_with_parts_of_the_same_names_that_calculates_more_is_calculated_whole() -> None:
    model, plain = model_of(xmod()), model_of(xmod())
    _, texts, found = calculated_whole(model)
    with torch.no_grad():
        for ids, state in zip(texts, found, strict=True):
            alone = plain(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0, 0]
            torch.testing.assert_close(state, alone, rtol=1e-4, atol=1e-4)


@with_integers
@pytest.mark.parametrize("size", [0.3, 1e-3])
def test_such_a_family_is_not_served_with_integers_that_leave_a_part_out(size: float) -> None:
    own = Encoder(model_of(xmod(initializer_range=size)), tuning="full", precision="int8")
    with pytest.raises(ModelUnsupported, match=r"serving\.precision: int8 .*XmodModel has others"):
        own.round_weights()


@with_integers
def test_integers_give_what_all_tokens_give() -> None:
    own = Encoder(model_of(bert()), tuning="full", pooling="cls", precision="int8")
    own.round_weights()
    texts = texts_of_lengths((1, 2, 7, 8, 9, 33, 33, 40), seed=1)
    with torch.no_grad():
        found = own.first_states(texts)
        assert isinstance(own.passes, Packed)
        own.passes.first_alone = False
        np.testing.assert_allclose(found, own.first_states(texts), rtol=1e-3, atol=1e-2)
