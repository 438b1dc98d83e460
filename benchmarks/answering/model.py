"""The model that all contenders serve: learned from graded pairs by the product, then written out.

Of one fit there are versions in both precisions, and the encoder as transformers writes it, with
the cross-encoder's head beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from benchmarks.answering.questions import Question
from benchmarks.answering.sentence_transformers import HEAD
from deploy.fitting.columns import find_columns
from deploy.fitting.epochs import Plan, fit
from deploy.fitting.examples import Reading, read_examples
from deploy.fitting.split import split
from deploy.settings.load import load
from deploy.tables.rows import open_table
from deploy.tables.values import LeftOut
from learner import version_layout as layout
from learner.encoder.load import load_saved

PRECISIONS = ("float32", "bfloat16")
_AS_OF_US = 1_790_000_000_000_000


def write_model(folder: Path, learned: list[Question], settings: Mapping[str, str]) -> None:
    """Learn, then write ``float32/`` and ``bfloat16/``, which serving loads, and ``plain/``."""
    files = _fitted(folder / "pairs.jsonl", learned, settings)
    for precision in PRECISIONS:
        _write(folder / precision, {**files, **_settings(files, precision)})
    version, plain = folder / PRECISIONS[0], folder / "plain"
    tensors = layout.read_model(files.__getitem__)
    state = layout.read_scoring(files.__getitem__)
    load_saved(version, tensors, tuning=state.settings.tuning).save_pretrained(plain)
    os.link(version / "tokenizer.json", plain / "tokenizer.json")
    tokenizer = json.loads(files["tokenizer_config.json"])
    # Ours tells no segments apart
    tokenizer["model_input_names"] = ["input_ids", "attention_mask"]
    (plain / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    if "cross.weight" in state.heads:
        # The rows are tasks; the first has no parent, and orders what nobody has bought
        head = {"weight": state.heads["cross.weight"][0].tolist()}
        (plain / HEAD).write_text(json.dumps({**head, "bias": float(state.heads["cross.bias"][0])}))


def _fitted(file: Path, learned: list[Question], given: Mapping[str, str]) -> dict[str, bytes]:
    """Learn the pairs as `steelyard fit` does; return the version's files."""
    rows = [
        {"list_id": f"q{place}", "query": own.query, "text": title, "item_id": f"{place}-{i}"}
        | {"label": grade}
        for place, own in enumerate(learned)
        for i, (title, grade) in enumerate(zip(own.titles, own.grades, strict=True))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    table = open_table(file)
    columns = find_columns(file, table.columns)
    left_out = LeftOut(file.name, skip=False)
    found = read_examples(table, columns, Reading(), left_out, as_of_us=_AS_OF_US)
    parts = split(found.lists, "query", dev=0, test=0, seed=0)
    plan = Plan(epochs=2, patience=2, seed=0, file=file.name)
    return dict(fit(load(None, {}, dict(given)), parts, plan).trainer.files())


def _settings(files: Mapping[str, bytes], precision: str) -> dict[str, bytes]:
    """Return the file of a version that says in which precision it is served."""
    state = layout.read_scoring(files.__getitem__)
    other = layout.ScoringState(
        settings=replace(state.settings, precision=precision),
        heads=state.heads,
        queries=state.queries,
        residuals=state.residuals,
        estimators=state.estimators,
        stackers=state.stackers,
        parts=state.parts,
    )
    return {layout.HEADS_SETTINGS: layout.scoring_files(other)[layout.HEADS_SETTINGS]}


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
