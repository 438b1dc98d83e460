"""Passes of a GPU, by their twins on a CPU: another kernel, and captures that run again."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PretrainedConfig

from benchmarks.accelerating.twin import Repeating
from learner import arithmetic
from learner.encoder.encoder import Encoder
from learner.encoder.token_types import mark_pairs
from learner.passes import varlen
from learner.passes.captures import Captures
from learner.passes.flat import FlatPass, Size, fits, laid_out
from learner.passes.flat_passes import Flat
from learner.passes.graphs import Made
from learner.passes.pooling import POOLINGS, SHARES, mean
from learner.passes.varlen import Bounds, text_by_text
from tests.learner.families import bert
from tests.learner.test_packing import LENGTHS, PACKED, model_of, rows, texts_of_lengths

SIZES = (Size(64, 8, 40), Size(256, 32, 40))
FORWARD_AND_BACKWARD = 2
SOME, OTHERS = [3, 17, 1, 17, 8, 2], [9, 9, 2, 30]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    arithmetic.use(1)


def encoders(
    config: PretrainedConfig, capture: Repeating | None = None, **options: Any
) -> tuple[Encoder, Encoder]:
    """Return an encoder, and its twin with the passes of a GPU."""
    model = model_of(config)
    captures = None if capture is None else Captures(capture, SIZES)
    flat = Flat(model, text_by_text, captures)
    return Encoder(model_of(config), **options), Encoder(model, passes=flat, **options)


def backward(encoder: Encoder, lengths: Sequence[int], seed: int = 0) -> Tensor:
    vectors: Tensor = encoder(texts_of_lengths(lengths, seed))
    weight = torch.linspace(-1, 1, vectors.numel()).view_as(vectors)
    (vectors * weight).sum().backward()  # type: ignore[no-untyped-call]
    return vectors.detach()


def gradients(encoder: Encoder) -> list[Tensor]:
    found = [p.grad for p in encoder.trainable_parameters() if p.grad is not None]
    encoder.zero_grad()
    return found


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    "tuning", ["full", "top:1", "lora:2", "frozen", "prefix:3", "prefix:2@top:1"]
)
def test_vectors_and_gradients_are_those_of_packed_texts(pooling: str, tuning: str) -> None:
    plain, flat = encoders(bert(), tuning=tuning, pooling=pooling)
    texts = texts_of_lengths(SOME)
    torch.testing.assert_close(flat(texts), plain(texts), rtol=1e-4, atol=1e-5)
    if tuning != "frozen":
        for encoder in (plain, flat):
            backward(encoder, SOME)
        for found, expected in zip(gradients(flat), gradients(plain), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", PACKED)
def test_every_family_that_packs_has_its_vectors(name: str) -> None:
    plain, flat = encoders(PACKED[name], tuning="full")
    texts = texts_of_lengths(SOME)
    with torch.no_grad():
        torch.testing.assert_close(flat(texts), plain(texts), rtol=1e-4, atol=1e-5)


@given(LENGTHS)
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("pool", SHARES)
def test_what_fills_a_pass_up_changes_no_vector(pool: Any, lengths: list[int]) -> None:
    size = Size(sum(lengths) + 77, len(lengths) + 3, 40)
    assert fits(lengths, size)
    model = model_of(bert())
    Flat(model, text_by_text)  # lets it pack
    flat = FlatPass(model, text_by_text, 0, 40, SHARES[pool])
    tokens = torch.cat(rows(texts_of_lengths(lengths)))
    filled = torch.cat([tokens, tokens.new_zeros(77)])
    found = flat(filled, laid_out(lengths, size, 0))
    torch.testing.assert_close(
        found[: len(lengths)], flat(tokens, laid_out(lengths, None, 0)), rtol=1e-4, atol=1e-5
    )
    found[: len(lengths)].sum().backward()
    used = torch.zeros(flat.model.config.vocab_size, dtype=torch.bool)
    used[tokens] = True
    table = flat.model.get_input_embeddings().weight
    assert table.grad is not None
    assert bool(table.grad.isfinite().all())
    assert not table.grad[~used].any()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.sampled_from(SIZES))
def test_each_token_lies_in_one_text(lengths: list[int], size: Size) -> None:
    if not fits(lengths, size):
        return
    places = laid_out(lengths, size, 2)
    assert len(places) == 2 * size.tokens + size.texts + 1
    positions, text, offsets = torch.split(places, [size.tokens, size.tokens, size.texts + 1])
    assert text[: sum(lengths)].tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]
    assert (text[sum(lengths) :] == size.texts).all()
    assert offsets[0] == 0
    assert offsets[-1] == size.tokens
    assert ((offsets.diff() >= 0) & (offsets.diff() <= size.longest)).all()
    assert offsets.diff()[: len(lengths)].tolist() == lengths
    first = offsets[:-1][offsets.diff() > 0]
    assert (positions[first] == 2).all()


@pytest.mark.parametrize("tuning", ["full", "top:1", "lora:2@top:1", "prefix:3"])
def test_a_capture_gives_what_the_passes_give(tuning: str) -> None:
    capture = Repeating()
    plain, flat = encoders(bert(), capture, tuning=tuning)
    for seed, lengths in enumerate([SOME, OTHERS, SOME[:2], OTHERS]):
        found, expected = (backward(encoder, lengths, seed) for encoder in (flat, plain))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for one, other in zip(gradients(flat), gradients(plain), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert len(capture.made) == FORWARD_AND_BACKWARD
    assert capture.number >= 8


def replays(capture: Repeating, act: Callable[[], object]) -> int:
    before = capture.number
    act()
    return capture.number - before


def test_a_capture_waits_for_its_backward_pass_and_for_gradients_to_be_dropped() -> None:
    capture = Repeating()
    _, flat = encoders(bert(), capture, tuning="full")
    texts = texts_of_lengths(SOME)
    backward(flat, SOME)
    assert replays(capture, lambda: backward(flat, SOME)) == 0  # gradients are kept
    flat.zero_grad()
    first = flat(texts)
    assert replays(capture, lambda: flat(texts)) == 0  # first has no gradient yet
    first.sum().backward()
    flat.zero_grad()
    del first
    assert replays(capture, lambda: flat(texts)) == 1  # which nobody goes back through
    assert replays(capture, lambda: backward(flat, SOME)) == FORWARD_AND_BACKWARD
    flat.zero_grad()
    with torch.no_grad():
        assert replays(capture, lambda: flat(texts)) == 0
    handle = flat.model.embeddings.register_forward_hook(lambda *_: None)
    assert replays(capture, lambda: flat(texts)) == 0  # it would not be called
    handle.remove()
    assert replays(capture, lambda: flat([*texts] * 20)) == 0  # too large
    assert len(capture.made) == FORWARD_AND_BACKWARD


def test_hooks_that_give_types_to_pairs_do_not_keep_a_pass_from_being_captured() -> None:
    capture = Repeating()
    _, flat = encoders(bert(), capture, tuning="full")
    mark_pairs(flat.model, 7)
    backward(flat, SOME)
    flat.zero_grad()
    assert replays(capture, lambda: backward(flat, SOME)) == FORWARD_AND_BACKWARD


def test_vectors_of_a_capture_stay_when_it_is_replayed() -> None:
    _, flat = encoders(bert(), Repeating(), tuning="full")
    first = backward(flat, SOME)
    flat.zero_grad()
    kept = first.clone()
    backward(flat, OTHERS)
    assert torch.equal(first, kept)


def test_parameters_that_lie_elsewhere_are_captured_anew() -> None:
    capture = Repeating()
    plain, flat = encoders(bert(), capture, tuning="full")
    for encoder in (flat, plain):
        backward(encoder, SOME)
        encoder.zero_grad()
        for parameter in encoder.trainable_parameters():
            parameter.data = parameter.data * 1.5
    found, expected = (backward(encoder, SOME) for encoder in (flat, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(capture.made) == 2 * FORWARD_AND_BACKWARD


def test_a_capture_that_does_nothing_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    capture = Repeating(forgets=True)
    plain, flat = encoders(bert(), capture, tuning="full")
    with caplog.at_level(logging.WARNING):
        found = backward(flat, SOME)
    assert "no CUDA graphs" in caplog.text
    torch.testing.assert_close(found, backward(plain, SOME), rtol=1e-4, atol=1e-5)
    flat.zero_grad()
    assert replays(capture, lambda: backward(flat, OTHERS)) == 0


def test_a_capture_that_fails_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(Repeating):
        def record(self, run: Callable[[], Made]) -> tuple[Made, Callable[[], None]]:
            if self.made:  # the backward pass
                raise RuntimeError("operation not permitted when stream is capturing")
            return super().record(run)

    _, flat = encoders(bert(), Fails(), tuning="full")
    with caplog.at_level(logging.WARNING):
        backward(flat, SOME)
    assert "a capture failed" in caplog.text
    assert all(p.grad is not None or "pooler" in n for n, p in flat.model.named_parameters())


def test_fifty_steps_with_captures_are_those_of_packed_texts() -> None:
    capture = Repeating()
    pair = encoders(bert(), capture, tuning="full")
    rules = [torch.optim.AdamW(e.trainable_parameters(), lr=1e-3, weight_decay=0) for e in pair]
    draw = torch.Generator().manual_seed(0)
    for step in range(50):
        lengths = torch.randint(1, 20, (8,), generator=draw).tolist()
        both = []
        for encoder, rule in zip(pair, rules, strict=True):
            rule.zero_grad()
            vectors = encoder(texts_of_lengths(lengths, step))
            loss = (vectors[:4] * vectors[4:]).sum(-1).exp().mean()
            loss.backward()
            rule.step()
            both.append(float(loss.detach()))
        assert math.isclose(*both, rel_tol=1e-4)
    assert capture.number > 50


def _new_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    assert cu_seq_q.dtype == torch.int32
    assert cu_seq_q is cu_seq_k
    assert int(cu_seq_q.diff().max()) <= max_q == max_k
    assert query.is_contiguous()
    assert query.shape == key.shape == value.shape
    starts = cu_seq_q.tolist()
    outputs = []
    for start, end in itertools.pairwise(starts):
        q, k, v = (states[start:end].transpose(0, 1) for states in (query, key, value))
        causal = window_size == (-1, 0)
        outputs.append(scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(0, 1))
    return torch.cat(outputs)


def _old_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
) -> Tensor:
    window = (-1, 0) if is_causal else (-1, -1)
    return _new_kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size=window)


@pytest.mark.parametrize("kernel", [_new_kernel, _old_kernel])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_torch_s_kernel_is_called_as_its_version_takes_it(
    kernel: Callable[..., Tensor],
    causal: bool,
    scale: float | None,
    key_heads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(varlen, "_torch_kernel", lambda: kernel)
    draw = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, 3, 10, 11], dtype=torch.int32)
    bounds = Bounds(offsets, 7, text_by_text)
    query = torch.randn(4, 11, 8, generator=draw).transpose(0, 1)
    key, value = (torch.randn(key_heads, 11, 8, generator=draw).transpose(0, 1) for _ in "kv")
    found = varlen.fused(query, key, value, bounds, seen=bounds, causal=causal, scale=scale)
    expected = text_by_text(query, key, value, bounds, seen=bounds, causal=causal, scale=scale)
    torch.testing.assert_close(found, expected)


def test_torch_s_own_kernel_takes_these_arguments() -> None:
    """On a CPU its first complaint is of the device, so of none of its arguments."""
    states = torch.zeros(4, 2, 8, dtype=torch.bfloat16)
    bounds = Bounds(torch.tensor([0, 4], dtype=torch.int32), 4, text_by_text)
    with pytest.raises(NotImplementedError):
        varlen.fused(states, states, states, bounds, seen=bounds, causal=True, scale=None)


def test_pooling_by_shares_is_pooling() -> None:
    hidden = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    shares = SHARES[mean](torch.tensor([0, 1]), torch.tensor([2, 2]))
    expected = torch.nn.functional.normalize((hidden[0, :2] * shares[:, None]).sum(0), dim=-1)
    torch.testing.assert_close(mean(hidden, mask)[0], expected)


@given(st.lists(st.tuples(LENGTHS, st.booleans()), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("tuning", ["full", "top:1"])
def test_captured_passes_that_learn_and_that_answer_take_turns(
    tuning: str, passes: list[tuple[list[int], bool]]
) -> None:
    plain, flat = encoders(bert(), Repeating(), tuning=tuning)
    for seed, (lengths, learns) in enumerate(passes):
        if learns:
            found, expected = (backward(encoder, lengths, seed) for encoder in (flat, plain))
            for one, other in zip(gradients(flat), gradients(plain), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
        else:
            with torch.inference_mode():
                texts = texts_of_lengths(lengths, seed)
                found, expected = flat(texts), plain(texts)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for encoder in (plain, flat):
                for parameter in encoder.trainable_parameters():
                    parameter.mul_(1.1)
    captures = flat.passes.captures  # type: ignore[attr-defined]
    assert captures.trusted


def test_in_inference_mode_the_forward_pass_alone_is_captured() -> None:
    capture = Repeating()
    _, flat = encoders(bert(), capture, tuning="full")
    texts = texts_of_lengths(SOME)
    with torch.inference_mode():
        flat(texts)
        assert len(capture.made) == 1
        assert replays(capture, lambda: flat(texts)) == 1
    first = flat(texts)
    with torch.inference_mode():
        assert replays(capture, lambda: flat(texts)) == 0  # first has no gradient yet
    first.sum().backward()
    with torch.inference_mode():
        del first
        assert replays(capture, lambda: flat(texts)) == 0  # gradients are kept
        flat.zero_grad()
        assert replays(capture, lambda: flat(texts)) == 1


@pytest.mark.parametrize("tuning", ["full", "top:1", "lora:2@top:1", "frozen"])
def test_what_is_captured_ahead_is_all_that_requests_need(tuning: str) -> None:
    capture = Repeating()
    plain, flat = encoders(bert(), capture, tuning=tuning)
    flat.capture_ahead()
    assert len(capture.made) == len(SIZES)
    assert not flat.cache.texts()
    for seed, lengths in enumerate([SOME, OTHERS, [1], [40] * 6]):
        texts = texts_of_lengths(lengths, seed)
        before = capture.number
        with torch.inference_mode():
            torch.testing.assert_close(flat(texts), plain(texts), rtol=1e-4, atol=1e-5)
        assert capture.number == before + 1
    assert len(capture.made) == len(SIZES)
    plain.capture_ahead()  # without captures there is nothing to do
