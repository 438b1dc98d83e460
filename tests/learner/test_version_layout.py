"""The files of a version are written and read by one module, and an older one is still read."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from learner import version_layout as layout
from learner.errors import Corrupt
from learner.store.manifest import TRAINING
from tests.learner.training import batches, reader, trainer


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
