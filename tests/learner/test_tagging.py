"""Tags of words: entities as conlleval counts them, the loss by its formula, words and tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
    XLNetConfig,
    XLNetModel,
)

from learner import arithmetic
from learner.config import LearnerConfig
from learner.encoder.tokens import letter_tokenizer, of_words
from learner.errors import ModelUnsupported, TuningUnsupported
from learner.passes.packing import Packed
from learner.passes.padding import Padded
from learner.tagging.entities import Entity, entities, figures, have_prefixes
from learner.tagging.tagger import Tagger
from learner.tagging.training import TaggedTokens, TagTraining, tag_loss

TAGS = ("O", "B-color", "I-color", "B-thing")
CONFIG = LearnerConfig(model="random:2x64", max_tokens=16, lr=1e-3, head_lr=1e-2)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    arithmetic.use(1)


def tagger(config: LearnerConfig = CONFIG, *, tuning: str = "full") -> Tagger:
    return Tagger(config, TAGS, tuning=tuning)


def text(own: Tagger, words: list[str], tags: list[str], weight: float = 1.0) -> TaggedTokens:
    tokens = own.tokens(words)
    targets = [TAGS.index(tags[word]) for word in tokens.words]
    return TaggedTokens(tokens=tokens, targets=np.asarray(targets, np.int64), weight=weight)


# --- entities ---


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", []),
        ("B-a I-a O B-a", [(0, 2, "a"), (3, 4, "a")]),
        ("B-a B-a", [(0, 1, "a"), (1, 2, "a")]),
        ("I-a I-a O I-a", [(0, 2, "a"), (3, 4, "a")]),
        ("I-a I-b I-a", [(0, 1, "a"), (1, 2, "b"), (2, 3, "a")]),
        ("B-a I-b", [(0, 1, "a"), (1, 2, "b")]),
        ("B-a I-a E-a I-a", [(0, 3, "a"), (3, 4, "a")]),
        ("S-a S-a E-a", [(0, 1, "a"), (1, 2, "a"), (2, 3, "a")]),
        ("B-a-b I-a-b", [(0, 2, "a-b")]),
    ],
)
def test_entities_of_prefixed_tags(tags: str, expected: list[tuple[int, int, str]]) -> None:
    assert entities(tags.split(), prefixes=True) == [Entity(*own) for own in expected]


def test_without_prefixes_a_run_of_one_tag_is_an_entity() -> None:
    found = entities(["a", "a", "b", "O", "a", "B-a"], prefixes=False)
    assert found == [(0, 2, "a"), (2, 3, "b"), (4, 5, "a"), (5, 6, "B-a")]


def conlleval(true: list[str], guessed: list[str]) -> tuple[int, int, int]:
    """Numbers of true, predicted and correct chunks, by the loop of conlleval.pl."""

    def split(tag: str) -> tuple[str, str]:
        prefix, _, kind = tag.partition("-")
        return prefix, kind

    def ends(before: str, kind_before: str, now: str, kind: str) -> bool:
        pairs = {"BB", "BO", "IB", "IO", "EE", "EI", "EO", "BS", "IS"} | {f"S{x}" for x in "BIEOS"}
        # conlleval.pl: E also ends before B; S was added by its later translations
        return before + now in pairs | {"EB", "ES"} or (before != "O" and kind_before != kind)

    def starts(before: str, kind_before: str, now: str, kind: str) -> bool:
        pairs = {"BB", "IB", "OB", "OI", "EE", "EI", "OE", "EB", "SB", "SI", "SE"}
        pairs |= {f"{x}S" for x in "BIEOS"}
        return before + now in pairs or (now != "O" and kind_before != kind)

    num_true = num_guessed = num_correct = 0
    last_true, last_guess, in_correct = ("O", ""), ("O", ""), False
    for t, g in [*zip(true, guessed, strict=True), ("O", "O")]:
        now_true, now_guess = split(t), split(g)
        if in_correct:
            end_true = ends(*last_true, *now_true)
            end_guess = ends(*last_guess, *now_guess)
            if end_true and end_guess and last_true[1] == last_guess[1]:
                in_correct = False
                num_correct += 1
            elif end_true != end_guess or now_true[1] != now_guess[1]:
                in_correct = False
        start_true = starts(*last_true, *now_true)
        start_guess = starts(*last_guess, *now_guess)
        if start_true and start_guess and now_true[1] == now_guess[1]:
            in_correct = True
        num_true += start_true
        num_guessed += start_guess
        last_true, last_guess = now_true, now_guess
    return num_true, num_guessed, num_correct


ALL_TAGS = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in "ab")]
PAIRS_OF_TAGS = st.lists(st.tuples(st.sampled_from(ALL_TAGS), st.sampled_from(ALL_TAGS)))


@given(st.lists(PAIRS_OF_TAGS, max_size=4))
def test_figures_are_those_of_conlleval(texts: list[list[tuple[str, str]]]) -> None:
    true = [[t for t, _ in own] for own in texts]
    guessed = [[g for _, g in own] for own in texts]
    found = figures(true, guessed, prefixes=True)
    sums = np.sum([conlleval(t, g) for t, g in zip(true, guessed, strict=True)] or [(0, 0, 0)], 0)
    own = found.entities
    assert [own.true, own.predicted, own.correct] == sums.tolist()
    by_type = found.by_type.values()
    assert sum(c.correct for c in by_type) == own.correct
    pairs = [pair for own in texts for pair in own]
    right = sum(t == g for t, g in pairs)
    assert found.accuracy == (right / len(pairs) if pairs else 0.0)


def test_figures_by_hand() -> None:
    true = [["B-a", "I-a", "O", "B-b"], ["O", "B-a"]]
    guessed = [["B-a", "O", "O", "B-b"], ["B-a", "B-a"]]
    found = figures(true, guessed, prefixes=True)
    assert found.accuracy == 4 / 6
    assert (found.entities.true, found.entities.predicted, found.entities.correct) == (3, 4, 2)
    assert found.entities.precision == 2 / 4
    assert found.entities.recall == 2 / 3
    assert math.isclose(found.entities.f1, 4 / 7)
    assert found.by_type["b"].f1 == 1.0
    assert figures([["O"]], [["O"]], prefixes=True).entities.f1 == 0.0


def test_prefixes_are_read_where_a_tag_begins_an_entity() -> None:
    assert have_prefixes(["O", "B-a", "I-a"])
    assert have_prefixes(["I-a"])
    assert not have_prefixes(["O", "brand", "S-bahn", "E-bike", "B-", "Bx"])


# --- words and tokens ---


def test_a_word_is_tagged_at_its_first_token_and_cut_words_are_counted() -> None:
    own = tagger(replace(CONFIG, max_tokens=8))  # [CLS] and [SEP] leave 6, one token a letter
    found = own.tokens(["red", "\u200b", "mug", "x", "yz"])
    assert found.places.tolist() == [1, 4]
    assert found.words.tolist() == [0, 2]
    assert (found.num_words, found.num_cut) == (5, 2)
    whole = tagger().tokens(["red", "\u200b", "mug", "x", "yz"])
    assert whole.places.tolist() == [1, 4, 7, 8]
    assert (whole.words.tolist(), whole.num_cut) == ([0, 2, 3, 4], 0)


def test_words_without_a_token_are_predicted_as_o() -> None:
    own = tagger(replace(CONFIG, max_tokens=8))
    with torch.no_grad():  # every word that has a token is B-thing
        own.model.classifier.bias[3] = 1.0
    texts = [own.tokens(words) for words in (["red", "\u200b", "mug", "x"], ["\u200b"], ["a"])]
    assert own.predict(texts) == [["B-thing", "O", "B-thing", "O"], ["O"], ["B-thing"]]


def byte_level() -> Any:
    """A byte-level tokenizer as RoBERTa's: words behind a space are other tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate(["<pad>", "<s>", *alphabet])}
    for merged in ("\u0120a", "\u0120b"):
        vocabulary[merged] = len(vocabulary)
    merges = [("\u0120", "a"), ("\u0120", "b")]
    raw = Tokenizer(models.BPE(vocabulary, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    given: dict[str, str] = {"pad_token": "<pad>", "cls_token": "<s>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **given)  # type: ignore[no-untyped-call]


def test_byte_level_words_are_those_of_the_text_behind_spaces() -> None:
    own = of_words(byte_level())
    tokens = own(["a", "b", "a"], is_split_into_words=True).tokens()
    assert tokens == byte_level()(" a b a").tokens() == ["\u0120a", "\u0120b", "\u0120a"]
    assert own(["a"], is_split_into_words=True).tokens() == ["\u0120a"]


def test_word_piece_words_are_those_of_the_text() -> None:
    ids = of_words(letter_tokenizer())(["red", "mug-2"], is_split_into_words=True)["input_ids"]
    assert ids == letter_tokenizer()("red mug-2")["input_ids"]


# --- loss and steps ---


def test_the_loss_is_its_formula() -> None:
    own = tagger()
    texts = [
        text(own, ["red", "mug", "x"], ["B-color", "B-thing", "O"], 2.0),
        text(own, ["a"], ["O"], 0.5),
        text(own, ["\u200b"], ["O"]),
    ]
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    log_p = logits.double().log_softmax(-1)
    expected = -(2.0 * (log_p[0, 1] + log_p[1, 3] + log_p[2, 0]) / 3 + 0.5 * log_p[3, 0]) / 3
    assert math.isclose(float(tag_loss(logits, texts, 3)), float(expected), rel_tol=1e-5)


def test_gradients_of_several_passes_are_those_of_one() -> None:
    """Texts that pad to different lengths, or are packed, add up to the gradient of L."""
    texts_of = [(["red", "mug"], ["B-color", "B-thing"]), (["yellow", "lamps"], ["O", "B-thing"])]
    found = []
    for way in (Padded, None):
        own = tagger()
        with torch.no_grad():
            own.model.classifier.weight.copy_(torch.arange(4 * 64).sin().view(4, 64))
        assert isinstance(own._passes, Packed)
        if way is not None:
            own.model.config._attn_implementation = "sdpa"
            own._passes = way()
        texts = [text(own, *each) for each in texts_of]
        training = TagTraining(own, CONFIG, batch_size=2, seed=0)
        loss = training._backward(texts)
        norms = [float(p.grad.norm()) for p in own.model.parameters() if p.grad is not None]
        found.append(np.asarray([loss, *norms]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-6)


def test_a_weight_of_two_is_the_text_twice() -> None:
    """Steps of AdamW count texts, so the steps are compared by their gradient."""
    own = tagger()
    first = text(own, ["red"], ["B-color"], 2.0)
    second = text(own, ["mug", "x"], ["B-thing", "O"])
    training = TagTraining(own, CONFIG, batch_size=2, seed=0)
    weighted = training._backward([first, second]) * 2
    twice = training._backward([replace(first, weight=1.0), replace(first, weight=1.0), second]) * 3
    assert math.isclose(weighted, twice, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("tuning", "moves"), [("full", "both"), ("frozen", "head"), ("top:1", "last")]
)
def test_exactly_what_the_tuning_says_moves(tuning: str, moves: str) -> None:
    own = tagger(tuning=tuning)
    before = {n: p.detach().clone() for n, p in own.model.named_parameters()}
    training = TagTraining(own, CONFIG, batch_size=1, seed=0)
    for _ in range(2):  # the first has no gradient below a head of zeros
        training.step([text(own, ["red", "mug"], ["B-color", "B-thing"])])
    moved = {n for n, p in own.model.named_parameters() if not torch.equal(p, before[n])}
    assert {"classifier.weight", "classifier.bias"} <= moved
    below = {name for name in moved if not name.startswith("classifier")}
    layers = {name.split(".")[3] for name in below if ".layer." in name}
    assert layers == {"both": {"0", "1"}, "head": set(), "last": {"1"}}[moves]
    assert ("bert.embeddings.word_embeddings.weight" in below) == (moves == "both")


def test_a_step_that_is_not_finite_moves_nothing() -> None:
    own = tagger()
    training = TagTraining(own, CONFIG, batch_size=2, seed=0)
    broken = text(own, ["red"], ["B-color"], math.inf)
    before = own.moving()
    assert math.isnan(training.step([broken]))
    assert all(torch.equal(before[name], after) for name, after in own.moving().items())
    result = training.epoch([broken, broken, text(own, ["mug"], ["B-thing"])], 1)
    assert (result.steps + result.refused, result.refused >= 1) == (2, True)


def test_bfloat16_learns_about_the_same() -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        config = LearnerConfig(model="random:2x64", max_tokens=16, precision=precision)
        own = tagger(config)
        training = TagTraining(own, config, batch_size=1, seed=0)
        own_text = text(own, ["red", "mug"], ["B-color", "B-thing"])
        losses.append([training.step([own_text]) for _ in range(4)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)
    assert losses[0] != losses[1]
    assert losses[1][-1] < losses[1][0]


# --- the folder ---


def check_folder(own: Tagger, folder: Path, words: list[list[str]]) -> None:
    """Compare the logits of the folder, by transformers alone, with the tagger's."""
    folder.mkdir()
    for name, data in own.files().items():
        (folder / name).write_bytes(data)
    model, report = AutoModelForTokenClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert [model.config.id2label[n] for n in range(len(TAGS))] == list(TAGS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = tokenizer(
        words, is_split_into_words=True, truncation=True, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model.eval()(**given).logits
        own.model.eval()
        texts = [own.tokens(each) for each in words]
        for part, ours in own.logits(texts):
            theirs = torch.cat([logits[place][texts[place].places] for place in part])
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


WORDS = [["red", "running", "shoes"], ["x"], ["blue", "mug", "yellow-green", "lamp"]]


def test_a_folder_gives_the_logits_that_were_trained(tmp_path: Path) -> None:
    own = tagger(replace(CONFIG, dropout=0.1))
    training = TagTraining(own, replace(CONFIG, dropout=0.1), batch_size=2, seed=0)
    for _ in range(3):
        training.step([text(own, ["red", "mug"], ["B-color", "B-thing"])])
    assert float(own.model.classifier.weight.detach().abs().max()) > 1e-3
    check_folder(own, tmp_path / "out", WORDS)


def saved(folder: Path, model: Any) -> LearnerConfig:
    model.save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    return replace(CONFIG, model=str(folder))


def test_other_families_take_their_own_head(tmp_path: Path) -> None:
    size = len(letter_tokenizer())
    small = DistilBertConfig(vocab_size=size, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    relative = XLNetConfig(vocab_size=size, d_model=32, n_layer=2, n_head=2, d_inner=64)
    for name, model in (("distil", DistilBertModel(small)), ("xl", XLNetModel(relative))):
        own = tagger(saved(tmp_path / name, model))
        with torch.no_grad():
            weight = own.model.classifier.weight
            weight.copy_(torch.arange(weight.numel()).sin().view_as(weight))
        check_folder(own, tmp_path / f"{name}-out", WORDS)


def test_a_head_of_several_layers_is_refused_by_name(tmp_path: Path) -> None:
    config = ModernBertConfig(
        vocab_size=len(letter_tokenizer()),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
    )
    with pytest.raises(ModelUnsupported, match="ModernBertForTokenClassification is more than one"):
        tagger(saved(tmp_path / "modern", ModernBertModel(config)))


def test_adapters_are_refused() -> None:
    with pytest.raises(TuningUnsupported, match="expected full, frozen or top:N"):
        tagger(tuning="lora:4")
