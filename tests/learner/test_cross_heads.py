"""Fine-tuned cross-encoders: their own logit at the start, and it learns on from there."""

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
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2ForSequenceClassification,
    PretrainedConfig,
)

from learner import arithmetic
from learner import version_layout as layout
from learner.artifact import Document, ScoringInput, Store
from learner.encoder.encoder import Encoder
from learner.encoder.head import Head, load_head
from learner.encoder.load import load_pretrained
from learner.encoder.prefix_cache import PrefixCache
from learner.encoder.token_types import mark_pairs, separator_of, token_types
from learner.encoder.tokens import Texts, letter_tokenizer
from learner.errors import ModelUnsupported, TuningUnsupported
from learner.export import export_encoder
from learner.passes.forward import Passes
from learner.passes.padding import Padded
from learner.ranker import Ranker
from learner.residual import QueryResidual
from learner.scorer import ModelScorer
from learner.trainer import Trainer
from tests.learner.families import WITH_SDPA, WITHOUT_SDPA, bert, roberta, saved
from tests.learner.training import batches, published, reader, same, trainer, weights_of
from weighting.tasks import CLICK, PURCHASE

QUERY = "red shoe"
ITEMS = ["red running shoes", "a", "steel bottle 750 ml", "blue shoe", "shoe, red", "", "lamp"]
FAMILIES: dict[str, PretrainedConfig] = {
    "bert": bert(),
    "roberta": roberta(type_vocab_size=1),
    "roberta with types": roberta(type_vocab_size=2),
    "xlm-roberta": WITH_SDPA["xlm-roberta"],
    "electra": WITH_SDPA["electra"],
    "distilbert": WITH_SDPA["distilbert"],
}
WITH_TYPES = ("bert", "roberta with types", "electra")
TUNINGS = ("full", "top:1", "top:2", "lora:2", "ia3@top:1")
HALF = 2e-2
"""Rounding to half precision of the states below the layers that move, in a logit."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    arithmetic.use(1)


def classifier(
    folder: Path, family: str = "bert", *, num_labels: int = 1, types: bool = True
) -> Path:
    """A fine-tuned cross-encoder, as transformers and sentence-transformers save it."""
    shape = FAMILIES[family].to_dict() | {"num_labels": num_labels, "id2label": None}
    config = type(FAMILIES[family]).from_dict(shape)
    types = types and family in WITH_TYPES
    build = type(AutoModelForSequenceClassification.from_config(config))  # type: ignore[no-untyped-call]
    return saved(folder, config, model_class=build, tokenizer=pair_tokenizer(types=types))


def pair_tokenizer(*, types: bool = True) -> Any:
    """The tokenizer over letters; with types of tokens, as BERT's and ELECTRA's own classes."""
    tokenizer = letter_tokenizer()
    names = ["token_type_ids"] if types else []
    tokenizer.init_kwargs["model_input_names"] = ["input_ids", *names, "attention_mask"]
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"]
    return tokenizer


def crossed(folder: Path, **changes: Any) -> Trainer:
    given = {"model": str(folder), "interaction": "cross_encoder", "max_tokens": 64, **changes}
    return trainer(**given)


def of_transformers(folder: Path) -> NDArray[np.float32]:
    """Logits by transformers alone, pair by pair; of two, how much larger the second is."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for item in ITEMS:
        pair = tokenizer(QUERY, item, return_tensors="pt")
        with torch.no_grad():
            logits = model(**pair).logits[0]
        found.append(float(logits[0] if len(logits) == 1 else logits[1] - logits[0]))
    return np.array(found, dtype=np.float32)


def logits(ranker: Ranker) -> NDArray[np.float32]:
    with torch.no_grad():
        found = ranker([QUERY] * len(ITEMS), ITEMS)
        assert torch.equal(found.by_task[CLICK], found.base)
    array: NDArray[np.float32] = found.base.numpy()
    return array


def served(learner: Trainer, root: Path) -> ModelScorer:
    published(learner, root)
    store = Store(root)
    scorer = store.load(store.versions()[-1])
    assert isinstance(scorer, ModelScorer)
    return scorer


def asked(items: list[str]) -> ScoringInput:
    return ScoringInput(query=QUERY, documents=tuple(Document(text=text) for text in items))


@pytest.mark.parametrize("num_labels", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fine_tuned_head_scores_as_transformers_does_before_it_learns(
    tmp_path: Path, family: str, num_labels: int
) -> None:
    folder = classifier(tmp_path / "model", family, num_labels=num_labels)
    expected = of_transformers(folder)
    assert np.ptp(expected) > 0.05
    learner = crossed(folder)
    np.testing.assert_allclose(logits(learner.ranker), expected, atol=1e-5)
    with torch.no_grad():
        found = learner.ranker([QUERY] * len(ITEMS), ITEMS)
    purchase = 2.0 * expected / learner.config.logit_scale - 2.0
    np.testing.assert_allclose(found.by_task[PURCHASE].numpy(), purchase, atol=1e-5)
    scorer = served(learner, tmp_path / "store")
    np.testing.assert_allclose(logits(scorer._ranker), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta with types", "electra"])
def test_padded_pairs_have_the_logits_of_packed_ones(tmp_path: Path, family: str) -> None:
    folder = classifier(tmp_path, family)
    for tuning, passes in (("full", Padded()), ("top:1", Padded()), ("full", None)):
        ranker, _ = ranked(folder, tuning, passes)
        tolerance = 1e-5 if tuning == "full" else HALF
        np.testing.assert_allclose(logits(ranker), of_transformers(folder), atol=tolerance)


def ranked(folder: Path, tuning: str, passes: Passes | None = None) -> tuple[Ranker, Head]:
    """A ranker beside its head, without a learner."""
    model, tokenizer, pooling = load_pretrained(str(folder))
    head = load_head(str(folder), model, tokenizer)
    assert head is not None
    mark_pairs(model, head.separator)
    encoder = Encoder(model, tuning=tuning, pooling=pooling, passes=passes)
    texts, residual = Texts(tokenizer, max_tokens=64), QueryResidual(encoder.width)
    given: dict[str, Any] = {"interaction": "cross_encoder", "logit_scale": 8.0}
    return Ranker(encoder, texts, residual, head=head, **given).eval(), head


@pytest.mark.parametrize(
    ("family", "tuning"), [*(("bert", tuning) for tuning in TUNINGS), ("roberta", "full")]
)
def test_a_fine_tuned_head_learns_resumes_to_the_same_bits_and_is_served(
    tmp_path: Path, family: str, tuning: str
) -> None:
    folder = classifier(tmp_path / "model", family)
    learner = crossed(folder, tuning=tuning, l2_sp_samples=500.0)
    tolerance = 1e-5 if tuning in ("full", "lora:2") else HALF
    np.testing.assert_allclose(logits(learner.ranker), of_transformers(folder), atol=tolerance)
    before, stream = weights_of(learner), batches(4)
    for batch in stream[:2]:
        assert learner.step(batch).result == "ok"
    moved = {n for n, values in weights_of(learner).items() if not torch.equal(values, before[n])}
    assert moved >= {"bias", *(n for n in before if n.startswith("head."))}
    assert any(n.startswith("encoder.") for n in moved)

    files = learner.files()
    resumed = crossed(folder, tuning=tuning, l2_sp_samples=500.0)
    resumed.restore(reader(files))
    assert resumed.files() == files
    scorer = served(learner, tmp_path / "store")
    np.testing.assert_array_equal(logits(scorer._ranker), logits(learner.ranker))
    for batch in stream[2:]:
        assert learner.step(batch).result == resumed.step(batch).result == "ok"
    assert same(weights_of(learner), weights_of(resumed))
    assert learner.files() == resumed.files()
    (scores,) = scorer.score([asked(ITEMS)])
    assert np.isfinite(scores.score).all()


def test_a_step_without_a_rate_for_the_encoder_leaves_the_head_almost_alone(
    tmp_path: Path,
) -> None:
    """The head was trained before, so it moves at the encoder's rate."""
    learner = crossed(classifier(tmp_path), lr=1e-9, head_lr=1e-2)
    before = weights_of(learner)
    assert learner.step(batches(1)[0]).result == "ok"
    change = {n: float((p - before[n]).abs().max()) for n, p in weights_of(learner).items()}
    assert change["bias"] > 1e-4
    assert max(c for n, c in change.items() if n.startswith(("head.", "encoder."))) < 1e-7


def test_a_head_fades_to_its_start_without_gradients(tmp_path: Path) -> None:
    learner = crossed(classifier(tmp_path), l2_sp_samples=1e-3, weight_decay=0.0)
    before = weights_of(learner)
    assert learner.step(batches(1)[0]).result == "ok"
    after = weights_of(learner)
    for name in ("head.dense.weight", "head.out.weight", "head.out.bias"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize("loss", ["listwise", "pairwise"])
def test_the_level_is_learned_under_losses_that_compare_too(tmp_path: Path, loss: str) -> None:
    learner = crossed(classifier(tmp_path), loss=loss)
    assert float(learner.ranker.bias.detach()) == 0.0
    assert learner.step(batches(1)[0]).result == "ok"
    assert float(learner.ranker.bias.detach()) != 0.0


@pytest.mark.parametrize(
    ("family", "tuning"), [*((family, "full") for family in FAMILIES), ("bert", "top:1")]
)
def test_a_pair_has_the_same_bits_whatever_is_beside_it(
    tmp_path_factory: pytest.TempPathFactory, family: str, tuning: str
) -> None:
    ranker, _ = ranked(classifier(tmp_path_factory.mktemp("model"), family), tuning)
    together = torch.from_numpy(logits(ranker))

    @settings(max_examples=15, deadline=None, database=None)
    @given(st.lists(st.integers(0, len(ITEMS) - 1), min_size=1, max_size=20))
    def check(places: list[int]) -> None:
        ranker.encoder.cache = PrefixCache()
        with torch.no_grad():
            found = ranker([QUERY] * len(places), [ITEMS[i] for i in places])
        assert torch.equal(found.base, together[places])

    check()


@settings(max_examples=50, deadline=None, database=None)
@given(st.lists(st.tuples(st.text("ab c", max_size=9), st.text("ab c", max_size=9)), min_size=1))
def test_token_types_are_those_of_the_tokenizer(pairs: list[tuple[str, str]]) -> None:
    tokenizer = pair_tokenizer()
    encoded = [tokenizer(*pair) for pair in pairs]
    singles = [tokenizer(first) for first, _ in pairs]
    separator = tokenizer.sep_token_id
    for one in (*encoded, *singles):
        found = token_types(torch.tensor([one["input_ids"]]), separator)
        assert found[0].tolist() == one["token_type_ids"]
    for first_position in (0, 2):  # of BERT, of RoBERTa
        every = [*encoded, *singles]
        packed = torch.tensor([[i for one in every for i in one["input_ids"]]])
        lengths = [len(one["input_ids"]) for one in every]
        places = torch.cat([torch.arange(length) for length in lengths])[None] + first_position
        expected = [i for one in every for i in one["token_type_ids"]]
        assert token_types(packed, separator, places)[0].tolist() == expected


def test_a_model_without_a_head_has_no_token_types(tmp_path: Path) -> None:
    """Its vectors, of pairs too, are those of before."""
    folder, body = classifier(tmp_path / "model"), tmp_path / "body"
    AutoModel.from_pretrained(folder).save_pretrained(body)
    AutoTokenizer.from_pretrained(folder).save_pretrained(body)
    plain = AutoModel.from_pretrained(body).eval()
    for learner in (crossed(body), crossed(folder, interaction="bi_encoder")):
        ids = learner.ranker.texts.ids(QUERY, ITEMS[0])
        with torch.no_grad():
            found = learner.ranker.encoder([ids])[0]
            state: Tensor = plain(input_ids=torch.tensor(ids[None])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(found, state / state.norm(), rtol=0, atol=1e-5)
        written = json.loads(learner.files()[layout.HEADS_SETTINGS])
        assert "head" not in written
        assert not any(name.startswith("head.") for name in weights_of(learner))


def test_a_tokenizer_that_gives_no_types_is_taken_at_its_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_types, without = classifier(tmp_path / "a"), classifier(tmp_path / "b", types=False)
    with caplog.at_level(logging.INFO, "steelyard.learner"):
        learner = crossed(without)
    assert "pairs have one type of tokens" in [record.message for record in caplog.records]
    np.testing.assert_allclose(logits(learner.ranker), of_transformers(without), atol=1e-5)
    assert np.abs(of_transformers(with_types) - of_transformers(without)).max() > 0.05


def test_types_of_tokens_that_follow_from_something_else_are_refused() -> None:
    model = AutoModel.from_config(bert())  # type: ignore[no-untyped-call]
    without = pair_tokenizer()
    without.sep_token = "[MASK]"
    with pytest.raises(ModelUnsupported, match="0 up to the first separator and 1 behind it"):
        separator_of("folder", model, without)
    assert separator_of("folder", model, pair_tokenizer()) == letter_tokenizer().sep_token_id


def without_weights(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    return folder


def test_a_head_of_more_outputs_is_refused_before_the_weights(tmp_path: Path) -> None:
    folder = without_weights(classifier(tmp_path, num_labels=3))
    named = r"BertForSequenceClassification .*head of 3 output.*expected 1 output.*save_pretrained"
    with pytest.raises(ModelUnsupported, match=rf"learner\.interaction: cross_encoder .*{named}"):
        crossed(folder)


def test_a_head_of_another_family_is_refused_by_name_before_the_weights(tmp_path: Path) -> None:
    config = type(WITHOUT_SDPA["deberta-v2"]).from_dict(
        WITHOUT_SDPA["deberta-v2"].to_dict() | {"num_labels": 1}
    )
    saved(tmp_path, config, model_class=DebertaV2ForSequenceClassification)
    named = r"DebertaV2ForSequenceClassification \(deberta-v2\).*expected a model of bert, "
    with pytest.raises(ModelUnsupported, match=named):
        crossed(without_weights(tmp_path))


def test_a_frozen_encoder_is_refused_before_the_weights(tmp_path: Path) -> None:
    with pytest.raises(TuningUnsupported, match=r"learner\.tuning: got frozen, .*use top:N, full"):
        crossed(without_weights(classifier(tmp_path)), tuning="frozen")


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_head_whose_values_are_missing_is_not_made_up(tmp_path: Path, family: str) -> None:
    folder = classifier(tmp_path, family)
    body = AutoModel.from_pretrained(folder)
    body.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    kind = AutoModelForSequenceClassification.from_pretrained(folder).__class__.__name__
    (folder / "config.json").write_text(json.dumps({**written, "architectures": [kind]}))
    with pytest.raises(ModelUnsupported, match=r"no values for (pre_)?classifier\.bias"):
        crossed(folder)


def test_versions_with_and_without_a_head_do_not_go_on_from_each_other(tmp_path: Path) -> None:
    folder, body = classifier(tmp_path / "model"), tmp_path / "body"
    AutoModel.from_pretrained(folder).save_pretrained(body)
    AutoTokenizer.from_pretrained(folder).save_pretrained(body)
    divided = letter_tokenizer().sep_token_id
    own = rf"a fine-tuned head \(bert, pairs divided by token {divided}\)"
    with_head, without = crossed(folder), crossed(body)
    refused = rf"has no fine-tuned head, the version .* learned with {own}\. Set learner\.model"
    before = weights_of(without)
    with pytest.raises(ModelUnsupported, match=refused):
        without.restore(reader(with_head.files()))
    assert same(weights_of(without), before)
    towers = crossed(body, interaction="bi_encoder")
    for version in (without, towers):
        with pytest.raises(ModelUnsupported, match=rf"has {own}, .* with no fine-tuned head"):
            with_head.restore(reader(version.files()))


def test_a_version_says_that_it_has_a_head_and_exports_no_encoder_of_single_texts(
    tmp_path: Path,
) -> None:
    learner = crossed(classifier(tmp_path / "model"))
    files = learner.files()
    separator = letter_tokenizer().sep_token_id
    expected = {"kind": "bert", "separator": separator}
    assert json.loads(files[layout.HEADS_SETTINGS])["head"] == expected
    assert "head of a fine-tuned cross-encoder (bert)" in files[layout.CARD].decode()
    version = published(learner, tmp_path / "store")
    with pytest.raises(ModelUnsupported, match="reads query and item together"):
        export_encoder(Store(tmp_path / "store"), version)


def test_the_next_version_shares_what_never_moves(tmp_path: Path) -> None:
    """The encoder's fixed parts are loaded once, and pairs keep their types."""
    learner = crossed(classifier(tmp_path / "model"), tuning="top:1")
    store = Store(tmp_path / "store")
    first = store.load(published(learner, tmp_path / "store"))
    assert learner.step(batches(1)[0]).result == "ok"
    second = store.load(published(learner, tmp_path / "store"))
    assert isinstance(first, ModelScorer)
    assert isinstance(second, ModelScorer)
    assert second.fixed_parts is first.fixed_parts
    np.testing.assert_array_equal(logits(second._ranker), logits(learner.ranker))
