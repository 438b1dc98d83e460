"""Command `tag`: what is refused, what is counted, the folder and its figures."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from typer.testing import CliRunner

from deploy.cli.app import app
from deploy.errors import DeployError, TableRefused, Unsafe, UsageError, WriteFailed
from deploy.settings.tree import Settings
from deploy.tables.values import LeftOut
from deploy.tagging import command
from deploy.tagging.command import TagRequest
from deploy.tagging.texts import TaggedText, TagReading, read_texts
from learner.config import LearnerConfig, StoreConfig
from learner.training.budget import PrivacyConfig
from tests.fakes.disk import Fail, FaultyDisk, on
from tests.fakes.paper import Paper

SETTINGS = replace(
    Settings(),
    learner=LearnerConfig(model="random:1x32", max_tokens=24, lr=3e-3, head_lr=3e-2),
)
_COLORS, _THINGS, _OTHERS = ("red", "blue"), ("shoe", "mug", "lamp"), ("with", "and", "for")


def tagged(number: int = 40, *, seed: int = 0) -> list[dict[str, Any]]:
    """Texts whose words say their tags: a colour, a thing of one or two words, others."""
    random, rows = Random(seed), []
    for place in range(number):
        words = [random.choice(_COLORS), random.choice(_THINGS), random.choice(_THINGS)]
        tags = ["B-color", "B-thing", "I-thing"]
        for _ in range(random.randrange(3)):
            words.append(random.choice(_OTHERS))
            tags.append("O")
        words.append(str(place))
        tags.append("O")
        time = f"2026-10-{1 + place % 28:02d}T10:00:00Z"
        rows.append({"tokens": words, "tags": tags, "time": time})
    return rows


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tag(
    file: Path, folder: Path, *, settings: Settings = SETTINGS, **options: Any
) -> tuple[dict[str, Any], Paper]:
    paper = Paper()
    given = {"epochs": 3, "batch_size": 8, **options}
    own = replace(settings, store=StoreConfig(root=file.parent / "store"))
    request = TagRequest(file=file, folder=folder, **given)
    assert command.run(own, request, paper.output(as_json=True)) == 0
    return paper.objects[0], paper


def read(path: Path, *, skip: bool = False, **given: Any) -> tuple[list[TaggedText], list[str]]:
    left, reported = LeftOut(path.name, skip=skip), list[str]()
    texts = read_texts(path, TagReading(**given), left, report=reported.append)
    return texts, [*reported, *left.lines()]


# --- reading ---


def test_jsonl_and_parquet_give_the_same_texts(tmp_path: Path) -> None:
    rows = tagged(5)
    rows[0]["weight"], rows[1]["weight"] = 2.5, None
    jsonl = write_jsonl(tmp_path / "a.jsonl", rows)
    parquet = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    texts, lines = read(jsonl, times=True)
    assert read(parquet, times=True)[0] == texts
    assert [text.row for text in texts] == [1, 2, 3, 4, 5]
    assert texts[0].words == tuple(rows[0]["tokens"])
    assert texts[0].tags == tuple(rows[0]["tags"])
    assert [text.weight for text in texts] == [2.5, 1.0, 1.0, 1.0, 1.0]
    assert lines == [f"{jsonl}: tokens=tokens, tags=tags, weight=weight, time=time"]


def test_other_names_are_given_and_columns_not_read_are_told(tmp_path: Path) -> None:
    rows = [{"words": r["tokens"], "bio": r["tags"], "time": r["time"]} for r in tagged(3)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(TableRefused, match=r"no column for tags. Found: words, bio, time"):
        read(path)
    texts, lines = read(path, columns=["tags=bio"])
    assert len(texts) == 3
    assert lines[1] == "columns not read: time"
    with pytest.raises(TableRefused, match="no column 'tag'"):
        read(path, columns=["tags=tag"])
    with pytest.raises(TableRefused, match="NAME one of tokens, tags, weight, time"):
        read(path, columns=["query=words"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tags": ["O", "O"]}, r"row 2, column 'tags': found 2, expected 3 tags, one for each"),
        ({"tags": "O O O"}, r"row 2, column 'tags': found 'O O O', expected a list of texts"),
        ({"tags": None}, r"row 2, column 'tags': found None, expected a list"),
        ({"tags": ["O", 3, "O"]}, r"row 2, column 'tags\[1\]': found 3, expected a text"),
        ({"tokens": ["a", "", "b"]}, r"row 2, column 'tokens\[1\]': found '', expected a text"),
        ({"tokens": ["a", None, "b"]}, r"row 2, column 'tokens\[1\]': found None"),
        ({"weight": -1}, r"row 2, column 'weight': found -1, expected a number from 0 to"),
        ({"time": "soon"}, r"row 2, column 'time': found 'soon', expected ISO 8601"),
    ],
)
def test_wrong_values_name_their_row(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    right = {
        "tokens": ["a", "b", "c"],
        "tags": ["X", "O", "O"],
        "weight": 1,
        "time": "2026-10-01T10:00:00Z",
    }
    path = write_jsonl(tmp_path / "a.jsonl", [right, {**right, **wrong}, right])
    with pytest.raises(TableRefused, match=message):
        read(path, times=True)
    texts, lines = read(path, times=True, skip=True)
    assert [text.row for text in texts] == [1, 3]
    assert lines[-1].startswith("left out: 1 rows: column")
    assert lines[-1].endswith("(row 2)")


def test_rows_without_words_or_weight_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*tagged(2), {"tokens": [], "tags": []}, {**tagged(1)[0], "weight": 0}]
    texts, lines = read(write_jsonl(tmp_path / "a.jsonl", rows))
    assert [text.row for text in texts] == [1, 2]
    assert lines[-2:] == [
        "left out: 1 rows: no words (row 3)",
        "left out: 1 rows: weight 0 (row 4)",
    ]


def test_files_that_cannot_teach_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "a.jsonl"
    empty.touch()
    with pytest.raises(TableRefused, match="the file is empty"):
        read(empty)
    with pytest.raises(TableRefused, match="no row that can be used"):
        read(write_jsonl(empty, [{"tokens": [], "tags": []}]))
    with pytest.raises(TableRefused, match="found the tag 'O' alone, from row 1 to row 2"):
        read(write_jsonl(empty, [{"tokens": ["a"], "tags": ["O"]}] * 2))
    (tmp_path / "a.csv").write_text("tokens,tags\na,O\n")
    with pytest.raises(TableRefused, match="a CSV file has no lists; expected Parquet or JSONL"):
        read(tmp_path / "a.csv")


def test_prefixes_in_some_tags_only_are_refused(tmp_path: Path) -> None:
    rows = [
        {"tokens": ["a", "b"], "tags": ["B-color", "O"]},
        {"tokens": ["a"], "tags": ["brand"]},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(TableRefused, match=r"row 2, column 'tags': found 'brand', expected O or"):
        read(path)
    rows[0]["tags"] = ["color", "O"]
    assert len(read(write_jsonl(path, rows))[0]) == 2


# --- parts ---


def test_equal_texts_are_in_one_part(tmp_path: Path) -> None:
    rows = tagged(30)
    again = [{**row, "tokens": [w.upper() for w in row["tokens"]]} for row in rows]
    texts, _ = read(write_jsonl(tmp_path / "a.jsonl", [*rows, *again]))
    request = TagRequest(file=tmp_path / "a.jsonl", folder=tmp_path, dev=0.2, test=0.2)
    parts = command._split(texts, request)
    keys = {name: {text.key for text in own} for name, own in parts.items()}
    assert [len(keys[name]) for name in ("train", "dev", "test")] == [18, 6, 6]
    assert [len(parts[name]) for name in ("train", "dev", "test")] == [36, 12, 12]


def test_the_newest_texts_are_the_test(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", tagged(20)[::-1])
    texts, _ = read(path, times=True)
    request = TagRequest(file=path, folder=tmp_path, split="time", dev=0.1, test=0.2)
    parts = command._split(texts, request)
    assert [text.row for text in parts["test"]] == [4, 3, 2, 1]
    assert [text.row for text in parts["dev"]] == [6, 5]
    rows = [{k: v for k, v in row.items() if k != "time"} for row in tagged(4)]
    with pytest.raises(TableRefused, match="no column for time"):
        tag(write_jsonl(path, rows), tmp_path / "out", split="time")


def test_shares_and_small_files_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", tagged(2))
    with pytest.raises(UsageError, match="found 2 different texts, expected at least 3"):
        tag(path, tmp_path / "out")
    with pytest.raises(UsageError, match="expected shares from 0 whose sum is below 1"):
        tag(path, tmp_path / "out", dev=0.5, test=0.5)
    with pytest.raises(UsageError, match="--split: got 'query', expected text or time"):
        tag(path, tmp_path / "out", split="query")
    with pytest.raises(UsageError, match="--timezone: got 'Berlin'"):
        tag(path, tmp_path / "out", timezone="Berlin")
    assert not (tmp_path / "out").exists()


def test_settings_that_promise_noise_are_refused(tmp_path: Path) -> None:
    learner = replace(SETTINGS.learner, privacy=PrivacyConfig(noise_multiplier=1))
    request = TagRequest(file=tmp_path / "a.jsonl", folder=tmp_path / "out")
    with pytest.raises(UsageError, match=r"learner.privacy.noise_multiplier: got 1, but .* --set"):
        command.run(replace(SETTINGS, learner=learner), request, Paper().output())


def test_a_weight_beyond_all_bounds_is_refused(tmp_path: Path) -> None:
    rows = [{**row, "weight": 1e308} for row in tagged(4)]
    with pytest.raises(
        TableRefused, match=r"row 1, column 'weight': found 1e\+308, expected a num"
    ):
        tag(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out")


def test_one_tag_in_what_is_learned_is_refused(tmp_path: Path) -> None:
    rows = [
        {"tokens": [str(place)], "tags": ["O" if place < 9 else "B-a"], "time": 10**9 + place}
        for place in range(10)
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(TableRefused, match="the 8 texts to learn from have the tag 'O' alone"):
        tag(path, tmp_path / "out", split="time")


# --- learning ---


def test_a_file_becomes_a_folder_that_transformers_tags_with(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", tagged(60))
    result, paper = tag(path, tmp_path / "out", epochs=12, patience=12)
    assert result["tags"] == ["O", "B-color", "B-thing", "I-thing"]
    assert result["rows"] == {"train": 48, "dev": 6, "test": 6}
    assert result["test"]["entities"] == 12
    assert result["test"]["f1"] > 0.9
    best = max(result["epochs"], key=lambda e: (e["dev"]["f1"], e["dev"]["accuracy"]))
    assert best["epoch"] == result["best_epoch"]
    assert "4 tags; entities: by prefix (B-, I-, E-, S-)" in paper.reported
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"sha256 {result['sha256']}" in card
    assert f"| all | 12 | {result['test']['precision']:.4f} |" in card
    # the lines of the card tag a text as it says
    code = card.partition("```python\n")[2].partition("```")[0]
    code = code.replace('["red", "running", "shoes"]', '["blue", "lamp", "mug", "with", "7"]')
    names: dict[str, Any] = {"FOLDER": str(tmp_path / "out")}
    with torch.no_grad():
        exec(code, names)
    assert names["tags"] == dict(enumerate(["B-color", "B-thing", "I-thing", "O", "O"]))


def test_the_same_file_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", tagged(20))
    settings = replace(SETTINGS, learner=replace(SETTINGS.learner, dropout=0.1))
    found = []
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        tag(path, tmp_path / name, settings=settings, epochs=2, seed=seed)
        found.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert found[0] == found[1]
    assert found[0]["model.safetensors"] != found[2]["model.safetensors"]


def test_learning_ends_without_a_better_f1_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", tagged(40))
    long, _ = tag(path, tmp_path / "long", epochs=12, patience=2)
    assert len(long["epochs"]) == min(long["best_epoch"] + 2, 12)
    only, _ = tag(path, tmp_path / "only", epochs=long["best_epoch"], patience=12)
    assert only["best_epoch"] == long["best_epoch"]
    model = "model.safetensors"
    assert (tmp_path / "only" / model).read_bytes() == (tmp_path / "long" / model).read_bytes()


def test_words_beyond_the_longest_text_are_counted_and_told(tmp_path: Path) -> None:
    rows = tagged(20)
    rows[3]["tokens"] = [*rows[3]["tokens"], "\u200b", *["mug"] * 9]
    rows[3]["tags"] = [*rows[3]["tags"], "O", *["B-thing"] * 9]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    settings = replace(SETTINGS, learner=replace(SETTINGS.learner, max_tokens=32))
    result, paper = tag(path, tmp_path / "out", settings=settings, dev=0, test=0, epochs=1)
    letters = sum(map(len, rows[3]["tokens"][:-10]))
    seen = -(-(30 - letters) // 3)  # of the nine, those whose first letter is within 30
    assert result["words_cut"] == {"train": 9 - seen, "dev": 0, "test": 0}
    assert result["words_dropped"]["train"] == 1
    cut = f"train: {9 - seen} words beyond learner.max_tokens, not learned: 1 rows (4)"
    assert cut in paper.reported
    dropped = "1 words of characters that the tokenizer drops, not learned: 1 rows (4)"
    assert f"train: {dropped}" in paper.reported
    assert result["test"] is None
    assert result["best_epoch"] == 1


def test_a_tag_that_is_not_in_train_counts_as_wrong_and_is_told(tmp_path: Path) -> None:
    rows = tagged(10)
    rows[-1]["tags"][0] = "B-brand"
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    result, paper = tag(path, tmp_path / "out", split="time", dev=0, epochs=1)
    assert "B-brand" not in result["tags"]
    told = "tag 'B-brand' is in test (row 10) and not in train: it cannot be predicted"
    assert told in paper.reported
    assert result["test"]["f1"] < 1


def test_steps_that_are_not_finite_end_it(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", tagged(12))
    wild = replace(SETTINGS, learner=replace(SETTINGS.learner, head_lr=1e38))
    request = TagRequest(file=path, folder=tmp_path / "out", batch_size=1)
    with pytest.raises(DeployError, match="epoch 1: the loss or gradient of 9 of 10 steps"):
        command.run(wild, request, Paper().output())
    assert not (tmp_path / "out").exists()


# --- the folder ---


def test_a_folder_that_holds_something_or_is_in_the_store_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", tagged(4))
    with pytest.raises(Unsafe, match="is not empty"):
        tag(path, tmp_path)
    with pytest.raises(UsageError, match="is inside the store"):
        tag(path, tmp_path / "store" / "out")
    with pytest.raises(UsageError, match="is a file, expected a new or empty folder"):
        tag(path, path)


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for folder in (
        file / "below",
        file / "a" / "b",
        tmp_path / ("y" * 240),
        tmp_path / ("y" * 300),
    ):
        with pytest.raises(UsageError, match=r"cannot be made \(.*Name a new or empty folder"):
            tag(tmp_path / "missing.jsonl", folder)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", tagged(12))
    request = TagRequest(file=path, folder=tmp_path / "out", epochs=1)
    disk = FaultyDisk(on("rename", 0, Fail(errno.ENOSPC)))
    with pytest.raises(WriteFailed, match="No space left"):
        command.run(SETTINGS, request, Paper().output(), disk=disk)
    assert [each.name for each in tmp_path.iterdir()] == ["a.jsonl"]


def test_the_command_line_tags_the_example(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "examples" / "titles.jsonl"
    out = tmp_path / "out"
    sets = ["learner.model=random:1x32", f"store.root={tmp_path / 'store'}"]
    given = [word for each in sets for word in ("--set", each)]
    found = CliRunner().invoke(app, ["tag", str(path), str(out), "--epochs", "1", *given])
    assert found.exit_code == 0, found.output
    assert (out / "config.json").is_file()
    assert f"{out}: epoch 1 of 1" in found.output
    assert "TYPE" in found.output
