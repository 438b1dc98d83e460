"""Products in bfloat16: near those in float32, the same bits in any batch, served as learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner import arithmetic
from learner.artifact import Document, ScoringInput, Store
from learner.encoder.encoder import Encoder
from learner.encoder.load import load_pretrained
from learner.encoder.prefix_cache import PrefixCache
from learner.scorer import ModelScorer
from tests.learner.training import batches, published, trainer, weights_of

TUNINGS = ("full", "top:1", "frozen", "lora:2")


def encoder(tuning: str, precision: str) -> Encoder:
    pretrained = load_pretrained("minilm-l6:2")
    return Encoder(pretrained.model, tuning=tuning, pooling=pretrained.pooling, precision=precision)


def texts() -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    draw = np.random.default_rng(0)
    return [draw.integers(200, 20_000, length) for length in (1, 2, 7, 8, 9, 30, 33, 64, 64)]


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


@pytest.mark.parametrize("tuning", ["full", "top:1", "lora:2"])
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
    asked = ScoringInput(query="shoes", documents=(Document(text="red shoes"),))
    assert np.isfinite(scorer.score([asked])[0].score).all()


def test_prefixes_of_another_precision_are_not_shared() -> None:
    exact, lowered = encoder("top:1", "float32"), encoder("top:1", "bfloat16")
    assert exact.prefix_digest() != lowered.prefix_digest()


def test_the_fingerprint_names_the_kernels_of_bfloat16_where_they_are_used() -> None:
    arithmetic.use(1)
    plain, lowered = arithmetic.fingerprint(), arithmetic.fingerprint("bfloat16")
    extra = lowered.pop("arithmetic_bfloat16")
    assert lowered == plain
    assert extra != plain["arithmetic"]


def test_another_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"learner\.precision: got 'float16', expected"):
        trainer(precision="float16")
