"""Exported encoders: other tools load them, and give the vectors that Steelyard serves."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from deploy.admin.export import export
from deploy.cli.app import app
from deploy.errors import Unsafe, UsageError, WriteFailed
from learner.artifact import Corrupt, Store, Version, VersionMissing
from learner.encoder.encoder import Encoder
from learner.encoder.load import load_pretrained, load_saved
from learner.encoder.tokens import Texts, load_tokenizer
from learner.engines.onnx_graph import onnx_graph
from learner.engines.openvino_import import openvino_for
from learner.errors import ModelUnsupported
from learner.passes.pooling import POOLINGS
from learner.version_layout import read_model, read_scoring
from tests.deploy.fitting import pairs, write_csv
from tests.fakes.disk import Crash, Die, Fail, FaultyDisk, Meanwhile, at, on
from tests.fakes.paper import Paper
from tests.learner.families import bert, gpt2, plain_tokenizer, roberta, saved
from tests.learner.training import batches, published, trainer

TEXTS = ["red running shoes", "a", "", "steel water bottle, 750 ml " * 5, "Oak lamp!"]
"""Of different lengths; one is longer than the learner's 24 tokens."""
TUNINGS = ("full", "top:1", "frozen", "lora:2", "ia3@top:1")
WHOLE = ("full", "lora:2")
"""Tunings that keep nothing in half precision."""
HALF = 2e-3
"""Rounding to half precision of what frozen layers keep, in a unit vector."""
CLOSE = 1e-5
ONNX_CLOSE = 1e-4

Vectors = NDArray[np.float32]


def version_of(root: Path, **changes: Any) -> Version:
    own = trainer(**changes)
    for batch in batches(2):
        own.step(batch)
    return published(own, root)


def pooled_as(folder: Path, pooling: str, config: Any = None) -> str:
    """A pretrained folder that declares a pooling."""
    saved(folder, config or bert(max_position_embeddings=64))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
    return str(folder)


def served(version: Version, *, tuning: str | None = None) -> Vectors:
    """Vectors of the encoder as a server loads it, or under another tuning."""

    def read(path: str) -> bytes:
        return (version.path / path).read_bytes()

    settings = read_scoring(read).settings
    model = load_saved(version.path, read_model(read), tuning=settings.tuning)
    encoder = Encoder(model, tuning=tuning or settings.tuning, pooling=settings.pooling)
    texts = Texts(load_tokenizer(version.path), max_tokens=settings.max_tokens)
    return vectors(encoder, texts)


def vectors(encoder: Encoder, texts: Texts) -> Vectors:
    with torch.no_grad():
        found: Vectors = encoder([texts.ids(text) for text in TEXTS]).numpy()
    return found


def of_transformers(folder: Path) -> Vectors:
    """Vectors of an export by transformers alone, all texts padded together."""
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert model.config._attn_implementation == "sdpa"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    (mode,) = [
        key
        for key, on in json.loads((folder / "1_Pooling/config.json").read_text()).items()
        if on is True and key.startswith("pooling_mode")
    ]
    pooling = mode.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
    with torch.no_grad():
        hidden = model.eval()(**given).last_hidden_state
        found: Vectors = POOLINGS[pooling](hidden, given["attention_mask"]).numpy()
    return found


def of_sentence_transformers(folder: Path) -> Vectors:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert model.max_seq_length == 24
    found: Vectors = model.encode(TEXTS, show_progress_bar=False)
    return found


def num_residuals(version: Version) -> int:
    return len(read_scoring(lambda path: (version.path / path).read_bytes()).queries)


def exported(root: Path, folder: Path, name: str = "@announced") -> Path:
    assert export(Store(root), name, folder, Paper().output()) == 0
    return folder


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("tuning", TUNINGS)
def test_an_export_gives_the_vectors_that_are_served(
    tmp_path: Path, tuning: str, pooling: str
) -> None:
    model = pooled_as(tmp_path / "model", pooling)
    version = version_of(tmp_path / "store", model=model, tuning=tuning)
    folder = exported(tmp_path / "store", tmp_path / "out")
    found = of_transformers(folder)
    np.testing.assert_allclose(found, served(version, tuning="full"), atol=CLOSE)
    np.testing.assert_allclose(found, served(version), atol=CLOSE if tuning in WHOLE else HALF)
    assert np.ptp(found @ found.T) > 0.01, "the texts differ"


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("tuning", TUNINGS)
def test_sentence_transformers_loads_an_export(tmp_path: Path, tuning: str, pooling: str) -> None:
    model = pooled_as(tmp_path / "model", pooling)
    version = version_of(tmp_path / "store", model=model, tuning=tuning)
    found = of_sentence_transformers(exported(tmp_path / "store", tmp_path / "out"))
    np.testing.assert_allclose(found, served(version, tuning="full"), atol=CLOSE)
    np.testing.assert_allclose(found, served(version), atol=CLOSE if tuning in WHOLE else HALF)


@pytest.mark.parametrize("config", [roberta(), gpt2()], ids=["roberta", "gpt2"])
def test_encoders_that_count_positions_or_pad_otherwise_are_exported_alike(
    tmp_path: Path, config: Any
) -> None:
    model = pooled_as(tmp_path / "model", "lasttoken", config)
    version = version_of(tmp_path / "store", model=model)
    folder = exported(tmp_path / "store", tmp_path / "out")
    np.testing.assert_allclose(of_transformers(folder), served(version), atol=CLOSE)
    np.testing.assert_allclose(of_sentence_transformers(folder), served(version), atol=CLOSE)


def test_an_export_is_an_encoder_to_start_from(tmp_path: Path) -> None:
    model = pooled_as(tmp_path / "model", "max")
    version = version_of(tmp_path / "store", model=model, tuning="top:1")
    again = load_pretrained(str(exported(tmp_path / "store", tmp_path / "out")))
    encoder = Encoder(again.model, tuning="full", pooling=again.pooling)
    found = vectors(encoder, Texts(again.tokenizer, max_tokens=24))
    np.testing.assert_allclose(found, served(version, tuning="full"), atol=CLOSE)


def test_an_export_says_what_it_is_and_what_it_is_not(tmp_path: Path) -> None:
    version, paper = version_of(tmp_path / "store"), Paper()
    number = num_residuals(version)
    assert number > 0
    folder = tmp_path / "deep" / "out"
    assert export(Store(tmp_path / "store"), version.name, folder, paper.output()) == 0
    assert paper.written[0].startswith(f"{version.name} -> {folder}: 10 files, ")
    assert paper.written[1].startswith(f"the encoder alone: residuals of queries ({number}), ")
    assert len(paper.written) == 2
    card = (folder / "README.md").read_text()
    assert version.name in card
    assert version.manifest["self"] in card
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "1_Pooling/config.json",
        "2_Normalize/config.json",
    }


def test_the_command_takes_an_alias_and_writes_json(tmp_path: Path) -> None:
    version = version_of(tmp_path / "store")
    Store(tmp_path / "store").promote(version)
    root = ["--set", f"store.root={tmp_path / 'store'}"]
    command = ["checkpoints", "export", "@champion", str(tmp_path / "out"), "--json", *root]
    done = CliRunner().invoke(app, command)
    facts = json.loads(done.stdout)
    assert (done.exit_code, facts["version"]) == (0, version.name)
    assert (facts["encoder_only"], facts["residuals_left_out"]) == (
        True,
        num_residuals(version),
    )
    assert facts["path"] == str(tmp_path / "out")
    assert {name.partition("/")[0] for name in facts["files"]} == {
        path.name for path in (tmp_path / "out").iterdir()
    }


# --- ONNX ---


def of_onnx(folder: Path) -> Vectors:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="np")
    (found,) = session.run(None, dict(given))
    alone = [
        session.run(None, dict(tokenizer([text], truncation=True, return_tensors="np")))[0]
        for text in TEXTS
    ]
    np.testing.assert_allclose(found, np.concatenate(alone), atol=ONNX_CLOSE)
    return np.asarray(found, dtype=np.float32)


@pytest.mark.parametrize(
    ("pooling", "tuning", "config"),
    [
        ("mean", "lora:2", None),
        pytest.param("cls", "top:1", None, marks=pytest.mark.long),
        pytest.param("max", "frozen", None, marks=pytest.mark.long),
        pytest.param("lasttoken", "full", roberta(), marks=pytest.mark.long),
    ],
    ids=["mean", "cls", "max", "roberta"],
)
def test_an_onnx_graph_gives_the_vectors_of_the_encoder(
    tmp_path: Path, pooling: str, tuning: str, config: Any
) -> None:
    pytest.importorskip("onnxscript")
    model = pooled_as(tmp_path / "model", pooling, config)
    version = version_of(tmp_path / "store", model=model, tuning=tuning)
    store, folder = Store(tmp_path / "store"), tmp_path / "out"
    export(store, "@announced", folder, Paper().output(), form="onnx")
    np.testing.assert_allclose(of_onnx(folder), served(version, tuning="full"), atol=ONNX_CLOSE)
    names = {path.name for path in folder.iterdir()}
    texts = {"tokenizer.json", "tokenizer_config.json", "config.json", "README.md"}
    assert names == texts | {"model.onnx"}


@pytest.mark.parametrize("library", ["onnxruntime", "onnxscript"])
def test_without_the_extra_nothing_is_written_and_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    version_of(tmp_path / "store")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModelUnsupported, match=r'not installed: pip install "steelyard\[onnx\]"'):
        export(
            Store(tmp_path / "store"), "@announced", tmp_path / "out", Paper().output(), form="onnx"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_graph_that_gives_other_vectors_is_not_kept(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model = load_pretrained(pooled_as(tmp_path / "model", "mean")).model

    def unsteady(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Another vector for texts of other shapes, which no graph can follow."""
        return POOLINGS["mean"](hidden, mask) + torch.rand(())

    with pytest.raises(ModelUnsupported, match=r"BertModel: its ONNX graph gives other vectors"):
        onnx_graph(model, unsteady, max_tokens=24)


# --- OpenVINO ---


def test_an_int8_graph_gives_vectors_near_the_encoders_and_the_same_in_any_batch(
    tmp_path: Path,
) -> None:
    pytest.importorskip("nncf")
    openvino = openvino_for("a test")
    version = version_of(tmp_path / "store")
    file = write_csv(tmp_path / "pairs.csv", pairs(12))
    store, folder = Store(tmp_path / "store"), tmp_path / "out"
    export(
        store,
        version.name,
        folder,
        Paper().output(),
        form="openvino-int8",
        calibrate_on=file,
    )
    compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU")
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def run(texts: list[str]) -> Vectors:
        given = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
        return np.asarray(compiled(dict(given))["sentence_embedding"], dtype=np.float32)

    together = run(TEXTS)
    np.testing.assert_allclose(together, np.concatenate([run([t]) for t in TEXTS]), atol=1e-5)
    exact = served(version, tuning="full")
    assert (together * exact).sum(-1).min() > 0.95
    assert np.abs(together - exact).max() > 1e-4  # it is really rounded
    names = {path.name for path in folder.iterdir()}
    assert {"openvino_model.xml", "openvino_model.bin"} <= names
    assert not names & {"model.onnx", "model.safetensors"}


def test_int8_and_a_file_to_calibrate_on_belong_together(tmp_path: Path) -> None:
    version_of(tmp_path / "store")
    store, out = Store(tmp_path / "store"), tmp_path / "out"
    with pytest.raises(UsageError, match="belong together"):
        export(store, "@announced", out, Paper().output(), form="openvino-int8")
    with pytest.raises(UsageError, match="belong together"):
        export(store, "@announced", out, Paper().output(), calibrate_on=tmp_path / "a.csv")
    assert not out.exists()


# --- refusals ---


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    version_of(tmp_path / "store")
    store = Store(tmp_path / "store")
    with pytest.raises(UsageError, match="--format: got 'gguf', expected sentence-trans"):
        export(store, "@announced", tmp_path / "out", Paper().output(), form="gguf")


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    version_of(tmp_path / "store")
    store, folder = Store(tmp_path / "store"), tmp_path / "out"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    with pytest.raises(Unsafe, match="out is not empty: nothing written") as refused:
        export(store, "@announced", folder, Paper().output())
    assert refused.value.exit_code == 3
    assert [path.name for path in folder.iterdir()] == ["mine"]
    with pytest.raises(UsageError, match="mine is a file"):
        export(store, "@announced", folder / "mine", Paper().output())
    with pytest.raises(UsageError, match="inside the store"):
        export(store, "@announced", tmp_path / "store" / "out", Paper().output())
    (folder / "mine").unlink()
    exported(tmp_path / "store", folder)


def test_a_version_that_is_not_there_or_damaged_is_not_exported(tmp_path: Path) -> None:
    version = version_of(tmp_path / "store", tuning="top:1")
    store, folder = Store(tmp_path / "store"), tmp_path / "out"
    with pytest.raises(VersionMissing):
        export(store, "v000009", folder, Paper().output())
    for name in ("model-00001-of-00002.safetensors", "config.json", "tokenizer.json"):
        file = version.path / name
        whole = file.read_bytes()
        file.chmod(0o640)
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(Corrupt, match=name):
            export(store, version.name, folder, Paper().output())
        file.write_bytes(whole)
        assert {path.name for path in tmp_path.iterdir()} == {"store"}
    exported(tmp_path / "store", folder)


def test_encoders_without_vectors_of_single_texts_or_padding_are_refused(tmp_path: Path) -> None:
    version_of(tmp_path / "cross", interaction="cross_encoder")
    with pytest.raises(ModelUnsupported, match=r"v000002: .*together .*expected a bi_encoder"):
        export(Store(tmp_path / "cross"), "@announced", tmp_path / "out", Paper().output())
    model = saved(tmp_path / "model", bert(), tokenizer=plain_tokenizer())
    version_of(tmp_path / "plain", model=str(model))
    with pytest.raises(ModelUnsupported, match=r"v000002: its tokenizer has no special token"):
        export(Store(tmp_path / "plain"), "@announced", tmp_path / "out", Paper().output())
    assert not (tmp_path / "out").exists()


# --- writing ---


def test_wherever_writing_dies_there_is_a_whole_folder_or_none(tmp_path: Path) -> None:
    version_of(tmp_path / "store")
    store = Store(tmp_path / "store")
    healthy = FaultyDisk()
    export(store, "@announced", tmp_path / "healthy", Paper().output(), disk=healthy)
    whole = {p.relative_to(tmp_path / "healthy") for p in (tmp_path / "healthy").rglob("*")}
    for index in range(len(healthy.calls)):
        folder = tmp_path / str(index) / "out"
        with pytest.raises(Crash):
            export(
                store,
                "@announced",
                folder,
                Paper().output(),
                disk=FaultyDisk(at(index, Die("after"))),
            )
        found = {path.relative_to(folder) for path in folder.rglob("*")}
        assert found == whole or not folder.exists()


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    version_of(tmp_path / "store")
    folder = tmp_path / "here" / "out"
    disk = FaultyDisk(on("write", 3, Fail(errno.ENOSPC)))
    with pytest.raises(WriteFailed, match=r"out cannot be written \(No space left"):
        export(Store(tmp_path / "store"), "@announced", folder, Paper().output(), disk=disk)
    assert list((tmp_path / "here").iterdir()) == []


def test_a_folder_that_is_filled_meanwhile_is_left_alone(tmp_path: Path) -> None:
    version_of(tmp_path / "store")
    folder = tmp_path / "here" / "out"

    def fill() -> None:
        folder.mkdir()
        (folder / "mine").write_text("mine")

    disk = FaultyDisk(on("rename", 0, Meanwhile(fill)))
    with pytest.raises(WriteFailed, match="out cannot be written"):
        export(Store(tmp_path / "store"), "@announced", folder, Paper().output(), disk=disk)
    assert [path.name for path in (tmp_path / "here").rglob("*")] == ["out", "mine"]
