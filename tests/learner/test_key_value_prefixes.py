"""Prefix tuning: keys and values that each text sees before its own, and nothing else changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, CamembertConfig, PretrainedConfig

from learner import arithmetic
from learner import version_layout as layout
from learner.artifact import Store
from learner.config import LearnerConfig
from learner.encoder.encoder import Encoder
from learner.encoder.fit import check_fit
from learner.encoder.load import load_pretrained
from learner.errors import ModelUnsupported, TuningUnsupported
from learner.export import read_encoder
from learner.passes import flat_passes
from learner.passes.bert_layers import FAMILIES
from learner.passes.key_value_prefixes import between, prefixes_of, without_prefixes
from learner.passes.padding import Padded
from learner.passes.varlen import text_by_text
from learner.store import blobs
from learner.trainer import Trainer
from tests.learner.families import _SHAPE, WITH_SDPA, WITHOUT_SDPA, bert, gpt2, saved
from tests.learner.saving import cut, owner
from tests.learner.test_families import TEXTS, assert_serves_what_it_learned, encoded
from tests.learner.test_packing import LENGTHS, model_of, texts_of_lengths
from tests.learner.training import batches, published, reader, same, trainer, weights_of

FAST: dict[str, Any] = {"lr": 0.1, "reference_batch_size": 8}
CONFIGS: dict[str, PretrainedConfig] = {
    **WITH_SDPA,
    **WITHOUT_SDPA,
    "camembert": CamembertConfig(**_SHAPE, pad_token_id=1),
    "gpt2": gpt2(),
}
QUERIES = ["red running shoes", "a", "steel water bottle, 750 ml " * 3, "a film about the sea"]


def learned(tuning: str, number: int = 2, **changes: Any) -> Trainer:
    own = trainer(tuning=tuning, **changes)
    for batch in batches(number):
        assert own.step(batch).result == "ok"
    return own


def stirred(tuning: str, config: PretrainedConfig | None = None) -> Encoder:
    """Return an encoder whose prefixes count as much as its texts."""
    encoder = Encoder(model_of(config or bert()), tuning=tuning)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.trainable_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return encoder


def by_hand(model: Any, ids: Tensor) -> Tensor:
    """Return the mean vector of one text (T,): BERT's layers with attention written out."""
    hidden = model.embeddings(input_ids=ids[None])
    for layer in model.encoder.layer:
        own = layer.attention.self
        heads, width = own.num_attention_heads, own.attention_head_size
        q, k, v = (
            states.view(len(ids), heads, width).transpose(0, 1)
            for states in (own.query(hidden)[0], own.key(hidden)[0], own.value(hidden)[0])
        )
        if hasattr(own, "key_value_prefix"):
            k = torch.cat([own.key_value_prefix.keys, k], dim=1)
            v = torch.cat([own.key_value_prefix.values, v], dim=1)
        share = (q @ k.transpose(1, 2) / math.sqrt(width)).softmax(-1)
        seen = (share @ v).transpose(0, 1).reshape(1, len(ids), heads * width)
        attended = layer.attention.output(seen, hidden)
        hidden = layer.output(layer.intermediate(attended), attended)
    return normalize(hidden[0].mean(0), dim=0)


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.integers(1, 9))
def test_packed_texts_have_the_vectors_and_gradients_of_attention_written_out(
    lengths: list[int], number: int
) -> None:
    encoder = stirred(f"prefix:{number}")
    texts = texts_of_lengths(lengths)
    weight = torch.linspace(-1, 1, len(texts) * encoder.width).view(len(texts), -1)
    found = encoder(texts)
    expected = torch.stack([by_hand(encoder.model, torch.from_numpy(ids)) for ids in texts])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    moving = encoder.trainable_parameters()
    assert {tuple(p.shape) for p in moving} == {(2, number, 16)}
    ours, theirs = (torch.autograd.grad((v * weight).sum(), moving) for v in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
        assert one.abs().max() > 1e-6


def test_in_the_last_layers_alone_the_others_have_none_and_are_kept() -> None:
    encoder = stirred("prefix:2@top:1")
    assert len(prefixes_of(encoder.model)) == 1
    assert encoder.tuning.keeps_prefix
    texts = texts_of_lengths([3, 9, 9, 20])
    expected = torch.stack([by_hand(encoder.model, torch.from_numpy(ids)) for ids in texts])
    torch.testing.assert_close(encoder(texts), expected, rtol=0, atol=2e-3)
    with without_prefixes(encoder.model):
        assert (encoder(texts) * expected).sum(-1).max() < 0.999


@pytest.mark.parametrize("number", [1, 8])
def test_the_default_encoder_starts_nearly_as_itself(number: int) -> None:
    arithmetic.use(1)
    vectors = {}
    for tuning in ("full", f"prefix:{number}"):
        pretrained = load_pretrained("minilm-l6")
        encoder = Encoder(pretrained.model, tuning=tuning, pooling=pretrained.pooling)
        ids = [np.array(pretrained.tokenizer(text)["input_ids"]) for text in QUERIES]
        with torch.no_grad():
            vectors[tuning] = encoder(ids)
    base, own = vectors.values()
    assert (base * own).sum(-1).min() > 0.999
    assert not torch.equal(base, own)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_is_served_as_learned_or_refused_by_name(tmp_path: Path, family: str) -> None:
    folder = saved(tmp_path / "model", CONFIGS[family])
    if family not in FAMILIES:
        (folder / "model.safetensors").unlink()
        with pytest.raises(TuningUnsupported, match=r"prefix:2: .*(does not know|is a decoder)"):
            trainer(model=str(folder), tuning="prefix:2")
        return
    own, base = (trainer(model=str(folder), tuning=each) for each in ("prefix:2", "full"))
    assert (encoded(own) * encoded(base)).sum(-1).min() > 0.9  # untrained, so far apart
    assert_serves_what_it_learned(own, tmp_path / "store")
    assert np.abs(encoded(own) - encoded(base)).max() > 1e-5


def test_texts_that_are_padded_see_no_prefix_so_they_are_refused() -> None:
    with pytest.raises(TuningUnsupported, match=r"prefix:2: the attention of this BertModel"):
        Encoder(model_of(bert()), tuning="prefix:2", passes=Padded())
    eager = bert()
    eager._attn_implementation = "eager"
    with pytest.raises(TuningUnsupported, match=r"BertModel \(eager\)"):
        Encoder(model_of(eager), tuning="prefix:2")


@pytest.mark.parametrize("tuning", ["prefix:2", "prefix:2@top:1"])
def test_exactly_the_prefixes_move(tuning: str) -> None:
    own = trainer(tuning=tuning, **FAST)
    before, start = weights_of(own), encoded(own)
    for batch in batches(2):
        own.step(batch)
    after = weights_of(own)
    moved = {n for n in before if n.startswith("encoder.") and not torch.equal(before[n], after[n])}
    assert moved == {name for name in before if "key_value_prefix" in name}
    assert len(moved) == (2 if "@" in tuning else 4)
    ids = [own.ranker.texts.ids(text) for text in TEXTS]
    np.testing.assert_array_equal(own.ranker.starting.vectors(ids), start)


def test_first_values_depend_on_the_seed_alone() -> None:
    first, again, other = (trainer(tuning="prefix:2", seed=seed) for seed in (1, 1, 2))
    assert same(weights_of(first), weights_of(again))
    assert not same(weights_of(first), weights_of(other))


def test_a_version_holds_the_prefixes_alone_beside_the_base_that_it_names(tmp_path: Path) -> None:
    own, writer = trainer(tuning="prefix:2", model="random:2x128"), owner(tmp_path)
    versions = []
    for step, batch in enumerate(batches(4), 1):
        own.step(batch)
        versions.append(writer.save(own.files(), cut(step)))
    one, other = versions[1], versions[3]
    inodes = [(each.path / layout.MODEL).stat().st_ino for each in (one, other)]
    assert inodes[0] == inodes[1]
    tensors = blobs.tensors_from_bytes((other.path / layout.ADAPTER).read_bytes())
    assert sorted(tensors) == [
        f"encoder.layer.{layer}.attention.self.key_value_prefix.{kind}"
        for layer in range(2)
        for kind in ("keys", "values")
    ]
    config = msgspec.json.decode((other.path / layout.ADAPTER_CONFIG).read_bytes())
    digest = other.files[layout.MODEL].sha256
    assert config["base_model_name_or_path"] == f"sha256:{digest}"
    assert (config["num_positions"], config["num_layers"]) == (2, 2)
    assert "adapter prefix:2, 1,024 parameters" in (other.path / layout.CARD).read_text()
    on_disk = blobs.tensors_from_bytes((other.path / layout.MODEL).read_bytes())
    assert same(load_pretrained("random:2x128").model.state_dict(), on_disk)


def test_a_version_goes_on_under_the_same_tuning_alone() -> None:
    files = learned("prefix:2").files()
    own = trainer(tuning="prefix:2")
    own.restore(reader(files))
    assert own.files() == files
    for other in ("prefix:3", "prefix:2@top:1", "top:1"):
        with pytest.raises(TuningUnsupported, match=rf"got {other}, .*learned with prefix:2\. Set"):
            trainer(tuning=other).restore(reader(files))


@pytest.mark.parametrize(
    ("tuning", "says"),
    [
        ("prefix:4097", "got prefix:4097, expected at most 4096 positions"),
        ("prefix:99999999999999999999", "expected at most 4096 positions"),
        ("lora:65@top:1", "got lora:65@top:1, expected at most 64 as rank"),
        ("prefix:2@top:3", "got prefix:2@top:3, the encoder has 2 layers"),
    ],
)
def test_an_adapter_that_no_encoder_has_room_for_is_refused_before_the_weights(
    tuning: str, says: str
) -> None:
    with pytest.raises(TuningUnsupported, match=says):
        check_fit(LearnerConfig(model="random:2x64", tuning=tuning))


def test_nothing_takes_the_folder_for_the_base_alone(tmp_path: Path) -> None:
    version = published(learned("prefix:2"), tmp_path)
    with pytest.raises(ModelUnsupported, match=r"prefix:2, keys and values beside .*another"):
        read_encoder(Store(tmp_path), version)
    with pytest.raises(ModelUnsupported, match=r"keys and values .*\(adapter_config\.json\)"):
        trainer(model=str(version.path), tuning="top:1")
    with pytest.raises((KeyError, ValueError, TypeError)):
        AutoModel.from_pretrained(version.path, local_files_only=True)


@given(LENGTHS, st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_rows_for_a_kernel_are_the_prefix_and_then_the_text(
    lengths: list[int], number: int, empty: int
) -> None:
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(sum(lengths), 2, 3, generator=draw)
    prefix = torch.randn(2, number, 3, generator=draw)
    offsets = torch.tensor([0, *np.cumsum(lengths), *[sum(lengths)] * empty], dtype=torch.int32)
    own = prefix.transpose(0, 1)
    parts = [torch.cat([own, text]) for text in torch.split(states, lengths)]
    expected = torch.cat([*parts, *[own] * empty])
    assert torch.equal(between(states, prefix, offsets), expected)


def test_a_prefix_starts_in_the_precision_of_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_halves(query: Tensor, *given: Any, **options: Any) -> Tensor:
        assert query.dtype == torch.bfloat16, "as the kernels of a GPU ask"
        return text_by_text(query, *given, **options)

    monkeypatch.setattr(flat_passes, "kernel_for", lambda device: in_halves)
    model = load_pretrained("minilm-l6:2").model
    assert Encoder(model, tuning="prefix:2", precision="bfloat16").tuning.name == "prefix:2"
