"""Folders of a model that are damaged or forged: refused in one line, and nothing is run."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertModel

from learner.config import LearnerConfig
from learner.encoder import given_files
from learner.encoder.fit import check_fit
from learner.encoder.load import load_pretrained
from learner.encoder.tokens import letter_tokenizer, load_tokenizer
from learner.errors import LearnerError, ModelMissing
from tests.learner.training import trainer

Harm = Callable[[Path], object]
QUERY = "encoder.layer.1.attention.self.query.weight"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = BertConfig(
        vocab_size=len(letter_tokenizer()),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    return folder


def harmed(sound: Path, folder: Path, harm: Harm) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    harm(folder)
    return str(folder)


def refusal(name: str) -> str:
    """Return what is said of a model at the start of a learner, "" where nothing is wrong."""
    try:
        check_fit(LearnerConfig(model=name, max_tokens=16, tuning="full"))
        load_pretrained(name)
    except LearnerError as error:
        return str(error)
    return ""


def configured(**changes: Any) -> Harm:
    def harm(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return harm


def written(name: str, data: bytes) -> Harm:
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str, size: int) -> Harm:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def weighed(change: Callable[[dict[str, Tensor]], object]) -> Harm:
    def harm(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return harm


def tokenised(change: Callable[[dict[str, Any]], object]) -> Harm:
    def harm(folder: Path) -> None:
        path = folder / "tokenizer.json"
        described = json.loads(path.read_text())
        change(described)
        path.write_text(json.dumps(described))

    return harm


def of_a_number(number: float) -> Harm:
    return weighed(lambda tensors: tensors[QUERY].view(-1)[3:4].fill_(number))


def indexed(weight_map: Any) -> Harm:
    def harm(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(index)

    return harm


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (cut("model.safetensors", 0), r"model\.safetensors: .*header"),
        (cut("model.safetensors", 5000), r"model\.safetensors: "),
        (of_a_number(float("nan")), rf"{QUERY} has values that are NaN or infinite"),
        (of_a_number(float("-inf")), rf"{QUERY} has values that are NaN or infinite"),
        (
            weighed(lambda own: own.update({QUERY: torch.zeros(16, 8)})),
            rf"{QUERY} has the shape \(16, 8\), expected \(16, 16\)",
        ),
        (
            weighed(lambda own: own.update({QUERY: own[QUERY].to(torch.int8)})),
            rf"model\.safetensors: {QUERY} is of I8",
        ),
        (configured(hidden_size=32), r"has the shape \(16,\), expected \(32,\) by config\.json"),
        (
            configured(num_hidden_layers=1),
            r"encoder\.layer\.1\.\S+, a layer that config\.json does",
        ),
        (configured(num_labels=10**9), r"num_labels: got 1000000000, expected at most 1000000"),
        (configured(num_hidden_layers=0), r"num_hidden_layers: got 0, expected at least 1"),
        (configured(hidden_size="x"), r"config\.json: .*'hidden_size' expected int"),
        (configured(num_attention_heads=0), r"config\.json describes no text encoder"),
        (
            configured(hidden_act="nope"),
            r"config\.json describes no text encoder: KeyError: 'nope'",
        ),
        (configured(dtype="bogus"), r"config\.json: .*bogus"),
        (configured(pad_token_id=999), r"config\.json describes no text encoder: .*Padding_idx"),
        (configured(quantization_config={"quant_method": "x"}), r"found quantization_config"),
        (configured(_attn_implementation="a/kernel"), r"found the attention 'a/kernel'"),
        (written("config.json", b"[]"), r"config\.json: "),
        (written("config.json", b"\xff"), r"config\.json: "),
        (written("tokenizer.json", b"{}"), r"no tokenizer: KeyError"),
        (written("tokenizer.json", b"[1]"), r"no tokenizer: "),
        (written("tokenizer_config.json", b"[]"), r"no tokenizer: "),
        (written("tokenizer_config.json", b'{"model_max_length": "x"}'), r"tokenizer\.json: "),
        (tokenised(lambda own: own["model"]["vocab"].update(a=-1)), r"no tokenizer: .*-1"),
        (
            tokenised(lambda own: own["model"].update(vocab=dict.fromkeys(["[UNK]", "a"], 0))),
            r"tokenizer\.json",
        ),
        (written("modules.json", b'"x"'), r"pooling: TypeError"),
        (indexed({"a": "../model.safetensors"}), r"index\.json: .*'\.\./model\.safetensors'"),
        (indexed([1]), r"index\.json: "),
        (indexed({"a": "absent.safetensors"}), r"absent\.safetensors: "),
    ],
)
def test_a_folder_that_was_harmed_is_refused_in_one_line_that_names_the_fault(
    sound: Path, tmp_path: Path, harm: Harm, says: str
) -> None:
    name = harmed(sound, tmp_path / "model", harm)
    refused = refusal(name)
    assert re.search(says, refused), refused
    assert name in refused
    assert "\n" not in refused


@pytest.mark.parametrize("name", ["minilm-l6:0", "random:0x64", "random:2x0"])
def test_a_size_of_zero_is_refused(name: str) -> None:
    assert f"got '{name}', expected minilm-l6, minilm-l6:N, random:LxD" in refusal(name)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_in_a_file_it_is_a_model_or_refused(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = data.draw(st.sampled_from(FILES))
    whole = (sound / file).read_bytes()
    at = data.draw(st.integers(0, min(len(whole), 6000) - 1))
    put = data.draw(st.binary(min_size=1, max_size=12))
    rest = data.draw(st.sampled_from([whole[at + len(put) :], whole[at:], b""]))
    name = harmed(
        sound, tmp_path_factory.mktemp("any") / "model", written(file, whole[:at] + put + rest)
    )
    assert "\n" not in refusal(name)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ImportError("it needs sentencepiece"), "sentencepiece. Install what it needs"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "more memory"),
        (OSError(12, "Cannot allocate memory"), "more memory"),
        (ValueError("bad header"), "copy it again"),
    ],
)
def test_what_is_no_fault_of_a_file_has_another_remedy(
    tmp_path: Path, error: Exception, says: str
) -> None:
    with pytest.raises(ModelMissing, match=says), given_files.reading(str(tmp_path), "any"):
        raise error


def test_of_a_name_on_a_hub_nothing_is_to_be_copied() -> None:
    with (
        pytest.raises(ModelMissing, match=r"'org/model' .*connection\.$"),
        given_files.reading("org/model", "config.json"),
    ):
        raise OSError("no answer")


def test_a_tokenizer_of_a_version_is_not_named_by_a_setting(sound: Path, tmp_path: Path) -> None:
    name = harmed(sound, tmp_path / "version", written("tokenizer.json", b"{}"))
    with pytest.raises(ModelMissing) as refused:
        load_tokenizer(Path(name))
    assert str(refused.value).startswith(f"{name!r} cannot be loaded: no tokenizer")


@pytest.mark.parametrize("factor", [0.0, 1e20])
def test_weights_that_give_no_vectors_are_refused_as_such(
    sound: Path, tmp_path: Path, factor: float
) -> None:
    harm = weighed(lambda own: own.update({key: factor * own[key] for key in own}))
    name = harmed(sound, tmp_path / "model", harm)
    with pytest.raises(LearnerError, match=r"learner\.model: BertModel gives vectors that are NaN"):
        trainer(model=name, max_tokens=16)


class Opened:
    """What a pickle would do."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_no_pickle_and_no_code_of_a_folder_is_run(sound: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    name = harmed(sound, tmp_path / "model", lambda _: None)
    for file in ("pytorch_model.bin", "training_args.bin"):
        (Path(name) / file).write_bytes(pickle.dumps(Opened(mark)))
    (Path(name) / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    load_pretrained(name)
    code = {"AutoConfig": "own.Own", "AutoModel": "own.Own"}
    configured(auto_map=code, model_type="own")(Path(name))
    with pytest.raises(LearnerError, match="custom code"):
        load_pretrained(name)
    configured(auto_map=code, model_type="bert")(Path(name))
    (Path(name) / "model.safetensors").unlink()
    with pytest.raises(LearnerError, match=r"no file named model\.safetensors"):
        load_pretrained(name)
    assert not mark.exists()
