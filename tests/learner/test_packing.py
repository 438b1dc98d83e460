"""Packed texts: each has the vector that it has alone, the same bits, and the same gradient."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModel,
    LlamaConfig,
    PretrainedConfig,
)

from learner import arithmetic
from learner.encoder.encoder import Encoder
from learner.passes import packing
from learner.passes.forward import pooled, texts_of
from learner.passes.packing import MAX_TOKENS, Packed, passes_for
from learner.passes.padding import Padded
from learner.passes.pooling import POOLINGS
from learner.training.adamw import AdamW, Group
from tests.learner.families import _SHAPE, WITH_SDPA, bert, gpt2, roberta

PACKED: dict[str, PretrainedConfig] = {
    **{name: config for name, config in WITH_SDPA.items() if name != "modernbert"},
    "llama": LlamaConfig(**_SHAPE, num_key_value_heads=1, pad_token_id=0),
}
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def model_of(config: PretrainedConfig) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModel.from_config(copy.deepcopy(config))  # type: ignore[no-untyped-call]
        return model.eval()


def texts_of_lengths(lengths: Sequence[int], seed: int = 0) -> list[NDArray[np.int64]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(5, int(_SHAPE["vocab_size"]), length) for length in lengths]


def rows(texts: Sequence[NDArray[np.int64]]) -> list[torch.Tensor]:
    return [torch.from_numpy(ids) for ids in texts]


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_text_has_the_states_that_it_has_alone(name: str) -> None:
    config = PACKED[name]
    plain, model = model_of(config), model_of(config)
    passes = passes_for(model)
    assert isinstance(passes, Packed)
    texts = rows(texts_of_lengths([3, 17, 1, 17, 40, 8, 2, 2]))
    with torch.no_grad():
        found = list(texts_of(passes.run(model, texts)))
        for states, ids in zip(found, texts, strict=True):
            alone = plain(input_ids=ids[None]).last_hidden_state[0]
            torch.testing.assert_close(states, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [WITH_SDPA["modernbert"], gpt2()],
    ids=["modernbert", "gpt2"],
)
def test_a_model_packed_or_not_has_its_own_vectors(config: PretrainedConfig) -> None:
    plain, model = model_of(config), model_of(config)
    encoder = Encoder(model, tuning="full", pooling="lasttoken")
    texts = texts_of_lengths([3, 30, 1, 17, 9])
    with torch.no_grad():
        found = encoder(texts)
        for vector, ids in zip(found, rows(texts), strict=True):
            alone = plain(input_ids=ids[None]).last_hidden_state[0, -1]
            torch.testing.assert_close(vector, normalize(alone, dim=0), rtol=1e-3, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.randoms(use_true_random=False))
@pytest.mark.parametrize("tuning", ["full", "top:1", "frozen", "prefix:3"])
def test_a_vector_has_the_same_bits_whatever_it_is_packed_with(
    tuning: str, lengths: list[int], shuffled: Any
) -> None:
    arithmetic.use(1)
    encoder = Encoder(model_of(bert()), tuning=tuning)
    texts = texts_of_lengths(lengths)
    order = list(range(len(texts)))
    shuffled.shuffle(order)
    with torch.no_grad():
        together = encoder([texts[i] for i in order])
        for place, i in enumerate(order):
            encoder.cache = type(encoder.cache)()  # nothing is kept
            assert torch.equal(encoder([texts[i]])[0], together[place])


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh", "gelu"])
@pytest.mark.parametrize("width", [60, 600])
def test_bits_do_not_depend_on_where_an_activation_s_last_whole_vector_ends(
    activation: str, width: int
) -> None:
    arithmetic.use(1)
    config = bert(intermediate_size=width, hidden_act=activation)
    encoder = Encoder(model_of(config), tuning="full", pooling="lasttoken")
    texts = texts_of_lengths([1, 2, 3, 5, 6, 7, 9, 11, 13, 15, 17, 19, 21, 23, 30])
    with torch.no_grad():
        together = encoder(texts)
        for ids, vector in zip(texts, together, strict=True):
            assert torch.equal(encoder([ids])[0], vector)


@given(st.lists(st.integers(1, 2 * MAX_TOKENS), max_size=30))
def test_passes_hold_each_text_once_and_few_tokens(lengths: list[int]) -> None:
    parts = list(Packed(model_of(bert())).divide(lengths) if lengths else [])
    assert sorted(place for part in parts for place in part) == list(range(len(lengths)))
    for part in parts:
        own = [lengths[place] for place in part]
        assert own == sorted(own)
        assert sum(own) <= MAX_TOKENS or len(own) == 1


@given(LENGTHS)
@settings(max_examples=25, deadline=None)
def test_one_padded_block_of_a_device_pools_as_views_by_length_do(lengths: list[int]) -> None:
    hidden = torch.randn(sum(lengths), 8, generator=torch.Generator().manual_seed(0))
    for pool in POOLINGS.values():
        views = pooled(packing._by_length(hidden, lengths), pool)
        gathered = pooled(packing.gathered(hidden, lengths), pool)
        torch.testing.assert_close(gathered, views)
    for one, other in zip(
        texts_of(packing._by_length(hidden, lengths)),
        texts_of(packing.gathered(hidden, lengths)),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_a_model_that_packing_changes_is_padded_and_works_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "_first_position", lambda model: 0)  # wrong for RoBERTa
    plain, model = model_of(roberta()), model_of(roberta())
    passes = passes_for(model)
    assert isinstance(passes, Padded)
    (ids,) = rows(texts_of_lengths([9]))
    with torch.no_grad():
        (found,) = texts_of(passes.run(model, [ids]))
        torch.testing.assert_close(found, plain(input_ids=ids[None]).last_hidden_state[0])


def test_a_packed_model_that_is_not_told_where_texts_lie_says_so() -> None:
    model = model_of(bert())
    Packed(model)
    with pytest.raises(packing.CannotPack, match="where they lie was not given"):
        model(input_ids=torch.ones(1, 4, dtype=torch.long))


def test_fifty_steps_on_ragged_batches_are_those_of_plain_transformers() -> None:
    """Weighted cross-entropy, AdamW, fp32: losses within 1e-5, parameters within 2e-4."""
    draw = np.random.default_rng(0)
    ours = Encoder(model_of(bert()), tuning="full")
    plain = model_of(bert())
    heads = [torch.nn.Linear(32, 2) for _ in range(2)]
    heads[1].load_state_dict(heads[0].state_dict())
    moving = [*ours.trainable_parameters(), *heads[0].parameters()]
    moving = [p for p in moving if not any(p is q for q in ours.model.pooler.parameters())]
    adamw = AdamW([Group(parameters=moving, lr=1e-3, weight_decay=0.01)], 16)
    theirs = torch.optim.AdamW([*plain.parameters(), *heads[1].parameters()], 1e-3)
    for step in range(50):
        texts = texts_of_lengths(draw.integers(1, 40, 16).tolist(), seed=step)
        labels = torch.from_numpy(draw.integers(0, 2, 16))
        weights = torch.from_numpy(draw.lognormal(0, 1, 16)).float()
        adamw.zero_grad()
        loss = _weighted(heads[0](ours(texts)), labels, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        adamw.step(16)
        theirs.zero_grad()
        other = _weighted(heads[1](_padded_mean(plain, rows(texts))), labels, weights)
        other.backward()  # type: ignore[no-untyped-call]
        theirs.step()
        assert abs(loss.item() - other.item()) < 1e-5
    for (name, one), (_, two) in zip(
        ours.model.named_parameters(), plain.named_parameters(), strict=True
    ):
        if not name.endswith("key.bias"):  # softmax cancels it: its gradient is rounding alone
            torch.testing.assert_close(one, two, rtol=0, atol=2e-4, msg=name)


def _weighted(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (cross_entropy(logits, labels, reduction="none") * weights).mean()


def _padded_mean(model: Any, texts: Sequence[torch.Tensor]) -> torch.Tensor:
    mask = pad_sequence([torch.ones_like(ids) for ids in texts], batch_first=True)
    states = model(pad_sequence(list(texts), batch_first=True), attention_mask=mask)
    real = mask[:, :, None].float()
    mean: torch.Tensor = (states.last_hidden_state * real).sum(1) / real.sum(1)
    return normalize(mean, dim=-1)


@pytest.mark.parametrize("tuning", ["full", "top:1"])
def test_checkpointed_passes_have_the_same_gradient_and_keep_little(tuning: str) -> None:
    arithmetic.use(1)
    texts = texts_of_lengths([3, 17, 1, 17, 40, 8, 2, 2])
    gradients, kept = [], []
    for checkpointing in (False, True):
        encoder = Encoder(
            model_of(bert()), tuning=tuning, dropout=0.1, checkpointing=checkpointing
        ).train()
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            vectors = encoder(texts)
        weight = torch.linspace(-1, 1, vectors.numel()).view_as(vectors)
        (vectors * weight).sum().backward()
        gradients.append([p.grad for p in encoder.trainable_parameters() if p.grad is not None])
        kept.append(sum(sizes))
    assert all(map(torch.equal, *gradients))
    assert len(gradients[0]) > 10
    assert kept[1] < kept[0] / 10
