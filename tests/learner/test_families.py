"""Encoders as other tools save them: read as they are meant, or refused by name at the start."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    T5Config,
)

from learner.artifact import Document, ScoringInput, Store
from learner.encoder.load import load_pretrained
from learner.errors import DeviceMissing, ModelMissing, ModelUnsupported, TuningUnsupported
from learner.passes.device import check_device
from learner.scorer import ModelScorer
from learner.trainer import Trainer
from tests.learner.families import (
    WITH_SDPA,
    WITHOUT_SDPA,
    bert,
    gpt2,
    plain_tokenizer,
    roberta,
    saved,
)
from tests.learner.training import batches, published, trainer

TEXTS = ["red running shoes", "a", "steel water bottle, 750 ml", ""]
TUNINGS = ("full", "top:1", "frozen")
WITHOUT_LAYERS = ("xlnet", "distilbert", "albert")
"""Families whose layers `top:N` does not find, or that share one among all."""
OF_ANOTHER_BUILD = ("modernbert",)
"""Families that run whole for the states that `top:N` keeps."""
HALF = 2e-3
"""Rounding to half precision of what is kept, in a unit vector."""


def encoded(learner: Trainer) -> NDArray[np.float32]:
    texts = learner.ranker.texts
    with torch.no_grad():
        found: NDArray[np.float32] = learner.ranker.encoder([texts.ids(t) for t in TEXTS]).numpy()
    return found


def unit(vector: torch.Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (vector / vector.norm()).numpy()
    return found


def of_transformers(
    folder: Path, pool: Callable[[torch.Tensor], torch.Tensor]
) -> NDArray[np.float32]:
    """Vectors by transformers alone, text by text, so without any padding."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        hidden = [model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0] for t in TEXTS]
    return np.stack([unit(pool(states)) for states in hidden])


def mean(states: torch.Tensor) -> torch.Tensor:
    return states.mean(0)


POOLED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cls": lambda states: states[0],
    "mean": mean,
    "max": lambda states: states.max(0).values,
    "lasttoken": lambda states: states[-1],
    "mean_sqrt_len_tokens": mean,
}
FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "lasttoken": "pooling_mode_lasttoken",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
}


def declare(folder: Path, declared: dict[str, Any], path: str = "1_Pooling") -> None:
    (folder / path).mkdir()
    (folder / path / "config.json").write_text(json.dumps(declared))


def served(learner: Trainer, root: Path) -> ModelScorer:
    """Publish what was learned, and load it as a server does."""
    published(learner, root)
    store = Store(root)
    scorer = store.load(store.versions()[-1])
    assert isinstance(scorer, ModelScorer)
    return scorer


def asked() -> ScoringInput:
    return ScoringInput(query="", documents=tuple(Document(text=text) for text in TEXTS))


def assert_serves_what_it_learned(learner: Trainer, root: Path) -> None:
    """Train a step, publish, load: the loaded encoder gives the learner's vectors."""
    assert learner.step(batches(1)[0]).result == "ok"
    scorer = served(learner, root)
    ranker = scorer._ranker
    with torch.no_grad():
        found = ranker.encoder([ranker.texts.ids(text) for text in TEXTS]).numpy()
    np.testing.assert_allclose(found, encoded(learner), atol=HALF)
    (scores,) = scorer.score([asked()])
    assert np.isfinite(scores.score).all()


@pytest.mark.parametrize("written", ["mode", "flags"])
@pytest.mark.parametrize("mode", POOLED)
def test_the_pooling_that_a_folder_declares_is_trained_and_served(
    tmp_path: Path, mode: str, written: str
) -> None:
    folder = saved(tmp_path / "model", bert())
    flags = {flag: own == mode for own, flag in FLAGS.items()}
    declare(folder, {"pooling_mode": mode} if written == "mode" else flags)
    learner = trainer(model=str(folder), tuning="top:1")
    expected = of_transformers(folder, POOLED[mode])
    np.testing.assert_allclose(encoded(learner), expected, atol=HALF)
    others = [p for name, p in POOLED.items() if p is not POOLED[mode]]
    for other in others:
        assert np.abs(of_transformers(folder, other) - expected).max() > 10 * HALF
    assert_serves_what_it_learned(learner, tmp_path / "store")


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "lasttoken"])
def test_a_folder_that_sentence_transformers_wrote_has_its_vectors(
    tmp_path: Path, mode: str
) -> None:
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    body = modules.Transformer(str(saved(tmp_path / "body", bert())))
    model = library.SentenceTransformer(
        modules=[body, modules.Pooling(32, pooling_mode=mode), modules.Normalize()], device="cpu"
    )
    model.save(str(tmp_path / "model"))
    learner = trainer(model=str(tmp_path / "model"), tuning="full")
    np.testing.assert_allclose(encoded(learner), model.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("declared", "named"),
    [
        ({"pooling_mode": "weightedmean"}, "says pooling weightedmean"),
        ({"pooling_mode": ["cls", "mean"]}, "says pooling cls with mean"),
        ({"pooling_mode_weightedmean_tokens": True}, "says pooling weightedmean"),
        (
            {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
            "says pooling cls with max",
        ),
    ],
)
def test_a_pooling_that_is_not_ours_is_refused_by_name_before_the_weights(
    tmp_path: Path, declared: dict[str, Any], named: str
) -> None:
    folder = saved(tmp_path, bert())
    (folder / "model.safetensors").unlink()
    declare(folder, declared)
    expected = rf"learner\.model: .*1_Pooling/config\.json {named}, expected one of mean, cls, max"
    with pytest.raises(ModelUnsupported, match=expected):
        trainer(model=str(folder))


def test_the_pooling_is_read_where_modules_json_says_and_another_module_is_refused(
    tmp_path: Path,
) -> None:
    folder = saved(tmp_path, bert())
    declare(folder, {"pooling_mode": "max"}, path="7_Pooling")
    prefix = "sentence_transformers.models"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{prefix}.Transformer"},
        {"idx": 1, "name": "1", "path": "7_Pooling", "type": f"{prefix}.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    assert load_pretrained(str(folder)).pooling == "max"
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": f"{prefix}.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelUnsupported, match=rf"names the module {prefix}\.Dense"):
        load_pretrained(str(folder))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_checkpoint_in_half_precision_is_computed_in_single_precision(
    tmp_path: Path, dtype: torch.dtype, tuning: str
) -> None:
    folder = saved(tmp_path / "model", bert(), dtype=dtype)
    learner = trainer(model=str(folder), tuning=tuning)
    assert {p.dtype for p in learner.ranker.parameters()} == {torch.float32}
    tolerance = 1e-5 if tuning == "full" else HALF
    np.testing.assert_allclose(encoded(learner), of_transformers(folder, mean), atol=tolerance)
    assert_serves_what_it_learned(learner, tmp_path / "store")


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("family", [*WITHOUT_SDPA, *WITH_SDPA])
def test_every_family_has_its_own_vectors_under_every_tuning(
    tmp_path: Path, family: str, tuning: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = {**WITHOUT_SDPA, **WITH_SDPA}[family]
    folder = saved(tmp_path / "model", config)
    if family in WITHOUT_LAYERS and tuning == "top:1":
        with pytest.raises(TuningUnsupported, match=r"Model has none; use full or frozen"):
            trainer(model=str(folder), tuning=tuning)
        return
    with caplog.at_level(logging.INFO, "steelyard.learner"):
        learner = trainer(model=str(folder), tuning=tuning)
    ours = [record for record in caplog.records if record.name == "steelyard.learner"]
    lines = [record.message for record in ours]
    expected = ["no fused attention"] if family in WITHOUT_SDPA else []
    if family in OF_ANOTHER_BUILD and tuning == "top:1":
        expected.append("all layers run for hidden states below the last")
    assert lines == expected
    tolerance = 1e-5 if tuning == "full" else HALF
    pool = POOLED["lasttoken" if family == "bert-decoder" else "mean"]
    np.testing.assert_allclose(encoded(learner), of_transformers(folder, pool), atol=tolerance)
    assert_serves_what_it_learned(learner, tmp_path / "store")


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (bert(max_position_embeddings=80), 80),
        (bert(max_position_embeddings=77), 72),  # texts are padded to a multiple of 8
        (roberta(max_position_embeddings=82), 80),
        (gpt2(n_positions=40), 40),
    ],
)
def test_texts_longer_than_the_positions_are_refused_before_the_weights(
    tmp_path: Path, config: Any, most: int
) -> None:
    folder = saved(tmp_path / "model", config)
    learner = trainer(model=str(folder), max_tokens=most)
    learner.ranker(["shoe"], [" ".join("abcdefgh" for _ in range(100))])
    (folder / "model.safetensors").unlink()
    refused = rf"learner\.max_tokens: got {most + 1}, .* has positions for {most} tokens"
    with pytest.raises(ModelUnsupported, match=refused):
        trainer(model=str(folder), max_tokens=most + 1)


@pytest.mark.parametrize("tuning", ["full", "frozen"])
def test_an_empty_text_has_a_vector_without_special_tokens_too(tmp_path: Path, tuning: str) -> None:
    folder = saved(tmp_path / "model", gpt2(), tokenizer=plain_tokenizer())
    learner = trainer(model=str(folder), tuning=tuning)
    assert [len(learner.ranker.texts.ids(text)) for text in ("", "   ")] == [1, 1]
    assert np.isfinite(encoded(learner)).all()
    assert_serves_what_it_learned(learner, tmp_path / "store")


def test_a_bi_encoder_needs_no_head_and_a_body_saved_alone_has_none(tmp_path: Path) -> None:
    config = bert(num_labels=1)
    folder = saved(tmp_path / "model", config, model_class=BertForSequenceClassification)
    bi_encoder = trainer(model=str(folder), tuning="frozen")  # it never had a use for the head
    body = tmp_path / "body"
    AutoModel.from_pretrained(folder).save_pretrained(body)
    AutoTokenizer.from_pretrained(folder).save_pretrained(body)
    on_purpose = trainer(model=str(body), tuning="frozen", interaction="cross_encoder")
    np.testing.assert_array_equal(encoded(on_purpose), encoded(bi_encoder))
    assert on_purpose.ranker.head is None


def test_an_architecture_that_does_not_fit_is_refused_before_the_weights(tmp_path: Path) -> None:
    network = saved(tmp_path / "xlnet", WITHOUT_SDPA["xlnet"])
    (network / "model.safetensors").unlink()
    with pytest.raises(TuningUnsupported, match="XLNetModel has none; use full or frozen"):
        trainer(model=str(network), tuning="top:1")
    shape = T5Config(vocab_size=100, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    both = saved(tmp_path / "t5", shape)
    with pytest.raises(ModelUnsupported, match=r"is an encoder with a decoder \(t5\)"):
        trainer(model=str(both))


def test_a_tuning_that_cuts_a_model_wrongly_is_found_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "model", bert())

    def upper(model: Any, top: Any, *, whole: bool) -> Any:
        return BertModel(bert())  # another one

    monkeypatch.setattr("learner.tuning.top_layers._upper_part", upper)
    with pytest.raises(TuningUnsupported, match=r"top:1: BertModel gives other vectors .*cosine"):
        trainer(model=str(folder), tuning="top:1")


def test_tensors_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    folder = saved(tmp_path, bert())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    missing = r"has no values for 16 tensors, such as encoder\.layer\.2\."
    with pytest.raises(ModelUnsupported, match=missing):
        load_pretrained(str(folder))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, bert(vocab_size=20))
    with pytest.raises(ModelUnsupported, match="the model has 20 embeddings"):
        load_pretrained(str(folder))


def test_a_tokenizer_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    folder = saved(tmp_path, bert())
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelMissing, match="no tokenizer"):
        load_pretrained(str(folder))


ABSENT = [
    *([] if torch.cuda.is_available() else ["cuda", "cuda:0"]),
    *([] if torch.backends.mps.is_available() else ["mps"]),
    "gpu",
    "cpu:x",
    "meta",
    "xpu:99",
]


@pytest.mark.parametrize("device", ABSENT)
def test_a_device_that_is_not_here_is_one_sentence_before_anything_is_loaded(device: str) -> None:
    with pytest.raises(DeviceMissing, match=rf"learner\.device: got '{device}'.*one of: cpu") as e:
        trainer(model="a folder that there is not", device=device)
    assert "\n" not in str(e.value)
    check_device("cpu")
