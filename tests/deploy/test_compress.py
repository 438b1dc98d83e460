"""Compressed encoders: really smaller, loaded by other tools, and what they cost is said."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel
from typer.testing import CliRunner

from deploy.admin import compress
from deploy.admin.compress import CompressRequest
from deploy.cli.app import app
from deploy.errors import Unsafe, UsageError
from deploy.fitting.command import FitRequest
from learner.artifact import Store
from learner.encoder.load import load_pretrained
from learner.errors import ModelUnsupported
from learner.export import encoder_files, read_encoder
from tests.deploy.fitting import fit, in_store, pairs, write_csv
from tests.deploy.whole import SETTINGS
from tests.fakes.clock import ManualClock
from tests.fakes.disk import Crash, Die, FaultyDisk, on
from tests.fakes.paper import Paper
from tests.learner.families import gpt2, saved

MODEL = "random:4x64"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the version of a fit, beside its file."""
    folder = tmp_path_factory.mktemp("fitted")
    file = write_csv(folder / "pairs.csv", pairs(30))
    settings = in_store(folder / "store")
    learner = replace(settings.learner, model=MODEL)
    fit(file, folder / "store", settings=replace(settings, learner=learner), epochs=1)
    return folder


def compressed(
    store: Path, folder: Path, *, disk: FaultyDisk | None = None, **options: Any
) -> tuple[dict[str, Any], Paper]:
    paper = Paper()
    examples = FitRequest(file=store / "pairs.csv", **options.pop("examples", {}))
    request = CompressRequest(
        name="@announced", folder=folder, examples=examples, **{"epochs": 2, **options}
    )
    settings, clock = in_store(store / "store"), ManualClock(1_800_000_000.0)
    assert compress.run(settings, request, paper.output(as_json=True), clock=clock, disk=disk) == 0
    return paper.objects[0], paper


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Parameters as transformers alone loads them: none is missing, none left over."""
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    found: dict[str, torch.Tensor] = model.state_dict()
    return found


def test_fewer_layers_and_units_are_smaller_matrices_that_transformers_loads(
    store: Path, tmp_path: Path
) -> None:
    result, _ = compressed(store, tmp_path / "out", layers=2, prune_ffn=0.5)
    tensors = weights(tmp_path / "out")
    assert tensors["encoder.layer.1.intermediate.dense.weight"].shape == (128, 64)
    assert tensors["encoder.layer.1.output.dense.weight"].shape == (64, 128)
    assert not any(name.startswith("encoder.layer.2") for name in tensors)
    before, pruned, after = in_float32(result)
    assert [own["name"] for own in (pruned, after)] == ["pruned", "compressed"]
    assert (before["layers"], after["layers"], after["units"]) == (4, 2, 128)
    assert after["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert after["bytes"] == (tmp_path / "out/model.safetensors").stat().st_size
    assert after["parameters"] < before["parameters"]


def in_float32(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the encoders that are not the ones before them in another arithmetic."""
    first = result["encoders"][0]["name"]
    return [own for own in result["encoders"] if own["name"] in (first, "pruned", "compressed")]


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="no AVX512-VNNI")
def test_what_int8_costs_in_serving_is_said_of_the_encoder_before_and_after(
    store: Path, tmp_path: Path
) -> None:
    result, _ = compressed(store, tmp_path / "out", layers=2, epochs=1)
    rows = {own["name"]: own for own in result["encoders"]}
    before, _, after = in_float32(result)
    for plain in (before, after):
        own = rows[f"{plain['name']}-int8"]
        assert own["log_loss"] != plain["log_loss"]
        assert own["log_loss"] == pytest.approx(plain["log_loss"], rel=0.2)


def test_what_openvino_costs_is_said_or_what_to_install(store: Path, tmp_path: Path) -> None:
    result, paper = compressed(store, tmp_path / "out", layers=2, epochs=0)
    rows = {own["name"]: own for own in result["encoders"]}
    before, after = in_float32(result)
    for plain in (before, after):
        own = rows.get(f"{plain['name']}-openvino")
        if find_spec("openvino") is None:
            assert own is None
            assert any('pip install "steelyard[openvino]"' in line for line in paper.reported)
        else:
            assert own is not None
            assert own["log_loss"] == pytest.approx(plain["log_loss"], rel=1e-3)
            rounded = rows[f"{plain['name']}-openvino-int8"]
            assert rounded["log_loss"] != own["log_loss"]
            assert rounded["log_loss"] == pytest.approx(plain["log_loss"], rel=0.2)


def test_heads_that_went_are_zeros_for_transformers_and_leave_memory_here(
    store: Path, tmp_path: Path
) -> None:
    result, _ = compressed(store, tmp_path / "out", layers=2, prune_heads=0.5)
    before, pruned, after = in_float32(result)
    assert [own["heads"] for own in (before, pruned, after)] == [2, 1, 1]
    in_file = sum(tensor.numel() for tensor in weights(tmp_path / "out").values())
    assert after["parameters"] < in_file < before["parameters"]
    assert after["bytes"] == (tmp_path / "out/model.safetensors").stat().st_size
    assert "2 -> 1 heads" in (tmp_path / "out/README.md").read_text()
    own = load_pretrained(str(tmp_path / "out")).model
    assert own.encoder.layer[1].attention.self.value.weight.shape == (32, 64)
    assert_same_states(own, AutoModel.from_pretrained(tmp_path / "out"))


def assert_same_states(one: Any, other: Any) -> None:
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        found, expected = (m.eval()(input_ids=ids).last_hidden_state for m in (one, other))
    torch.testing.assert_close(found, expected)


def test_a_version_with_fewer_heads_is_served_and_exported_with_zeros(
    store: Path, tmp_path: Path
) -> None:
    compressed(store, tmp_path / "small", prune_heads=0.5)
    learner = replace(SETTINGS.learner, model=str(tmp_path / "small"), tuning="top:1")
    settings = replace(in_store(tmp_path / "new"), learner=learner)
    fit(store / "pairs.csv", tmp_path / "new", settings=settings, epochs=1)
    new = Store(tmp_path / "new")
    version = new.versions()[-1]
    new.load(version)
    with pytest.raises(ModelUnsupported, match=r"fewer attention heads .*export"):
        load_pretrained(str(version.path))
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModel.from_pretrained(version.path)
    encoder = read_encoder(new, version)
    assert encoder.model.encoder.layer[3].attention.self.num_attention_heads == 1
    for name, data in encoder_files(encoder).items():
        (tmp_path / "exported" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "exported" / name).write_bytes(data)
    key = weights(tmp_path / "exported")["encoder.layer.3.attention.self.key.weight"]
    assert key.shape == (64, 64)
    assert (key.abs().sum(1) == 0).sum() == 32
    assert_same_states(encoder.model, AutoModel.from_pretrained(tmp_path / "exported"))


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ([[0]] * 4, r"layer 0 keeps heads \[0\] \(kept_heads\), but others have weights"),
        ([[0]] * 3, "expected for each of the 4 layers of BertModel"),
        ([[0, 0]] * 4, "expected for each"),
        ([[2]] * 4, "of some of its 2 heads"),
        ([[]] * 4, "expected for each"),
        ("all", "got all, expected for each"),
    ],
)
def test_heads_that_a_folder_names_wrongly_are_refused(
    store: Path, tmp_path: Path, kept: Any, says: str
) -> None:
    compressed(store, tmp_path / "out", layers=4, epochs=0)
    file = tmp_path / "out/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "kept_heads": kept}))
    with pytest.raises(ModelUnsupported, match=says):
        load_pretrained(str(tmp_path / "out"))


def test_distillation_brings_the_student_nearer_to_its_teacher(store: Path, tmp_path: Path) -> None:
    result, _ = compressed(store, tmp_path / "out", layers=1, epochs=8)
    assert len(result["losses"]) == 8
    assert result["losses"][-1] < 0.7 * result["losses"][0]


def test_all_layers_and_all_units_are_the_teacher_itself(store: Path, tmp_path: Path) -> None:
    result, _ = compressed(store, tmp_path / "out", layers=4, epochs=0)
    before, after = in_float32(result)
    figures = ("ndcg", "auc", "log_loss", "calibration_error", "parameters")
    assert [before[key] for key in figures] == [after[key] for key in figures]
    own = load_pretrained(MODEL).model.state_dict()
    for name, tensor in weights(tmp_path / "out").items():
        assert tensor.shape == own[name].shape


def test_zeroed_weights_stay_zero_while_the_others_learn(store: Path, tmp_path: Path) -> None:
    result, _ = compressed(store, tmp_path / "a", magnitude=0.3, epochs=0)
    compressed(store, tmp_path / "b", magnitude=0.3, epochs=2)
    pruned, learned = weights(tmp_path / "a"), weights(tmp_path / "b")
    name = "encoder.layer.2.intermediate.dense.weight"
    zero = pruned[name] == 0
    assert zero.float().mean() == pytest.approx(0.3, abs=1e-3)
    assert torch.equal(learned[name] == 0, zero)
    assert not torch.equal(learned[name], pruned[name])
    assert result["encoders"][-1]["not_zero"] < result["encoders"][0]["not_zero"]
    embeddings = "embeddings.word_embeddings.weight"
    assert torch.equal(learned[embeddings], pruned[embeddings])


def test_the_same_seed_gives_the_same_bytes(store: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        compressed(store, tmp_path / folder, layers=2, prune_ffn=0.25)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.safetensors")]
    assert files
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_fit_goes_on_from_a_compressed_encoder(store: Path, tmp_path: Path) -> None:
    compressed(store, tmp_path / "small", layers=2, prune_ffn=0.5)
    learner = replace(SETTINGS.learner, model=str(tmp_path / "small"), tuning="top:1")
    settings = replace(in_store(tmp_path / "new"), learner=learner)
    fit(store / "pairs.csv", tmp_path / "new", settings=settings, epochs=1)
    assert len(Store(tmp_path / "new").readable()) > 0


def test_figures_and_the_card_say_what_it_costs(store: Path, tmp_path: Path) -> None:
    paper, folder = Paper(), tmp_path / "out"
    request = CompressRequest(
        name="@announced",
        folder=folder,
        examples=FitRequest(file=store / "pairs.csv"),
        layers=2,
        magnitude=0.5,
        epochs=1,
    )
    compress.run(in_store(store / "store"), request, paper.output(), clock=ManualClock(1.8e9))
    header, *rows = (
        line for line in paper.written[:12] if "-int8 " not in line and "-openvino" not in line
    )
    assert "MS FOR 100" in header
    assert "CALIBRATION ERROR" in header
    assert [row.split()[1] for row in rows[:3]] == ["4", "2", "2"]
    assert any("products are no faster" in line for line in paper.written)
    card = (folder / "README.md").read_text()
    assert "4 -> 2 layers" in card
    assert "NDCG@10 less that before" in card


def test_the_command_writes_json(store: Path, tmp_path: Path) -> None:
    words = ["checkpoints", "compress", "@announced", str(tmp_path / "out"), "--layers", "1"]
    words += ["--on", str(store / "pairs.csv"), "--epochs", "0", "--json"]
    words += ["--set", f"store.root={store / 'store'}"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["encoders"][-1]["layers"] == 1
    assert (tmp_path / "out/modules.json").is_file()


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to compress by: give --layers"),
        ({"layers": 5}, "--layers: got 5, expected 1 to 4"),
        ({"layers": 0}, "--layers: got 0, expected 1 to 4"),
        ({"prune_ffn": 1.0}, "--prune-ffn: got 1, expected a share"),
        ({"prune_heads": -0.1}, "--prune-heads: got -0.1, expected a share"),
        ({"prune_heads": 0.2}, "--prune-heads: got 0.2, which takes out none of 2 heads"),
        ({"magnitude": -0.1}, "--magnitude: got -0.1, expected a share"),
        ({"magnitude": float("nan")}, "--magnitude: got nan, expected a share"),
        ({"layers": 2, "lr": 0.0}, "--lr: got 0, expected a rate"),
        ({"layers": 2, "test": 0.0}, "--test: got 0, expected a share"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(
    store: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        compressed(store, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(store: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(Unsafe, match="is not empty"):
        compressed(store, tmp_path, layers=1)


def test_an_encoder_of_another_family_is_refused_by_name(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "pairs.csv", pairs(12))
    learner = replace(SETTINGS.learner, model=str(saved(tmp_path / "gpt", gpt2())), tuning="full")
    settings = replace(in_store(tmp_path / "store"), learner=learner)
    fit(file, tmp_path / "store", settings=settings, epochs=1)
    with pytest.raises(ModelUnsupported, match="GPT2Model cannot be compressed"):
        compressed(tmp_path, tmp_path / "out", layers=1)


def test_a_command_that_is_killed_leaves_a_whole_folder_or_none(
    store: Path, tmp_path: Path
) -> None:
    with pytest.raises(Crash):
        compressed(
            store, tmp_path / "out", layers=1, epochs=0, disk=FaultyDisk(on("rename", 0, Die()))
        )
    assert not (tmp_path / "out").exists()
