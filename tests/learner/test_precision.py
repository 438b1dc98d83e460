"""Products in bfloat16: near those in float32, the same bits in any batch, served as learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from learner import arithmetic
from learner.artifact import Document, ScoringInput, Store
from learner.encoder.encoder import Encoder
from learner.encoder.load import load_pretrained
from learner.encoder.prefix_cache import PrefixCache
from learner.errors import ModelUnsupported
from learner.fingerprint import fingerprint
from learner.passes.key_value_prefixes import KeyValuePrefix
from learner.passes.packing import Layout
from learner.scorer import ModelScorer, load_scorer
from tests.learner.families import WITH_SDPA, WITHOUT_SDPA, saved
from tests.learner.test_packing import model_of
from tests.learner.training import batches, published, trainer, weights_of

LENGTHS = (1, 2, 7, 8, 9, 30, 33, 64, 64, 64, 100, 100, 128, 130, 130)
"""With runs of equal ones, and longer ones than attention by products takes."""
NOT_LOWERED = {"deberta"}
TUNINGS = ("full", "top:1", "frozen", "lora:2")


def encoder(tuning: str, precision: str) -> Encoder:
    pretrained = load_pretrained("minilm-l6:2")
    return Encoder(pretrained.model, tuning=tuning, pooling=pretrained.pooling, precision=precision)


def texts() -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    draw = np.random.default_rng(0)
    return [draw.integers(200, 20_000, length) for length in LENGTHS]


@pytest.mark.parametrize("tuning", TUNINGS)
def test_vectors_are_near_those_of_float32_and_are_float32(tuning: str) -> None:
    with torch.no_grad():
        exact, lowered = (encoder(tuning, p)(texts()) for p in ("float32", "bfloat16"))
    assert lowered.dtype == torch.float32
    assert not torch.equal(exact, lowered)
    assert (exact * lowered).sum(-1).min() > 0.999
    torch.testing.assert_close(lowered.norm(dim=-1), torch.ones(len(lowered)))


@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_vector_has_the_same_bits_whatever_is_beside_it(tuning: str) -> None:
    arithmetic.use(1)
    own, given_texts = encoder(tuning, "bfloat16"), texts()
    with torch.no_grad():
        together = own(given_texts)

        @settings(max_examples=20, deadline=None, database=None)
        @given(st.lists(st.integers(0, len(given_texts) - 1), min_size=1, unique=True))
        def check(places: list[int]) -> None:
            own.cache = PrefixCache()
            assert torch.equal(own([given_texts[i] for i in places]), together[places])

        check()


@pytest.mark.parametrize("name", [*WITH_SDPA, *sorted(WITHOUT_SDPA.keys() - NOT_LOWERED)])
def test_weights_kept_in_the_precision_of_the_products_give_the_same_bits(name: str) -> None:
    arithmetic.use(1)
    config = {**WITH_SDPA, **WITHOUT_SDPA}[name]
    own = Encoder(model_of(config), tuning="full", precision="bfloat16")
    draw = np.random.default_rng(0)
    given_texts = [draw.integers(5, 40, length) for length in (1, 2, 7, 7, 30)]
    with torch.no_grad():
        before = own(given_texts)
        own.round_weights()
        assert torch.equal(own(given_texts), before)
    products = [m.weight for m in own.model.modules() if isinstance(m, torch.nn.Linear)]
    assert products
    assert {weight.dtype for weight in products} == {torch.bfloat16}


def test_weights_of_float32_stay_as_they_are() -> None:
    own = encoder("full", "float32")
    own.round_weights()
    assert {p.dtype for p in own.parameters()} == {torch.float32}


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 160), min_size=1, max_size=6),
    heads=st.integers(1, 3),
    prefixed=st.booleans(),
    first=st.booleans(),
)
@example(lengths=[3, 300], heads=2, prefixed=True, first=False)
def test_attention_in_bfloat16_is_attention_and_so_is_its_gradient(
    lengths: list[int], heads: int, prefixed: bool, first: bool
) -> None:
    arithmetic.use(1)
    draw = torch.Generator().manual_seed(sum(lengths))
    lengths = sorted(lengths)
    layout = Layout.of(lengths, first_rows=len(lengths) if first else None)
    places = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    given_states = torch.randn(3, heads, sum(lengths), 16, generator=draw).bfloat16()
    given_prefix = torch.randn(2, heads, 5, 16, generator=draw).bfloat16()
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        states = given_states.to(dtype, copy=True).detach().requires_grad_()
        prefix = KeyValuePrefix(*given_prefix.to(dtype).unbind()) if prefixed else None
        query, key, value = states
        query = query[:, places] if first else query
        out = layout.attend(
            query, key, value, causal=False, scale=0.3, dropout=0.0, prefix=prefix, first=first
        )
        out.square().sum().backward()  # type: ignore[no-untyped-call]
        gradients = [states.grad, *([] if prefix is None else [prefix.keys.grad])]
        found.append([out, *gradients])
    for ours, exact in zip(*found, strict=True):
        assert ours is not None
        assert exact is not None
        spread = float(exact.detach().abs().max()) + 1e-6
        torch.testing.assert_close(ours.double() / spread, exact / spread, rtol=0.1, atol=0.03)


@pytest.mark.parametrize("tuning", ["full", "top:1", "lora:2", "prefix:3"])
def test_what_moves_is_float32_and_moves_nearly_as_under_float32(tuning: str) -> None:
    moved = {}
    for precision in ("float32", "bfloat16"):
        own = trainer(model="minilm-l6:2", tuning=tuning, precision=precision)
        start = {name: value.clone() for name, value in weights_of(own).items()}
        for batch in batches(2):
            assert own.step(batch).result == "ok"
        assert {p.dtype for p in own.ranker.parameters()} == {torch.float32}
        named = {n for n, p in own.ranker.encoder.named_parameters() if p.requires_grad}
        assert named
        change = [(weights_of(own)[f"encoder.{n}"] - start[f"encoder.{n}"]) for n in sorted(named)]
        moved[precision] = torch.cat([values.flatten() for values in change])
        assert moved[precision].norm() > 0
    exact, lowered = moved["float32"], moved["bfloat16"]
    assert torch.nn.functional.cosine_similarity(exact, lowered, dim=0) > 0.9


def test_a_version_is_served_in_the_precision_that_it_was_learned_in(tmp_path: Path) -> None:
    own = trainer(model="minilm-l6:2", tuning="top:1", precision="bfloat16")
    assert own.step(batches(1)[0]).result == "ok"
    published(own, tmp_path)
    store = Store(tmp_path)
    scorer = store.load(store.versions()[-1])
    assert isinstance(scorer, ModelScorer)
    ranker = scorer._ranker
    assert ranker.encoder.precision == ranker.starting._copy.precision == "bfloat16"
    ids = [own.ranker.texts.ids(text) for text in ("red shoes", "a waterproof jacket")]
    with torch.no_grad():
        assert torch.equal(ranker.encoder(ids), own.ranker.encoder(ids))
    assert ranker.encoder.model.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16
    asked = ScoringInput(query="shoes", documents=(Document(text="red shoes"),))
    assert np.isfinite(scorer.score([asked])[0].score).all()


@pytest.mark.parametrize("tuning", ["full", "top:1", "frozen", "lora:2", "ia3", "prefix:3"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_next_version_shares_what_never_moves_and_scores_as_if_loaded_alone(
    tuning: str, precision: str, tmp_path: Path
) -> None:
    own = trainer(model="minilm-l6:2", tuning=tuning, precision=precision)
    stream = batches(2)
    folders = []
    for number, batch in enumerate(stream):
        assert own.step(batch).result == "ok"
        folders.append(published(own, tmp_path / str(number)).path)
    asked = ScoringInput(query="shoes", documents=(Document(text="red shoes"), Document(text="a")))
    first = load_scorer(folders[0], "v1", threads=1)
    first.score([asked])
    second = load_scorer(folders[1], "v2", threads=1, fixed=first.fixed_parts)
    alone = load_scorer(folders[1], "v2", threads=1)
    for one in (second, alone):
        np.testing.assert_array_equal(one.score([asked])[0].score, alone.score([asked])[0].score)
    assert second.fixed == alone.fixed


def test_prefixes_of_another_precision_are_not_shared() -> None:
    exact, lowered = encoder("top:1", "float32"), encoder("top:1", "bfloat16")
    assert exact.prefix_digest() != lowered.prefix_digest()


def test_the_fingerprint_names_the_kernels_of_bfloat16_where_they_are_used() -> None:
    arithmetic.use(1)
    plain, lowered = fingerprint(), fingerprint("bfloat16")
    extra = lowered.pop("arithmetic_bfloat16")
    assert lowered.pop("encoder") != plain.pop("encoder")
    assert lowered == plain
    assert extra != plain["arithmetic"]


@pytest.mark.parametrize("name", sorted(NOT_LOWERED))
def test_a_model_that_does_not_run_in_it_is_refused_by_name(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, WITHOUT_SDPA[name])
    with pytest.raises(ModelUnsupported, match=r"learner\.precision: DebertaModel does not run"):
        trainer(model=str(folder), tuning="full", precision="bfloat16")


def test_another_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"learner\.precision: got 'float16', expected"):
        trainer(precision="float16")
