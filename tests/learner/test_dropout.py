"""Dropout of attention: it acts in training, by the seed, and never in what is served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PretrainedConfig

from learner.artifact import Store
from learner.config import LearnerConfig
from learner.encoder.encoder import Encoder
from learner.encoder.load import load_pretrained
from learner.encoder.tokens import Texts
from learner.request import Document, ScoringInput
from learner.tagging.tagger import Tagger
from learner.trainer import Trainer
from tests.learner.families import bert, gpt2, saved
from tests.learner.training import batches, published
from weighting.config import WeigherConfig
from weighting.weigher import Weigher

TEXTS = ["red wool shoe", "a grand steel lamp of oak and silk"]
LLAMA = LlamaConfig(
    vocab_size=200,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    attention_dropout=0.25,
)
FAMILIES = {"bert": bert(), "gpt2": gpt2(), "llama": LLAMA}


def encoder_of(folder: Path, dropout: float) -> tuple[Encoder, Texts]:
    """An encoder of which attention alone has dropout, and its tokens."""
    found = load_pretrained(str(folder))
    encoder = Encoder(found.model, tuning="full", pooling=found.pooling, dropout=dropout)
    for name, module in encoder.model.named_modules():
        of_attention = "attention.self.dropout" in name or "attn_dropout" in name
        if isinstance(module, nn.Dropout) and not of_attention:
            module.p = 0.0
    return encoder, Texts(found.tokenizer, max_tokens=24)


def vectors(encoder: Encoder, texts: Texts, *, training: bool, seed: int) -> Tensor:
    encoder.train(training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found: Tensor = encoder([texts.ids(text) for text in TEXTS])
    return found.detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_dropped_in_training_and_not_in_serving(tmp_path: Path, family: str) -> None:
    config: PretrainedConfig = FAMILIES[family]
    folder = saved(tmp_path / "model", config)
    plain, texts = encoder_of(folder, 0.0)
    dropped, _ = encoder_of(folder, 0.5)
    whole = vectors(plain, texts, training=False, seed=0)
    first, other = (vectors(dropped, texts, training=True, seed=seed) for seed in (0, 1))
    assert not torch.allclose(first, whole, atol=1e-4)
    assert not torch.allclose(first, other, atol=1e-4)
    assert torch.equal(first, vectors(dropped, texts, training=True, seed=0))
    assert torch.equal(vectors(dropped, texts, training=False, seed=1), whole)
    # 0 in the settings is 0, whatever the folder's own configuration says
    assert torch.allclose(vectors(plain, texts, training=True, seed=0), whole, atol=1e-5)


def test_a_version_learned_under_dropout_is_served_without(tmp_path: Path) -> None:
    config = LearnerConfig(model="random:2x64", tuning="full", dropout=0.5, max_tokens=24)
    own = Trainer(config, Weigher(WeigherConfig()))
    for batch in batches(2):
        own.step(batch)
    version = published(own, tmp_path / "store")
    scorer = Store(tmp_path / "store").load(version)
    asked = ScoringInput(query="query red", documents=(Document(id="1", text="red shoe"),))
    (first,), (again,) = scorer.score([asked]), scorer.score([asked])
    assert first.score.tolist() == again.score.tolist()
    texts = [own.ranker.texts.ids(text) for text in TEXTS]
    own.ranker.eval()
    served = Trainer(replace(config, dropout=0.0), Weigher(WeigherConfig()))
    served.restore(lambda path: Store(tmp_path / "store").read(version, path))
    served.ranker.eval()
    with torch.no_grad():
        assert torch.equal(own.ranker.encoder(texts), served.ranker.encoder(texts))


def test_a_tagger_drops_attention_by_its_settings_too(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", LLAMA)
    tagger = Tagger(LearnerConfig(model=str(folder), dropout=0.1), ["O", "A"], tuning="full")
    layers = [m for m in tagger.model.modules() if hasattr(m, "attention_dropout")]
    assert [m.attention_dropout for m in layers] == [0.1, 0.1]
