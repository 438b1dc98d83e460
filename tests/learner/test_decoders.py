"""Decoder-only models as rankers: last-token vectors, trained, resumed, served and exported."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from learner import arithmetic
from learner.artifact import Document, ScoringInput, Store
from learner.encoder.decoder import end_texts, is_causal
from learner.encoder.encoder import Encoder
from learner.encoder.load import load_pretrained
from learner.encoder.prefix_cache import PrefixCache
from learner.errors import ModelUnsupported, TuningUnsupported
from learner.export import export_encoder
from learner.passes.packing import Packed
from learner.passes.padding import Padded
from learner.scorer import ModelScorer
from learner.trainer import Trainer
from tests.learner.families import WITH_SDPA, WITHOUT_SDPA, gpt2, saved
from tests.learner.training import batches, config, published, reader, same, trainer, weights_of

END = "<|endoftext|>"
TEXTS = ["red running shoes", "a", "steel water bottle, 750 ml", "Größe XL", ""]
HALF = 2e-3
"""Rounding to half precision of what is kept, in a unit vector."""
Vectors = NDArray[np.float32]


def byte_tokenizer(*, first: str | None = None, named: bool = True, **special: str) -> Any:
    """Byte-level tokens as GPT-2 has them, and, with `first`, a token that begins each text.

    The token that ends a text is special, and the tokenizer's `eos_token` if it is `named`.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [name for name in (END, first) if name]
    vocabulary = {token: i for i, token in enumerate([*names, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.ByteLevel(trim_offsets=False)
    if first:
        begun = processors.TemplateProcessing(
            single=f"{first} $A",
            pair=f"{first} $A {first} $B",
            special_tokens=[(first, vocabulary[first])],
        )
        raw.post_processor = processors.Sequence([raw.post_processor, begun])
    raw.add_special_tokens(names)
    if named:
        special["eos_token"] = END
    if first:
        special["bos_token"] = first
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)  # type: ignore[no-untyped-call]


_SHAPE: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
SHAPES: dict[str, tuple[PretrainedConfig, dict[str, Any]]] = {
    "gpt2": (gpt2(vocab_size=258, n_layer=3, initializer_range=0.3), {}),
    "llama": (LlamaConfig(**_SHAPE), {"first": "<s>"}),
}
OTHERS: dict[str, PretrainedConfig] = {
    "qwen3": Qwen3Config(**_SHAPE, head_dim=16),
    "mistral": MistralConfig(**_SHAPE, sliding_window=8),
    "bloom": BloomConfig(vocab_size=258, hidden_size=32, n_layer=3, n_head=2),
}
TUNINGS = ("full", "top:1", "top:2", "top:3", "frozen", "lora:2", "lora:2@top:1")


def decoder(folder: Path, name: str, *, dtype: torch.dtype = torch.float32, **given: Any) -> Path:
    """A causal language model as its maker saves it: a tied head, no padding token, no pooling."""
    shape, special = SHAPES[name] if name in SHAPES else (OTHERS[name], {})
    causal = {"model_class": type(AutoModelForCausalLM.from_config(shape))}  # type: ignore[no-untyped-call]
    tokenizer = given.pop("tokenizer", None) or byte_tokenizer(**special)
    return saved(folder, shape, tokenizer=tokenizer, dtype=dtype, **causal)


def learned(folder: Path, **changes: Any) -> Trainer:
    """A learner whose texts are long enough for these."""
    return trainer(model=str(folder), **{"max_tokens": 40, **changes})


def of_transformers(folder: Path, texts: list[str], *, end: bool = True) -> Vectors:
    """State of the last token by transformers alone, text by text, so without any padding."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = [tokenizer.convert_tokens_to_ids(END)] if end else []
    with torch.no_grad():
        ids = [torch.tensor([tokenizer.encode(text) + ends]) for text in texts]
        states = [model(input_ids=row).last_hidden_state[0, -1] for row in ids]
    return np.stack([(state / state.norm()).numpy() for state in states])


def encoded(learner: Trainer, texts: list[str] = TEXTS) -> Vectors:
    ids = learner.ranker.texts.ids
    with torch.no_grad():
        found: Vectors = learner.ranker.encoder([ids(text) for text in texts]).numpy()
    return found


def served(learner: Trainer, root: Path) -> ModelScorer:
    published(learner, root)
    store = Store(root)
    scorer = store.load(store.versions()[-1])
    assert isinstance(scorer, ModelScorer)
    return scorer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", [*SHAPES, *OTHERS])
def test_a_decoder_s_vector_is_the_last_token_s_state(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    folder = decoder(tmp_path, name, dtype=dtype)
    learner = learned(folder, tuning="full")
    assert learner.ranker.encoder.pooling == "lasttoken"
    passes = Padded if name in ("mistral", "bloom") else Packed
    assert isinstance(learner.ranker.encoder.passes, passes)
    np.testing.assert_allclose(encoded(learner), of_transformers(folder, TEXTS), atol=1e-5)


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_decoder_learns_resumes_to_the_same_bits_and_is_served(
    tmp_path: Path, name: str, tuning: str
) -> None:
    folder = decoder(tmp_path / "model", name)
    learner = learned(folder, tuning=tuning)
    np.testing.assert_allclose(encoded(learner), of_transformers(folder, TEXTS), atol=HALF)
    before, stream = weights_of(learner), batches(4)
    for batch in stream[:2]:
        assert learner.step(batch).result == "ok"
    moved = {n for n, values in weights_of(learner).items() if not torch.equal(values, before[n])}
    in_encoder = {n for n in moved if n.startswith("encoder.")}
    trained = {id(p) for p in learner.ranker.encoder.trainable_parameters()}
    named = {n for n, p in learner.ranker.named_parameters() if id(p) in trained}
    assert in_encoder <= named
    assert bool(in_encoder) == (tuning != "frozen")

    resumed = learned(folder, tuning=tuning)
    resumed.restore(reader(learner.files()))
    scorer = served(learner, tmp_path / "store")
    for batch in stream[2:]:
        assert learner.step(batch).result == resumed.step(batch).result == "ok"
    assert same(weights_of(learner), weights_of(resumed))

    asked = ScoringInput(query="red shoe", documents=tuple(Document(text=t) for t in TEXTS))
    (scores,) = scorer.score([asked])
    assert np.isfinite(scores.score).all()
    assert scorer._ranker.encoder.pooling == "lasttoken"
    ids = [scorer._ranker.texts.ids(text) for text in TEXTS]
    expected = [resumed.ranker.texts.ids(text) for text in TEXTS]
    assert all(map(np.array_equal, ids, expected))


@pytest.mark.parametrize("tuning", ["full", "top:1", "frozen"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_decoder_s_vector_has_the_same_bits_whatever_is_beside_it(
    tmp_path_factory: pytest.TempPathFactory, name: str, tuning: str
) -> None:
    arithmetic.use(1)
    pretrained = load_pretrained(str(decoder(tmp_path_factory.mktemp("model"), name)))
    encoder = Encoder(pretrained.model, tuning=tuning, pooling=pretrained.pooling)
    draw = np.random.default_rng(0)
    texts = [draw.integers(2, 258, length) for length in (1, 2, 7, 7, 8, 9, 30, 33)]
    with torch.no_grad():
        together = encoder(texts)

        @settings(max_examples=15, deadline=None, database=None)
        @given(st.lists(st.integers(0, len(texts) - 1), min_size=1, unique=True))
        def check(places: list[int]) -> None:
            encoder.cache = PrefixCache()
            assert torch.equal(encoder([texts[i] for i in places]), together[places])

        check()


@pytest.mark.parametrize("name", SHAPES)
def test_a_padded_decoder_has_the_vectors_of_the_packed_one(tmp_path: Path, name: str) -> None:
    folder = decoder(tmp_path, name)
    ids = learned(folder).ranker.texts.ids
    for tuning in ("full", "top:2"):
        model, _, pooling = load_pretrained(str(folder))
        encoder = Encoder(model, tuning=tuning, pooling=pooling, passes=Padded())
        with torch.no_grad():
            found = encoder([ids(text) for text in TEXTS]).numpy()
        tolerance = 1e-5 if tuning == "full" else HALF
        np.testing.assert_allclose(found, of_transformers(folder, TEXTS), atol=tolerance)


def test_layers_of_two_kinds_keep_their_kinds_under_top(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    shape = Qwen3Config(
        **_SHAPE, head_dim=16, use_sliding_window=True, sliding_window=8, layer_types=kinds
    )
    folder = saved(tmp_path, shape, tokenizer=byte_tokenizer())
    long = ["red running shoes " * 2, "steel water bottle"]
    expected = of_transformers(folder, long)
    for tuning in ("full", "top:1", "top:2", "top:3"):
        learner = learned(folder, tuning=tuning)
        np.testing.assert_allclose(encoded(learner, long), expected, atol=HALF)


@pytest.mark.parametrize("first", [None, "<s>"])
def test_each_text_ends_in_the_end_of_text_token_also_when_it_is_cut(
    tmp_path: Path, first: str | None
) -> None:
    folder = saved(tmp_path, SHAPES["llama"][0], tokenizer=byte_tokenizer(first=first))
    texts = learned(folder, max_tokens=10).ranker.texts
    begin = [1] if first else []
    assert texts.ids("").tolist() == [*begin, 0]
    assert texts.ids("abc").tolist()[-1] == 0
    cut = texts.ids("abcdefghijklmnop").tolist()
    assert len(cut) == 10
    assert [cut[: len(begin)], cut[-1]] == [begin, 0]
    assert 0 not in cut[:-1]
    pair = texts.ids("ab", "cd").tolist()
    assert pair.count(0) == 2
    assert pair[-1] == 0


def test_a_tokenizer_that_ends_texts_itself_stays_as_it_is() -> None:
    tokenizer = byte_tokenizer()
    end_texts(tokenizer, gpt2())
    once = tokenizer.backend_tokenizer.to_str()
    end_texts(tokenizer, gpt2())
    assert tokenizer.backend_tokenizer.to_str() == once
    assert tokenizer.encode("ab")[-1] == 0


def test_the_model_names_the_token_where_the_tokenizer_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = byte_tokenizer(named=False)
    end_texts(tokenizer, LlamaConfig(eos_token_id=[9_999, 0]))
    assert (tokenizer.eos_token, tokenizer.encode("a")[-1]) == (END, 0)
    ordinary = byte_tokenizer(named=False).encode("a")[0]
    for eos in (None, ordinary, 257, 258, 9_999):
        caplog.clear()
        without = byte_tokenizer(named=False)
        without.add_tokens(["<note>"])  # not special: it may stand in a text
        with caplog.at_level(logging.INFO, "steelyard.learner"):
            end_texts(without, LlamaConfig(eos_token_id=eos))
        assert without.encode("a") == without.encode("a", add_special_tokens=False)
        assert [record.message for record in caplog.records] == ["no end-of-text token"]


def declared(folder: Path, pooling: str) -> Path:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
    return folder


def test_a_declared_pooling_is_kept_and_its_texts_are_as_it_was_trained(tmp_path: Path) -> None:
    last = declared(decoder(tmp_path / "last", "gpt2"), "lasttoken")
    expected = of_transformers(last, TEXTS[:-1], end=False)
    learner = learned(last, tuning="full")
    np.testing.assert_allclose(encoded(learner, TEXTS[:-1]), expected, atol=1e-5)
    mean = declared(decoder(tmp_path / "mean", "gpt2"), "mean")
    assert learned(mean).ranker.encoder.pooling == "mean"


def test_a_setting_names_another_pooling(tmp_path: Path) -> None:
    folder = decoder(tmp_path, "gpt2")
    mean = learned(folder, pooling="mean")
    assert mean.ranker.encoder.pooling == "mean"
    assert mean.ranker.texts.ids("ab")[-1] != 0
    declared(folder, "mean")
    last = learned(folder, pooling="lasttoken", tuning="full")
    np.testing.assert_allclose(encoded(last), of_transformers(folder, TEXTS), atol=1e-5)
    assert trainer(model="random:1x32", pooling="max").ranker.encoder.pooling == "max"
    refused = r"learner\.pooling: got mean, the version .* learned with lasttoken\. Set .*lasttoken"
    with pytest.raises(ModelUnsupported, match=refused):
        learned(folder).restore(reader(last.files()))
    assert "pooling" not in config().on_disk()
    assert config(pooling="cls").on_disk()["pooling"] == "cls"


@pytest.mark.parametrize("name", [*WITH_SDPA, *WITHOUT_SDPA, *SHAPES, *OTHERS])
def test_causal_models_are_found_by_what_they_do(tmp_path: Path, name: str) -> None:
    known = {**WITH_SDPA, **WITHOUT_SDPA, **OTHERS, **{n: each[0] for n, each in SHAPES.items()}}
    saved(tmp_path, known[name])
    model = AutoModel.from_pretrained(tmp_path).eval()
    assert is_causal(model) == (name in {"bert-decoder", *SHAPES, *OTHERS})


def test_a_model_whose_layers_cannot_be_cut_is_refused_before_the_weights(tmp_path: Path) -> None:
    shape = OPTConfig(vocab_size=258, hidden_size=32, num_attention_heads=2, ffn_dim=64)
    folder = saved(tmp_path, shape, tokenizer=byte_tokenizer())
    assert learned(folder, tuning="full").ranker.encoder.pooling == "lasttoken"
    (folder / "model.safetensors").unlink()
    with pytest.raises(TuningUnsupported, match=r"OPTModel has none; use full or frozen"):
        learned(folder, tuning="top:1")


def test_a_token_cannot_see_those_behind_it(tmp_path: Path) -> None:
    """The state of a text that another one begins with is a state of the longer one, too."""
    for name in SHAPES:
        pretrained = load_pretrained(str(decoder(tmp_path / name, name)))
        encoder = Encoder(pretrained.model, tuning="full", pooling="lasttoken")
        ids = np.arange(2, 30)
        with torch.no_grad():
            (block,) = encoder.passes.run(encoder.model, [torch.from_numpy(ids)])
            prefixes = encoder([ids[:length] for length in (1, 5, 28)])
        for length, vector in zip((1, 5, 28), prefixes, strict=True):
            state = block.hidden[0, length - 1]
            torch.testing.assert_close(vector, state / state.norm(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("interaction", ["cross_encoder"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_decoder_reads_pairs(tmp_path: Path, name: str, interaction: str) -> None:
    folder = decoder(tmp_path / "model", name)
    learner = learned(folder, interaction=interaction)
    assert learner.step(batches(1)[0]).result == "ok"
    asked = ScoringInput(query="red shoe", documents=tuple(Document(text=t) for t in TEXTS))
    (scores,) = served(learner, tmp_path / "store").score([asked])
    assert np.isfinite(scores.score).all()


@pytest.mark.parametrize("tuning", ["full", "top:1", "lora:2"])
@pytest.mark.parametrize("name", SHAPES)
def test_an_exported_decoder_has_its_vectors_in_sentence_transformers(
    tmp_path: Path, name: str, tuning: str
) -> None:
    library = pytest.importorskip("sentence_transformers")
    learner = learned(decoder(tmp_path / "model", name), tuning=tuning)
    assert learner.step(batches(1)[0]).result == "ok"
    version = published(learner, tmp_path / "store")
    for path, data in export_encoder(Store(tmp_path / "store"), version).files.items():
        (tmp_path / "out" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / path).write_bytes(data)
    modes = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    on = [key for key, value in modes.items() if value is True and key.startswith("pooling_mode")]
    assert on == ["pooling_mode_lasttoken"]
    model = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), encoded(learner), atol=HALF)
    assert learned(tmp_path / "out").ranker.encoder.pooling == "lasttoken"
