"""Encoders: one text, one vector, whatever it is encoded with, however it is tuned, and whoever opens the folder."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer, DistilBertConfig, DistilBertModel

from learner.encoder.model import Encoder, PrefixCache, load_pretrained
from learner.encoder.tokens import Texts, letter_tokenizer, load_tokenizer
from learner.errors import ModelMissing, TuningUnsupported
from learner.ranker import Ranker
from learner.residual import QueryResidual
from tests.learner.training import batches, published, text, trainer

TEXTS = [
    "red running shoes",
    "Red running shoe, size 9",
    "waterproof rain jacket for hiking, dark green, with hood and taped seams, men",
    "desk lamp",
    "a",
    "noise cancelling over-ear headphones with forty hours of battery life and a case for travelling",
    "running",
    "steel water bottle, 750 ml",
]


@cache
def minilm() -> tuple[Any, Any, str]:
    torch.set_num_threads(1)
    return load_pretrained("minilm-l6")


def vectors(encoder: Encoder, tokenizer: Any, strings: list[str]) -> NDArray[np.float32]:
    ids = Texts(tokenizer, max_tokens=64)
    with torch.no_grad():
        found: NDArray[np.float32] = encoder([ids.ids(s) for s in strings]).numpy()
    return found


def tiny(**changes: Any) -> tuple[Encoder, Any]:
    model, tokenizer, _ = load_pretrained("random:2x64")
    return Encoder(model, **{"tuning": "full", **changes}), tokenizer


@pytest.mark.parametrize("tuning", ["full", "top:1", "frozen"])
def test_a_text_has_one_vector_whatever_it_is_encoded_with(tuning: str) -> None:
    model, tokenizer, pooling = minilm()
    many = [*TEXTS, *(f"{text(i)} number {i}" for i in range(90))]
    together = vectors(Encoder(model, tuning=tuning, pooling=pooling), tokenizer, many)
    alone = Encoder(model, tuning=tuning, pooling=pooling)
    for i in [*range(len(TEXTS)), 40, 97]:
        np.testing.assert_array_equal(vectors(alone, tokenizer, [many[i]])[0], together[i])
    np.testing.assert_array_equal(vectors(alone, tokenizer, many[::-1])[::-1], together)


@pytest.mark.parametrize("tuning", ["top:1", "frozen"])
def test_a_kept_text_has_the_vector_that_it_had_when_it_was_new(tuning: str) -> None:
    encoder, tokenizer = tiny(tuning=tuning)
    np.testing.assert_array_equal(
        vectors(encoder, tokenizer, TEXTS), vectors(encoder, tokenizer, TEXTS)
    )
    forgetful, _ = tiny(tuning=tuning, cache=PrefixCache(max_bytes=1))
    vectors(forgetful, tokenizer, TEXTS)
    np.testing.assert_array_equal(
        vectors(forgetful, tokenizer, TEXTS[::-1])[::-1], vectors(encoder, tokenizer, TEXTS)
    )


def test_frozen_and_top_and_full_agree_within_half_precision() -> None:
    model, tokenizer, pooling = minilm()
    full = vectors(Encoder(model, tuning="full", pooling=pooling), tokenizer, TEXTS)
    for tuning in ("top:1", "top:3", "top:6", "frozen"):
        other = vectors(Encoder(model, tuning=tuning, pooling=pooling), tokenizer, TEXTS)
        np.testing.assert_allclose(other, full, atol=2e-3, err_msg=tuning)
        assert ((other * full).sum(1) > 0.9999).all()


def test_a_tuning_moves_its_own_layers_only() -> None:
    names = {}
    for tuning in ("full", "top:1", "frozen"):
        encoder, tokenizer = tiny(tuning=tuning)
        found = encoder([Texts(tokenizer, max_tokens=64).ids("red shoes")])
        assert found.requires_grad == (tuning != "frozen")
        names[tuning] = {name for name, p in encoder.model.named_parameters() if p.requires_grad}
    assert names["frozen"] == set()
    assert {name.split(".")[2] for name in names["top:1"]} == {"1"}
    assert names["full"] > names["top:1"]


def test_the_pooling_is_the_first_token_or_the_mean_over_the_real_ones() -> None:
    for pooling in ("cls", "mean"):
        encoder, tokenizer = tiny(pooling=pooling)
        ids = torch.as_tensor(Texts(tokenizer, max_tokens=64).ids("red shoes"))[None]
        with torch.no_grad():
            hidden = encoder.model(input_ids=ids).last_hidden_state[0]  # no padding at all
        plain = hidden[0] if pooling == "cls" else hidden.mean(0)
        np.testing.assert_allclose(
            vectors(encoder, tokenizer, ["red shoes"])[0], plain / plain.norm(), atol=1e-6
        )


def test_a_sentence_transformers_folder_says_its_own_pooling(tmp_path: Path) -> None:
    model, tokenizer, _ = load_pretrained("random:1x32")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_pretrained(str(tmp_path))[2] == "mean"
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert load_pretrained(str(tmp_path))[2] == "cls"


def test_layers_that_cannot_be_reached_one_by_one_are_refused_by_name() -> None:
    small = DistilBertModel(
        DistilBertConfig(
            vocab_size=len(letter_tokenizer()), dim=32, n_layers=2, n_heads=2, hidden_dim=64
        )
    )
    with pytest.raises(
        TuningUnsupported,
        match=r"learner\.tuning: top:1 needs an encoder with encoder\.layer, DistilBertModel has none",
    ):
        Encoder(small, tuning="top:1")
    with pytest.raises(
        TuningUnsupported, match=r"learner\.tuning: got top:3, the encoder has 2 layers"
    ):
        tiny(tuning="top:3")
    for tuning in ("full", "frozen"):
        np.testing.assert_allclose(
            np.linalg.norm(
                vectors(Encoder(small, tuning=tuning), letter_tokenizer(), TEXTS), axis=1
            ),
            1,
            atol=1e-3,
        )


def test_a_model_that_is_not_there_is_one_error_that_says_what_would_do(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nothing"), "sentence-transformers/all-MiniLM-L6-v2"):
        with pytest.raises(
            ModelMissing,
            match=r"learner\.model: got '.*', expected minilm-l6.*an existing folder.*learner\.download: true",
        ):
            load_pretrained(name)
    with pytest.raises(ModelMissing, match=rf"learner\.model: '{tmp_path}' cannot be loaded"):
        load_pretrained(str(tmp_path))


def test_a_model_folder_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    load_pretrained("random:1x32")[0].save_pretrained(tmp_path)
    with pytest.raises(ModelMissing, match=rf"{tmp_path}: no tokenizer"):
        load_pretrained(str(tmp_path))


@pytest.mark.parametrize(("model", "tuning"), [("random:2x64", "full"), ("minilm-l6:2", "top:1")])
def test_the_folder_of_a_version_opens_with_plain_transformers_and_gives_the_same_vectors(
    tmp_path: Path, model: str, tuning: str
) -> None:
    learner = trainer(model=model, tuning=tuning, max_tokens=64)
    learner.step(batches(1)[0])
    folder = published(learner, tmp_path).path
    plain = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoded = tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        hidden = plain(
            input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]
        ).last_hidden_state
    real = encoded["attention_mask"][:, :, None].float()
    mean = (hidden * real).sum(1) / real.sum(1)
    with torch.no_grad():
        ours = learner.ranker.encoder([learner.ranker.texts.ids(s) for s in TEXTS])
    np.testing.assert_allclose(
        ours.numpy(),
        torch.nn.functional.normalize(mean, dim=-1).numpy(),
        atol=1e-5 if tuning == "full" else 2e-3,
    )


@pytest.mark.parametrize("interaction", ["bi_encoder", "cross_encoder"])
@pytest.mark.parametrize("tuning", ["top:1", "frozen"])
def test_before_any_training_the_ranking_is_that_of_the_cosine(
    interaction: str, tuning: str
) -> None:
    model, tokenizer, pooling = minilm()
    encoder = Encoder(model, tuning=tuning, pooling=pooling)
    ranker = Ranker(
        encoder,
        Texts(tokenizer, max_tokens=64),
        QueryResidual(encoder.width),
        interaction=interaction,
        scale=8.0,
    ).eval()
    with torch.inference_mode():
        scored = ranker(["running shoes"] * len(TEXTS), TEXTS)
    query, *items = vectors(encoder, tokenizer, ["running shoes", *TEXTS])
    cosine = np.stack(items) @ query
    assert np.argsort(-scored.click.numpy()).tolist() == np.argsort(-cosine).tolist()
    assert np.argsort(-scored.purchase.numpy()).tolist() == np.argsort(-cosine).tolist()
    np.testing.assert_allclose(np.diff(scored.click.numpy()), 8.0 * np.diff(cosine), atol=1e-4)
    assert cosine.argmax() in (0, 1)  # real text, real BERT: what is asked for comes first


def test_a_saved_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    for tokenizer in (minilm()[1], letter_tokenizer()):
        tokenizer.save_pretrained(tmp_path)
        again = Texts(load_tokenizer(tmp_path), max_tokens=16)
        for string in TEXTS:
            assert (
                again.ids(string).tolist() == Texts(tokenizer, max_tokens=16).ids(string).tolist()
            )


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60), st.integers(4, 32))
def test_no_text_and_no_pair_is_longer_than_its_budget(
    first: str, second: str, max_tokens: int
) -> None:
    for tokenizer in (minilm()[1], letter_tokenizer()):
        texts = Texts(tokenizer, max_tokens=max_tokens)
        assert 2 <= len(texts.ids(first)) <= max_tokens
        assert 2 <= len(texts.ids(first, second)) <= max_tokens
