"""The files of a version are written and read by one module, and an older one is still read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from learner import version_layout as layout
from learner.errors import Corrupt, ModelUnsupported
from learner.store import blobs
from learner.store.manifest import TRAINING
from learner.training.budget import PrivacyConfig
from learner.training.rehearsal import RehearsalConfig
from tests.learner.training import batches, reader, trainer
from weighting.errors import SnapshotError

READ_AS_JSON = (layout.HEADS_SETTINGS, layout.QUERIES, layout.PROGRESS)


def files(**changes: Any) -> dict[str, bytes]:
    own = trainer(tuning="frozen", **changes)
    own.step(batches(1)[0])
    return own.files()


@pytest.mark.parametrize(
    ("interaction", "on_disk"), [("bi_encoder", "towers"), ("cross_encoder", "cross")]
)
def test_heads_json_keeps_the_words_that_it_had(interaction: str, on_disk: str) -> None:
    written = files(interaction=interaction)
    settings = msgspec.json.decode(written["heads.json"])
    keys = "format interaction max_tokens model_files pooling prefix scale tuning weighting"
    assert sorted(settings) == keys.split()
    assert (settings["interaction"], settings["scale"]) == (on_disk, 8.0)
    assert layout.read_scoring(reader(written)).settings.interaction == interaction


def test_what_is_read_is_what_was_written() -> None:
    written = files()
    scoring = layout.read_scoring(reader(written))
    training = layout.read_training(reader(written))
    again = {**layout.scoring_files(scoring), **layout.training_files(training)}
    assert again == {name: written[name] for name in again}
    hugging_face = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert written.keys() == again.keys() | hugging_face | {
        layout.MODEL,
        layout.START,
        layout.CARD,
    }
    assert written[layout.MODEL] == layout.model_file(layout.read_model(reader(written)))
    assert scoring.residuals.dtype == np.float32
    assert len(scoring.queries) == len(scoring.residuals) > 0


def test_a_version_of_another_format_is_refused_by_name() -> None:
    written = files()
    settings = msgspec.json.decode(written["heads.json"]) | {"format": 1}
    old = {**written, "heads.json": msgspec.json.encode(settings)}
    with pytest.raises(Corrupt, match=r"heads\.json: expected format 3, found format 1"):
        layout.read_scoring(reader(old))


def test_what_only_the_learner_reads_is_under_training() -> None:
    read: list[str] = []
    written = files()

    def noted(name: str) -> bytes:
        read.append(name)
        return written[name]

    layout.read_scoring(noted)
    layout.read_model(noted)
    assert not [name for name in read if name.startswith(TRAINING)]
    names = ["part-0", "rank-1"]
    paths = [layout.ingest_path(name) for name in names]
    assert layout.ingest_paths([*written, *paths]) == dict(zip(names, paths, strict=True))


# --- forged files, whose digests hold ---

FORGED: dict[str, dict[str, Any]] = {
    "plain": {},
    "adapter": {"tuning": "lora:2"},
    "cross": {"interaction": "cross_encoder"},
    "rehearsed": {"rehearsal": RehearsalConfig(size_bytes=100_000)},
    "private": {"privacy": PrivacyConfig(noise_multiplier=1)},
}


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, bytes]]:
    found = {}
    for kind, changes in FORGED.items():
        own = trainer(**changes)
        own.step(batches(1)[0])
        found[kind] = own.files()
    return found


def forgeries(path: str, data: bytes) -> Iterator[bytes]:
    """Contents that no learner writes under this name."""
    yield from (b"", data[: len(data) // 2], b"\x80\x04cos\nsystem\n", b"\x90", b"{}", b"null")
    if not path.endswith(".safetensors"):
        return
    tensors = blobs.tensors_from_bytes(data)
    if not tensors:
        return
    first = min(tensors)
    others = {name: values for name, values in tensors.items() if name != first}
    yield blobs.tensors_to_bytes(others)
    yield blobs.tensors_to_bytes(tensors | {"forged": torch.zeros(2)})
    yield blobs.tensors_to_bytes(tensors | {first: torch.zeros(3, 5)})


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_file_is_refused_in_one_line_that_names_it(
    whole: dict[str, dict[str, bytes]], kind: str
) -> None:
    written, own = whole[kind], trainer(**FORGED[kind])
    for path, data in written.items():
        if not path.endswith((".safetensors", ".msgpack")) and path not in READ_AS_JSON:
            continue
        for forged in forgeries(path, data):
            with pytest.raises((Corrupt, SnapshotError)) as refused:
                own.restore(reader({**written, path: forged}))
            said = str(refused.value)
            assert "\n" not in said
            assert len(said) < 600
            assert path in said or isinstance(refused.value, SnapshotError), said
    own.restore(reader(written))


@pytest.mark.parametrize("path", [layout.MODEL, layout.HEADS, layout.START])
def test_a_learner_does_not_go_on_from_numbers_that_are_not_finite(
    whole: dict[str, dict[str, bytes]], path: str
) -> None:
    written = whole["plain"]
    tensors = blobs.tensors_from_bytes(written[path])
    name = next(name for name, values in tensors.items() if values.is_floating_point())
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    forged = {**written, path: blobs.tensors_to_bytes(tensors)}
    with pytest.raises(Corrupt, match=rf"{path}: expected finite numbers, found NaN .* {name}"):
        trainer().restore(reader(forged))


def test_noise_is_never_drawn_from_a_secret_that_is_not_there(
    whole: dict[str, dict[str, bytes]],
) -> None:
    written = whole["private"]
    _, contributions = msgspec.msgpack.decode(written[layout.PRIVACY])
    forged = {**written, layout.PRIVACY: msgspec.msgpack.encode([b"", contributions])}
    with pytest.raises(Corrupt, match=r"training/privacy\.msgpack: .* a secret of 0 bytes"):
        trainer(**FORGED["private"]).restore(reader(forged))


@pytest.mark.parametrize(
    ("before", "now"), [("bi_encoder", "cross_encoder"), ("cross_encoder", "bi_encoder")]
)
def test_a_learner_does_not_go_on_under_another_interaction(before: str, now: str) -> None:
    written = files(interaction=before)
    own = trainer(tuning="frozen", interaction=now)
    untouched = own.files()
    with pytest.raises(
        ModelUnsupported,
        match=rf"learner\.interaction: got {now}, .* Set learner\.interaction: {before}, or name",
    ):
        own.restore(reader(written))
    assert own.files() == untouched


@pytest.mark.parametrize(
    ("model", "says"), [("random:1x64", "num_hidden_layers 1"), ("random:2x32", "hidden_size 32")]
)
def test_a_learner_does_not_go_on_with_an_encoder_of_another_size(
    whole: dict[str, dict[str, bytes]], model: str, says: str
) -> None:
    own = trainer(model=model)
    untouched = own.files()
    with pytest.raises(
        ModelUnsupported, match=rf"learner\.model: '{model}' has {says}, the version"
    ):
        own.restore(reader(whole["plain"]))
    assert own.files() == untouched
