"""Products of 8-bit integers: near those of float32, the same bits in any batch, only to serve."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity, scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from learner import arithmetic
from learner.artifact import Document, ScoringInput, Store
from learner.encoder.encoder import Encoder
from learner.encoder.load import load_pretrained, with_others
from learner.encoder.prefix_cache import PrefixCache
from learner.errors import ModelUnsupported
from learner.passes import int8
from learner.passes.aligned import attend
from learner.scorer import ModelScorer, load_scorer
from tests.learner.families import WITH_SDPA, WITHOUT_SDPA, bert
from tests.learner.test_packing import model_of
from tests.learner.training import batches, published, trainer

LENGTHS = (1, 2, 7, 15, 16, 17, 30, 33, 64, 64, 64, 100, 130)
QUANTIZED = ("bert", "roberta", "xlm-roberta", "electra")
TUNINGS = ("full", "top:1", "frozen", "lora:2", "ia3")
Array = np.ndarray[tuple[int], np.dtype[np.int64]]

pytestmark = pytest.mark.skipif(
    not torch.cpu._is_vnni_supported(), reason="this processor has no AVX512-VNNI"
)


def encoder(tuning: str = "full") -> Encoder:
    pretrained = load_pretrained("minilm-l6:2")
    model, pooling = pretrained.model, pretrained.pooling
    return Encoder(model, tuning=tuning, pooling=pooling, precision="int8")


def texts(most: int = 20_000) -> list[Array]:
    draw = np.random.default_rng(0)
    return [draw.integers(5, most, length) for length in LENGTHS]


def vectors(own: Encoder, given_texts: list[Array]) -> torch.Tensor:
    own.cache = PrefixCache()
    with torch.no_grad():
        found: torch.Tensor = own(given_texts)
        return found


def asked() -> ScoringInput:
    names = ("red shoes", "a waterproof jacket", "shoes", "a lamp of brass for the desk")
    return ScoringInput(query="shoes", documents=tuple(Document(text=name) for name in names))


@pytest.mark.parametrize("tuning", TUNINGS)
def test_vectors_are_near_those_of_float32(tuning: str) -> None:
    own = encoder(tuning)
    draw = torch.Generator().manual_seed(0)
    for parameter in own.trainable_parameters():
        if tuning in ("lora:2", "ia3"):  # start as if they were not there
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    exact = vectors(own, texts())
    own.round_weights()
    found = vectors(own, texts())
    assert not torch.equal(exact, found)
    assert cosine_similarity(exact, found).min() > 0.98


@pytest.mark.parametrize("name", QUANTIZED)
def test_families_of_berts_kind_are_quantized(name: str) -> None:
    config = {**WITH_SDPA, **WITHOUT_SDPA}[name]
    own = Encoder(model_of(config), tuning="full", precision="int8")
    few = texts(40)[:8]
    exact = vectors(own, few)
    own.round_weights()
    assert cosine_similarity(exact, vectors(own, few)).min() > 0.98


@pytest.mark.parametrize("name", sorted({*WITH_SDPA, *WITHOUT_SDPA} - {*QUANTIZED}))
def test_other_families_are_refused_by_name(name: str) -> None:
    config = {**WITH_SDPA, **WITHOUT_SDPA}[name]
    own = Encoder(model_of(config), tuning="full", precision="int8")
    kind = type(own.model).__name__
    with pytest.raises(ModelUnsupported, match=rf"serving\.precision: int8 .*{kind} has others"):
        own.round_weights()


def test_prefixes_are_refused() -> None:
    with pytest.raises(ModelUnsupported, match="int8 has no prefixes"):
        encoder("prefix:2").round_weights()


def test_another_activation_is_refused() -> None:
    own = Encoder(model_of(bert(hidden_act="relu")), tuning="full", precision="int8")
    with pytest.raises(ModelUnsupported, match="with GELU"):
        own.round_weights()


def test_a_processor_without_the_instructions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ModelUnsupported, match="avx512_vnni"):
        encoder().round_weights()


def test_vectors_that_become_others_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_LEVELS", 1)
    with pytest.raises(ModelUnsupported, match="other vectors than float32, a cosine of"):
        encoder().round_weights()


def test_a_later_version_that_becomes_another_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = trainer(model="minilm-l6:2", tuning="top:1")
    folders = []
    for number, batch in enumerate(batches(2)):
        assert own.step(batch).result == "ok"
        folders.append(published(own, tmp_path / str(number)).path)
    first = load_scorer(folders[0], "v1", threads=1, precision="int8")
    monkeypatch.setattr(int8, "_LEVELS", 1)
    with pytest.raises(ModelUnsupported, match="other vectors than float32"):
        load_scorer(folders[1], "v2", threads=1, precision="int8", fixed=first.fixed_parts)


@pytest.mark.parametrize("tuning", ["full", "top:1", "lora:2"])
def test_a_vector_has_the_same_bits_whatever_is_beside_it(tuning: str) -> None:
    arithmetic.use(1)
    own, given_texts = encoder(tuning), texts()
    own.round_weights()
    together = vectors(own, given_texts)

    @settings(max_examples=25, deadline=None, database=None)
    @given(st.lists(st.integers(0, len(given_texts) - 1), min_size=1, unique=True))
    def check(places: list[int]) -> None:
        assert torch.equal(vectors(own, [given_texts[i] for i in places]), together[places])

    check()


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=9),
    heads=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_aligned_attention_is_attention(lengths: list[int], heads: int, seed: int) -> None:
    arithmetic.use(1)
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(sum(lengths), 3, heads, 16, generator=draw).div(2).bfloat16()
    query, key, value = states.unbind(1)
    found = attend(query, key, value, tuple(sorted(lengths))).flatten(1)
    expected = []
    for part in torch.split(states.double(), sorted(lengths)):
        query, key, value = part.permute(1, 2, 0, 3)
        expected.append(scaled_dot_product_attention(query, key, value, scale=1.0).transpose(0, 1))
    exact = torch.cat(expected).flatten(1)
    torch.testing.assert_close(found.double(), exact, rtol=0.05, atol=0.03)


@pytest.mark.parametrize("shift", [-1e4, -50.0, 0.0, 50.0, 1e4])
def test_attention_with_scores_of_any_size_is_a_mean_of_values(shift: float) -> None:
    """Scores in `aligned.attend` lose no maximum before they are raised: none may overflow."""
    lengths = [3, 16, 21]
    states = torch.randn(sum(lengths), 3, 2, 16, generator=torch.Generator().manual_seed(0))
    states[:, 0, :, 0], states[:, 1, :, 0] = shift, 1.0
    states = states.bfloat16()
    query, key, value = states.unbind(1)
    found = attend(query, key, value, tuple(lengths)).flatten(1)
    start = 0
    for length in lengths:
        own = slice(start, start + length)
        least, largest = (f(states[own, 2].flatten(1), dim=0) for f in (torch.amin, torch.amax))
        assert ((found[own] >= least - 0.05) & (found[own] <= largest + 0.05)).all()
        start += length


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how many numbers the largest tensor has that is made meanwhile."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        sizes = [own.numel() for own in tree_leaves(found) if isinstance(own, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return found


def test_attention_of_long_texts_is_exact_alone_and_beside_others_and_keeps_no_scores() -> None:
    arithmetic.use(1)
    lengths = (250, 257, 272, 300, 900)
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(sum(lengths), 3, 2, 16, generator=draw).bfloat16()
    query, key, value = states.unbind(1)
    with Largest() as largest:  # type: ignore[no-untyped-call]
        found = attend(query, key, value, lengths, scale=0.25)
    assert largest.numel < 2 * 900 * 900
    start = 0
    for length in lengths:
        own = slice(start, start := start + length)
        query, key, value = states[own].unbind(1)
        assert torch.equal(attend(query, key, value, (length,), scale=0.25), found[own])
        q, k, v = (part.double().transpose(0, 1) for part in (query, key, value))
        exact = scaled_dot_product_attention(q, k, v, scale=0.25).transpose(0, 1)
        torch.testing.assert_close(found[own].double(), exact, rtol=0.05, atol=0.03)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None, database=None)
def test_attention_of_first_tokens_is_that_part_of_all(lengths: list[int]) -> None:
    arithmetic.use(1)
    draw = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(sum(lengths), 3, 2, 16, generator=draw).bfloat16().unbind(1)
    in_order = tuple(sorted(lengths))
    starts = np.cumsum([0, *in_order[:-1]])
    alone = attend(query[starts], key, value, in_order, first=True)
    torch.testing.assert_close(alone, attend(query, key, value, in_order)[starts])


def test_a_layer_that_was_written_to_in_place_is_rounded_again() -> None:
    own = encoder()
    own.round_weights()
    before = [layer.int8_products for layer in own.model.encoder.layer]
    with torch.no_grad():
        own.model.encoder.layer[1].attention.self.query.weight *= 1.5
    own.round_weights()
    after = [layer.int8_products for layer in own.model.encoder.layer]
    assert [a is b for a, b in zip(after, before, strict=True)] == [True, False]


def test_a_layer_with_the_same_parameters_is_not_rounded_again() -> None:
    own = encoder()
    own.round_weights()
    layers = own.model.encoder.layer
    before = [layer.int8_products for layer in layers]
    layers[1].output.dense.weight = torch.nn.Parameter(layers[1].output.dense.weight * 1.5)
    own.round_weights()
    assert layers[0].int8_products is before[0]
    assert layers[1].int8_products is not before[1]


def test_what_models_share_is_rounded_once() -> None:
    own = encoder()
    other = Encoder(with_others(own.model, {}), tuning="full", precision="int8", passes=own.passes)
    for one in (own, other):
        one.round_weights()
    products = [[layer.int8_products for layer in one.model.encoder.layer] for one in (own, other)]
    assert all(products[0])
    assert all(map(operator.is_, *products))
    assert torch.equal(vectors(own, texts()), vectors(other, texts()))


@pytest.mark.parametrize("tuning", ["full", "top:1", "frozen", "lora:2", "ia3"])
def test_the_next_version_shares_what_never_moves_and_scores_as_if_loaded_alone(
    tuning: str, tmp_path: Path
) -> None:
    own = trainer(model="minilm-l6:2", tuning=tuning)
    folders = []
    for number, batch in enumerate(batches(2)):
        assert own.step(batch).result == "ok"
        folders.append(published(own, tmp_path / str(number)).path)
    first = load_scorer(folders[0], "v1", threads=1, precision="int8")
    first.score([asked()])
    second = load_scorer(folders[1], "v2", threads=1, precision="int8", fixed=first.fixed_parts)
    alone = load_scorer(folders[1], "v2", threads=1, precision="int8")
    np.testing.assert_array_equal(second.score([asked()])[0].score, alone.score([asked()])[0].score)


@pytest.mark.parametrize(
    "changes", [{}, {"precision": "bfloat16"}, {"interaction": "cross_encoder"}]
)
def test_a_store_serves_with_integers_nearly_what_was_learned(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    own = trainer(model="minilm-l6:2", tuning="top:1", **changes)
    for batch in batches(2):
        assert own.step(batch).result == "ok"
    published(own, tmp_path)
    scores = {}
    for rounded in (False, True):
        store = Store(tmp_path, precision="int8" if rounded else "learned")
        scorer = store.load(store.versions()[-1])
        assert isinstance(scorer, ModelScorer)
        scores[rounded] = scorer.score([asked()])[0].score
    assert not np.array_equal(scores[True], scores[False])
    np.testing.assert_allclose(scores[True], scores[False], rtol=0.1)
