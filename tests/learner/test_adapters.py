"""Adapters: exactly the encoder at the start, few bytes in a version, files that peft reads."""

from __future__ import annotations

import copy
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, DistilBertConfig, PretrainedConfig

from learner import arithmetic
from learner import version_layout as layout
from learner.artifact import Store
from learner.encoder.encoder import Encoder
from learner.encoder.load import load_pretrained
from learner.encoder.tokens import letter_tokenizer
from learner.errors import ModelUnsupported, TuningUnsupported
from learner.scorer import ModelScorer
from learner.store import blobs
from learner.trainer import Trainer
from learner.tuning import adapters
from tests.learner.families import WITH_SDPA, WITHOUT_SDPA, gpt2, saved
from tests.learner.saving import cut, owner
from tests.learner.test_families import TEXTS, assert_serves_what_it_learned, encoded
from tests.learner.training import batches, published, reader, same, trainer, weights_of

ADAPTERS = ("lora:2", "ia3", "lora:2@top:1", "ia3@top:1")
DISTILBERT = DistilBertConfig(
    vocab_size=len(letter_tokenizer()),
    dim=32,
    n_layers=2,
    n_heads=2,
    hidden_dim=64,
    initializer_range=0.3,
)
FAMILIES: dict[str, PretrainedConfig] = {
    **WITH_SDPA,
    **WITHOUT_SDPA,
    "distilbert": DISTILBERT,
    "gpt2": gpt2(),
}
UNKNOWN = ("longformer", "xlnet", "albert", "modernbert")

FAST: dict[str, Any] = {"lr": 0.1, "reference_batch_size": 8}
"""Settings under which few steps move an adapter far."""


def learned(tuning: str, number: int = 2, **changes: Any) -> Trainer:
    own = trainer(tuning=tuning, **changes)
    for batch in batches(number):
        assert own.step(batch).result == "ok"
    return own


@pytest.mark.parametrize("tuning", ["lora:2", "ia3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family_an_adapter_starts_as_its_base_and_is_served_as_learned_or_refused(
    tmp_path: Path, family: str, tuning: str
) -> None:
    folder = saved(tmp_path / "model", FAMILIES[family])
    if family in UNKNOWN:
        (folder / "model.safetensors").unlink()
        with pytest.raises(TuningUnsupported, match=rf"{tuning}: .*the layers of .*\({family}\)"):
            trainer(model=str(folder), tuning=tuning)
        return
    own, base = (trainer(model=str(folder), tuning=each) for each in (tuning, "full"))
    np.testing.assert_array_equal(encoded(own), encoded(base))
    assert_serves_what_it_learned(own, tmp_path / "store")
    assert np.abs(encoded(own) - encoded(base)).max() > 1e-5


@pytest.mark.parametrize("tuning", ADAPTERS)
def test_exactly_the_adapter_moves_and_the_starting_encoder_stays_the_base(tuning: str) -> None:
    whole = "top:1" if "@" in tuning else "full"
    own, base = trainer(tuning=tuning, **FAST), trainer(tuning=whole)
    before, start = weights_of(own), encoded(base)
    np.testing.assert_array_equal(encoded(own), start)
    for batch in batches(2):
        own.step(batch)
    after = weights_of(own)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    of_adapter = {name for name in before if "lora_" in name or "ia3_l" in name}
    assert of_adapter
    assert {name for name in moved if name.startswith("encoder.")} == of_adapter
    if "@" in tuning:
        assert all(".layer.1." in name for name in of_adapter)
    assert np.abs(encoded(own) - start).max() > 4e-3
    ids = [own.ranker.texts.ids(text) for text in TEXTS]
    np.testing.assert_array_equal(own.ranker.starting.vectors(ids), start)


@pytest.mark.parametrize("tuning", ADAPTERS)
def test_a_loaded_version_has_the_learner_s_vectors_bit_by_bit(tmp_path: Path, tuning: str) -> None:
    own, writer, store = learned(tuning), owner(tmp_path), Store(tmp_path)
    for step in (1, 2):  # the second shares the base with the first
        own.step(batches(3)[-1])
        scorer = store.load(writer.save(own.files(), cut(step)))
        assert isinstance(scorer, ModelScorer)
        ranker = scorer._ranker
        ids = [ranker.texts.ids(text) for text in TEXTS]
        with torch.no_grad():
            np.testing.assert_array_equal(ranker.encoder(ids).numpy(), encoded(own))
        np.testing.assert_array_equal(
            ranker.starting.vectors(ids), own.ranker.starting.vectors(ids)
        )


def test_first_values_depend_on_the_seed_alone() -> None:
    first, again, other = (trainer(tuning="lora:2", seed=seed) for seed in (1, 1, 2))
    assert same(weights_of(first), weights_of(again))
    assert not same(weights_of(first), weights_of(other))


@pytest.mark.parametrize("tuning", ADAPTERS)
def test_a_version_adds_the_adapter_and_shares_its_base(tmp_path: Path, tuning: str) -> None:
    own, writer = trainer(tuning=tuning, model="random:2x128"), owner(tmp_path)
    versions = []
    for step, batch in enumerate(batches(4), 1):
        own.step(batch)
        versions.append(writer.save(own.files(), cut(step)))
    one, other = versions[1], versions[3]
    inodes = [(each.path / layout.MODEL).stat().st_ino for each in (one, other)]
    assert inodes[0] == inodes[1]
    of_base, of_adapter = (other.files[name].size for name in (layout.MODEL, layout.ADAPTER))
    assert of_adapter * 40 < of_base
    assert one.files[layout.ADAPTER] != other.files[layout.ADAPTER]
    assert layout.FROZEN not in other.files
    card = (other.path / layout.CARD).read_text()
    digest = other.files[layout.MODEL].sha256
    assert f"adapter {tuning.replace('_', '')}" in card.replace("\\", "")
    assert f"sha256 `{digest}`" in card
    config = msgspec.json.decode((other.path / layout.ADAPTER_CONFIG).read_bytes())
    assert config["base_model_name_or_path"] == f"sha256:{digest}"
    pretrained = load_pretrained("random:2x128").model.state_dict()
    on_disk = blobs.tensors_from_bytes((other.path / layout.MODEL).read_bytes())
    assert same(pretrained, on_disk)


def hidden(model: Any, own: Trainer) -> list[np.ndarray[Any, Any]]:
    """What a model makes of each text, alone and without padding, pooled and normalised."""
    found = []
    for text in TEXTS:
        ids = torch.as_tensor(own.ranker.texts.ids(text))[None]
        with torch.no_grad():
            vector = model.eval()(input_ids=ids).last_hidden_state[0].mean(0)
        found.append((vector / vector.norm()).numpy())
    return found


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("tuning", ADAPTERS)
def test_the_folder_of_a_version_opens_with_transformers_and_its_adapter_with_peft(
    tmp_path: Path, tuning: str
) -> None:
    own = learned(tuning, **FAST)
    folder = published(own, tmp_path / "store").path
    tolerance = 2e-3 if "@" in tuning else 1e-5
    whole = AutoModel.from_pretrained(folder, local_files_only=True)
    np.testing.assert_allclose(hidden(whole, own), encoded(own), atol=tolerance)
    beside = tmp_path / "adapter"
    beside.mkdir()
    for name in (layout.ADAPTER, layout.ADAPTER_CONFIG):
        shutil.copy(folder / name, beside)
    base = load_pretrained("random:2x64").model
    assert np.abs(np.stack(hidden(base, own)) - encoded(own)).max() > 4e-3
    with_adapter = peft.PeftModel.from_pretrained(base, str(beside))
    np.testing.assert_allclose(hidden(with_adapter, own), encoded(own), atol=tolerance)
    merged = with_adapter.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    own.ranker.texts.tokenizer.save_pretrained(tmp_path / "merged")
    start = trainer(model=str(tmp_path / "merged"), tuning="full")  # a new start from it
    np.testing.assert_allclose(encoded(start), encoded(own), atol=tolerance)


@pytest.mark.parametrize(
    ("before", "after"),
    [("lora:2", "top:1"), ("top:1", "lora:2"), ("lora:2", "lora:4"), ("ia3", "ia3@top:1")],
)
def test_a_version_of_another_tuning_is_refused_before_anything_is_restored(
    before: str, after: str
) -> None:
    files, own = learned(before).files(), trainer(tuning=after)
    untouched = weights_of(own)
    refused = rf"got {after}, the version to go on from was learned with {before}\. Set"
    with pytest.raises(TuningUnsupported, match=refused):
        own.restore(reader(files))
    assert same(weights_of(own), untouched)


def test_an_encoder_with_an_adapter_is_no_model_to_start_from(tmp_path: Path) -> None:
    folder = published(learned("lora:2"), tmp_path).path
    with pytest.raises(ModelUnsupported, match=r"adapter_config\.json.*merge_and_unload"):
        trainer(model=str(folder), tuning="top:1")


@pytest.mark.parametrize(
    "tuning",
    ["lora:0", "lora:1", "lora", "lora:8@", "lora:8@top:0", "ia3:4", "ia3@1", "prefix", "prefix:0"],
)
def test_an_adapter_that_there_is_not_is_refused(tuning: str) -> None:
    expected = r"learner\.tuning: got .*expected full.* lora:R, ia3 or prefix:N"
    with pytest.raises(ValueError, match=expected):
        trainer(tuning=tuning)
    assert adapters.recipe(tuning) is None


def test_layers_that_are_not_there_or_not_to_be_had_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TuningUnsupported, match="the encoder has 2 layers"):
        trainer(tuning="lora:2@top:3")
    folder = saved(tmp_path, DISTILBERT)
    with pytest.raises(TuningUnsupported, match="DistilBertModel has none"):
        trainer(model=str(folder), tuning="lora:2@top:1")


def test_without_peft_the_setting_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TuningUnsupported, match=r'lora:8 needs peft.*"steelyard\[adapters\]"'):
        trainer(tuning="lora:8")
    assert learned("top:1").step_number == 2


@pytest.mark.parametrize("tuning", ["lora:8", "lora:2", "ia3", "lora:8@top:1"])
def test_neither_padding_nor_what_is_beside_it_changes_a_vector(tuning: str) -> None:
    arithmetic.use(1)
    model, _, pooling = load_pretrained("minilm-l6:2")
    encoder = Encoder(copy.deepcopy(model), tuning=tuning, pooling=pooling)
    with torch.no_grad():
        for parameter in encoder.trainable_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    draw = np.random.default_rng(0)
    texts = [draw.integers(200, 20_000, size=length) for length in range(1, 60)]
    with torch.no_grad():
        together = encoder(texts)

        @settings(max_examples=20, deadline=None, database=None)
        @given(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=30, unique=True))
        def check(places: list[int]) -> None:
            alone = Encoder(encoder.model, tuning=tuning, pooling=pooling)  # one with no cache
            np.testing.assert_array_equal(alone([texts[i] for i in places]), together[places])

        check()
        one = torch.as_tensor(texts[10])[None]
        encoder.model.set_attn_implementation("sdpa")
        states = encoder.model(input_ids=one).last_hidden_state  # no padding at all
    expected = torch.nn.functional.normalize(states.mean(1), dim=-1)[0]
    np.testing.assert_allclose(together[10], expected, atol=2e-3 if "@" in tuning else 1e-5)
