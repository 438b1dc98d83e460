"""Learning from a file: what is refused, what is counted, the same bytes, and a stream after it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from deploy.errors import TableRefused, Unsafe, UsageError, WriteFailed
from deploy.fitting import version as versions
from deploy.fitting.columns import find_columns
from deploy.fitting.examples import Examples, Found, Reading, read_examples
from deploy.fitting.samples import batches_of, samples_of
from deploy.fitting.split import split
from deploy.tables.rows import open_table
from deploy.tables.values import LeftOut
from deploy.verification import log_sums, recount
from learner.artifact import Store
from learner.errors import StoreFailed
from learner.losses.task_weights import TaskWeights
from learner.scorer import load_scorer
from learner.store.manifest import FitSource
from learner.tracking.config import TrackingConfig
from learner.training.budget import PrivacyConfig
from tests.deploy.fitting import fit, in_store, pairs, shown, write_csv
from tests.deploy.whole import SETTINGS, Shop, live, trained
from tests.fakes.disk import Crash, Die, Fail, FaultyDisk, at, on, tree
from tests.fakes.paper import Paper
from tests.learner.tracked import scalars
from weighting.query_key import query_key


def read(path: Path, reading: Reading | None = None, *, skip: bool = False, **given: Any) -> Found:
    opened = open_table(path)
    columns = find_columns(path, opened.columns, **given)
    left = LeftOut(path.name, skip=skip)
    found = read_examples(opened, columns, reading or Reading(), left, as_of_us=10**15)
    found.notes.extend(left.lines())
    return found


# --- reading ---


def test_pairs_of_a_query_and_day_are_one_list_with_their_labels(tmp_path: Path) -> None:
    found = read(write_csv(tmp_path / "a.csv", pairs(5)))
    assert found.num_rows == 20
    assert [len(own.rows) for own in found.lists] == [4] * 5
    assert [row for own in found.lists for row in own.rows] == list(range(1, 21))
    assert found.lists[0].labels == [row["label"] for row in pairs(5)[:4]]


def test_shown_lists_keep_places_purchases_and_attributes(tmp_path: Path) -> None:
    found = read(write_csv(tmp_path / "a.csv", shown(3)))
    own = found.lists[0]
    assert own.positions == [1, 2, 3, 4]
    assert own.attributes[1] == {"color": own.texts[1].split()[0]}
    samples, counts = samples_of(own, "a.csv")
    clicks = [s for s in samples if s.task == "click"]
    bought = [s for s in samples if s.task == "purchase"]
    assert [s.label for s in clicks] == own.labels
    assert [(s.label, s.position) for s in bought] == [
        (int(b), p) for b, p in zip(own.bought, own.positions, strict=True) if b is not None
    ]
    assert len(counts) == len(samples)
    assert all(s.window_us >= s.attribution_us for s in samples)  # final: no delay correction


def test_places_from_0_are_refused_with_the_option_that_reads_them(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", shown(2, first=0))
    with pytest.raises(TableRefused, match=r"row 1, column 'position': .* --first-position 0"):
        read(path)
    assert read(path, Reading(first_position=0)).lists[0].positions == [1, 2, 3, 4]


@pytest.mark.parametrize("rows", [1, 2])
def test_jsonl_and_semicolons_give_the_same_lists(tmp_path: Path, rows: int) -> None:
    plain = read(write_csv(tmp_path / "a.csv", pairs(rows + 1)))
    other = read(write_csv(tmp_path / "b.csv", pairs(rows + 1), delimiter=";"))
    lines = "\n".join(json.dumps(row) for row in pairs(rows + 1))
    (tmp_path / "c.jsonl").write_text("\ufeff" + lines)
    for found in (other, read(tmp_path / "c.jsonl")):
        assert [own.grades for own in found.lists] == [own.grades for own in plain.lists]
        assert [own.time_us for own in found.lists] == [own.time_us for own in plain.lists]


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("label", "nan", "row 3, column 'label': found 'nan', expected a number from 0 to 1"),
        ("label", 2, "row 3, column 'label': found '2', expected a number from 0 to 1"),
        ("query", " ", "row 3, column 'query'"),
        ("text", "", "row 3, column 'text': found '', expected a text that is not empty"),
        ("text", "x" * 100_001, "expected at most 100,000 characters"),
        ("time", "2026-10-01T10:00:00", "row 3, column 'time': .* or --timezone NAME"),
        ("time", "yesterday", "row 3, column 'time'"),
    ],
)
def test_a_wrong_value_is_refused_by_row_and_column_or_left_out_and_counted(
    tmp_path: Path, column: str, value: Any, says: str
) -> None:
    rows = pairs(3)
    rows[2][column] = value
    path = write_csv(tmp_path / "a.csv", rows)
    with pytest.raises(TableRefused, match=says):
        read(path)
    found = read(path, skip=True)
    assert found.num_rows == 11
    assert found.notes[-1].startswith(f"left out: 1 rows: column '{column}': expected")
    assert found.notes[-1].endswith("(row 3)")


def test_missing_columns_name_those_that_are_there(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"q": "a", "text": "b", "label": 1}])
    with pytest.raises(TableRefused, match=r"no column for query. Found: q, text, label. Expected"):
        read(path)
    with pytest.raises(TableRefused, match=r"no column 'x'. Found: q, text, label"):
        read(path, given=["query=x"])
    with pytest.raises(TableRefused, match=r"got 'q', expected NAME=COLUMN with NAME one of"):
        read(path, given=["q"])
    with pytest.raises(TableRefused, match="all 1 rows have label 1, expected 0 and 1"):
        read(path, given=["query=q"])


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    rows = [{**row, "bought": 1, "shown_at": "x"} for row in shown(24)]
    _, paper = fit(write_csv(tmp_path / "a.csv", rows), tmp_path / "s", epochs=1)
    assert "columns not read: bought, shown_at (--column NAME=COLUMN" in "".join(paper.reported)


def test_times_in_a_format_of_the_shop_s_own(tmp_path: Path) -> None:
    rows = [{**row, "time": f"0{1 + n // 4}.10.2026 10:00"} for n, row in enumerate(pairs(2))]
    path = write_csv(tmp_path / "a.csv", rows)
    berlin = ZoneInfo("Europe/Berlin")
    found = read(path, Reading(zone=berlin, time_format="%d.%m.%Y %H:%M"))
    times = [datetime.fromtimestamp(own.time_us / 1e6, UTC) for own in found.lists]
    assert times == [datetime(2026, 10, day, 8, tzinfo=UTC) for day in (1, 2)]
    with pytest.raises(TableRefused, match="name the format: --time-format"):
        read(path, Reading(zone=berlin))


def test_a_time_in_the_future_is_refused_or_left_out(tmp_path: Path) -> None:
    rows = pairs(3)
    rows[5]["time"] = "2126-10-01T10:00:00Z"  # would fade all that was counted before it
    path = write_csv(tmp_path / "a.csv", rows)
    now = Reading(now_us=1_800_000_000_000_000)
    with pytest.raises(TableRefused, match=r"row 6, column 'time': .* not in the future"):
        read(path, now)
    assert read(path, now, skip=True).num_rows == 11


def test_times_in_other_units_and_zones_are_the_same_lists(tmp_path: Path) -> None:
    def times(own: list[Examples]) -> list[int]:
        return [each.time_us for each in own]

    rows = pairs(4)
    plain = read(write_csv(tmp_path / "a.csv", rows)).lists
    for factor in (10**3, 10**6):  # of milliseconds, of microseconds
        for row, own in zip(rows, [each for each in plain for _ in range(4)], strict=True):
            row["time"] = own.time_us // (10**6 // factor)
        assert times(read(write_csv(tmp_path / "b.csv", rows)).lists) == times(plain)
    mixed = pairs(4)
    for row in mixed[::2]:
        row["time"] = row["time"].replace("T10", "T12").replace("Z", "+02:00")
    assert times(read(write_csv(tmp_path / "c.csv", mixed)).lists) == times(plain)


def test_rows_that_come_again_are_left_out_and_counted(tmp_path: Path) -> None:
    found = read(write_csv(tmp_path / "a.csv", [*pairs(3), *pairs(3)[:2]]))
    assert found.num_rows == 12
    assert "left out: 2 rows: the same item in the same list again (row 13, 14)" in found.notes


def test_labels_between_0_and_1_are_drawn_as_often_as_they_say(tmp_path: Path) -> None:
    rows = [{"query": f"q{n % 50}", "text": f"t{n}", "label": 0.3} for n in range(2000)]
    path = write_csv(tmp_path / "a.csv", rows)
    labels = [label for own in read(path).lists for label in own.labels]
    assert 0.25 < sum(labels) / len(labels) < 0.35
    again = [label for own in read(path).lists for label in own.labels]
    other = [label for own in read(path, Reading(seed=1)).lists for label in own.labels]
    assert again == labels != other


def test_weights_of_0_and_rows_from_a_time_on_are_left_out(tmp_path: Path) -> None:
    rows = [{**row, "weight": int(n != 0)} for n, row in enumerate(pairs(4))]
    path = write_csv(tmp_path / "a.csv", rows)
    before = read(path).lists[2].time_us - 10**9  # before the day of the third list
    found = read(path, Reading(before_us=before))
    assert found.num_rows == 7
    assert sum(note.startswith("left out") for note in found.notes) == 2


# --- parts ---


@pytest.mark.parametrize("by", ["query", "time"])
def test_parts_share_no_query_or_no_time(tmp_path: Path, by: str) -> None:
    lists = read(write_csv(tmp_path / "a.csv", shown(24))).lists
    parts = split(lists, by, dev=0.2, test=0.2, seed=3)
    assert sorted(id(own) for own in (*parts.train, *parts.dev, *parts.test)) == sorted(
        map(id, lists)
    )
    assert (len(parts.dev), len(parts.test)) == (5, 5)
    if by == "query":
        keys = [{query_key(own.query) for own in p} for p in (parts.train, parts.dev, parts.test)]
        assert not any(a & b for a, b in itertools.combinations(keys, 2))
    else:
        assert parts.train[-1].time_us <= parts.dev[0].time_us <= parts.test[0].time_us


def test_one_query_cannot_be_divided(tmp_path: Path) -> None:
    lists = read(write_csv(tmp_path / "a.csv", pairs(1))).lists
    with pytest.raises(UsageError, match=r"found 1 queries, expected at least 3.* --dev 0"):
        split(lists, "query", dev=0.1, test=0.1, seed=0)
    assert split(lists, "query", dev=0, test=0, seed=0).train == lists
    with pytest.raises(UsageError, match="got 'day', expected query or time"):
        split(lists, "day", dev=0, test=0, seed=0)
    with pytest.raises(UsageError, match="sum is below 1"):
        split(lists, "query", dev=0.5, test=0.5, seed=0)


def test_a_batch_closes_at_the_first_list_that_fills_it(tmp_path: Path) -> None:
    lists = read(write_csv(tmp_path / "a.csv", pairs(5))).lists
    assert [len(batch) for batch in batches_of(lists, 7)] == [2, 2, 1]


# --- the command ---


def test_the_version_is_learned_judged_and_said_whence(tmp_path: Path) -> None:
    root, path = tmp_path / "store", write_csv(tmp_path / "a.csv", shown(30))
    result, paper = fit(path, root, epochs=3, patience=3)
    (version,) = Store(root).versions()
    assert version.name == result["version"] == Store(root).announced()
    Store(root).verify(version)
    fact = version.manifest["fit"]
    assert (fact["file"], fact["epochs"], fact["best_epoch"]) == ("a.csv", 3, result["best_epoch"])
    assert fact["figures"]["test_ndcg"] == result["test"]["ndcg"]
    assert version.manifest["offsets"] == {}
    figures = [each["dev"]["ndcg"] for each in result["epochs"]]
    assert result["best_epoch"] == 1 + figures[1:].index(max(figures[1:]))
    assert any(line.startswith("epoch 3: loss") for line in paper.reported)
    assert result["gain_over_zero_shot"] is not None
    assert 0 <= result["test"]["auc"] <= 1
    load_scorer(version.path, version.name, threads=1)


def test_the_same_file_settings_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    path, files = write_csv(tmp_path / "a.csv", pairs(24)), []
    for name in ("one", "two"):
        fit(path, tmp_path / name)
        (version,) = Store(tmp_path / name).versions()
        files.append(tree(version.path))
        files[-1].pop("manifest.json")  # type: ignore[attr-defined]
    assert files[0] == files[1]
    fit(path, tmp_path / "three", seed=1)
    (version,) = Store(tmp_path / "three").versions()
    assert tree(version.path)["estimator.msgpack"] != files[0]["estimator.msgpack"]


def test_further_epochs_move_the_encoder_and_nothing_that_counts(tmp_path: Path) -> None:
    path, found = write_csv(tmp_path / "a.csv", shown(20)), {}
    for epochs in (1, 2):
        fit(path, tmp_path / str(epochs), epochs=epochs, dev=0.0, test=0.0)
        (version,) = Store(tmp_path / str(epochs)).versions()
        found[epochs] = tree(version.path)
    same = {name for name in found[1] if found[1][name] == found[2][name]}
    assert same >= {
        "estimator.msgpack",
        "stackers.msgpack",
        "parts.msgpack",
        "residual.safetensors",
    }
    assert "model.safetensors" not in same


def test_what_a_row_counts_moves_the_model(tmp_path: Path) -> None:
    found = []
    for weight in (1, 5):
        rows = [{**row, "weight": weight if row["label"] else 1} for row in pairs(20)]
        path = write_csv(tmp_path / f"{weight}.csv", rows)
        fit(path, tmp_path / str(weight), epochs=1, dev=0.0, test=0.0)
        (version,) = Store(tmp_path / str(weight)).versions()
        found.append(tree(version.path))
    assert found[0]["model.safetensors"] != found[1]["model.safetensors"]
    assert found[0]["estimator.msgpack"] == found[1]["estimator.msgpack"]


def test_a_store_that_somebody_uses_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", pairs(24))
    fit(path, tmp_path / "store")
    with pytest.raises(Unsafe, match="has versions already, the newest is v000002"):
        fit(tmp_path / "missing.csv", tmp_path / "store")
    claim = tmp_path / "claimed" / "epoch" / "000001"
    claim.parent.mkdir(parents=True)
    claim.write_text("host 123 1700000000000000\n")
    with pytest.raises(Unsafe, match=r"claimed the store \(000001: host 123"):
        fit(path, tmp_path / "claimed")


def test_a_fit_on_a_full_disk_leaves_a_store_for_the_next_one(tmp_path: Path) -> None:
    settings = in_store(tmp_path / "healthy")
    fitted = _fitted(tmp_path, settings)
    source = FitSource(file="a.csv", sha256="0" * 64, rows=1, epochs=1, best_epoch=1)
    disk = FaultyDisk()
    versions.write(settings, fitted, source, clock=lambda: 0.0, disk=disk)
    writes = sum(call.op == "write" for call in disk.calls)
    for nth in range(0, writes, 4):
        root = tmp_path / f"{nth}"
        full = FaultyDisk(on("write", nth, Fail(errno.ENOSPC)))
        with (
            contextlib.suppress(StoreFailed),
            pytest.raises(WriteFailed, match=r"No space left.*nothing"),
        ):
            versions.write(in_store(root), fitted, source, clock=lambda: 0.0, disk=full)
        if not Store(root).versions():
            _end_of_the_process(root)
            versions.refuse_used(root)
            versions.write(in_store(root), fitted, source, clock=lambda: 0.0)
        (version,) = Store(root).versions()
        Store(root).verify(version)


def _end_of_the_process(root: Path) -> None:
    """Let the claims of a store be of a process that has ended."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    for claim in (root / "epoch").iterdir():
        claim.write_text(f"{os.uname().nodename} {gone.pid} 1700000000000000\n")


@pytest.mark.parametrize("process", [f"other-host {2**22 - 1}", f"{os.uname().nodename} 1", "?"])
def test_a_claim_that_may_be_of_a_running_learner_is_refused(tmp_path: Path, process: str) -> None:
    claim = tmp_path / "epoch" / "000001"
    claim.parent.mkdir()
    claim.write_text(f"{process} 1700000000000000\n")
    with pytest.raises(Unsafe, match="claimed the store"):
        versions.refuse_used(tmp_path)


def test_a_store_that_cannot_be_made_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    long = tmp_path / ("y" * 300)
    for root in (tmp_path / "no" / "store", file / "store", long):
        with pytest.raises(Unsafe, match=r"Set store\.root to a folder of yours"):
            fit(tmp_path / "missing.csv", root)


# --- the stream goes on from it ---


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop.invented(3, 300)


def test_the_stream_goes_on_from_it_and_every_row_and_record_counts_once(
    tmp_path: Path, shop: Shop
) -> None:
    root = tmp_path / "store"
    fit(write_csv(tmp_path / "a.csv", shown(24)), root)
    (fitted,) = Store(root).versions()
    rows, rows_sum = trained(root)
    live(root, shop.log, FaultyDisk())
    first, *_, newest = Store(root).versions()
    assert first.name == fitted.name
    assert newest.step > fitted.step
    num, sum64 = shop.trained
    assert trained(root) == (rows + num, (rows_sum + sum64) % (1 << 64))
    assert "fit" not in newest.manifest
    assert newest.run_state.bit_exact


def test_verify_counts_the_records_behind_a_fit(tmp_path: Path, shop: Shop) -> None:
    root = tmp_path / "store"
    fit(write_csv(tmp_path / "a.csv", shown(24)), root)

    def verify(**given: Any) -> tuple[int, list[str]]:
        paper, log = Paper(), shop.log
        asked = log_sums.Log(
            topics=sorted(log.partition_counts()),
            beginning_offsets=lambda topics: log.beginnings,
            open=lambda: contextlib.closing(log.reader()),
            pace=lambda: None,
        )
        code = recount.run(Store(root), asked, paper.output(as_json=True), **given)
        return code, [check["text"] for check in paper.objects[0]["checks"]]

    code, texts = verify()
    assert code == 0
    assert "v000002 contains no record of the log: it was learned from a file" in texts
    live(root, shop.log, FaultyDisk())
    code, texts = verify(since="v000002")
    assert code == 0
    assert f"{sum(map(len, shop.log.records.values()))} records" in " ".join(texts)


def test_a_learner_that_dies_right_after_the_fit_ends_on_the_same_state(
    tmp_path: Path, shop: Shop
) -> None:
    path, ends = write_csv(tmp_path / "a.csv", shown(24)), []
    for name, die_at in (("whole", None), ("killed", 60)):
        root = tmp_path / name
        fit(path, root)
        if die_at is not None:
            with pytest.raises(Crash):
                live(root, shop.log, FaultyDisk(at(die_at, Die("after"))), 1)
        live(root, shop.log, FaultyDisk(), 1)
        ends.append(trained(root))
    assert ends[0] == ends[1]


def test_whoever_is_killed_while_writing_leaves_a_store_that_a_learner_can_use(
    tmp_path: Path, shop: Shop
) -> None:
    settings = in_store(tmp_path / "healthy")
    fitted = _fitted(tmp_path, settings)
    source = FitSource(file="a.csv", sha256="0" * 64, rows=1, epochs=1, best_epoch=1)
    disk = FaultyDisk()
    assert not settings.store.root.exists()  # nothing is written before all is learned
    versions.write(settings, fitted, source, clock=lambda: 0.0, disk=disk)
    num_calls, outcomes = len(disk.calls), set()
    for index in range(0, num_calls, 3):
        root = tmp_path / f"{index}"
        disk = FaultyDisk(at(index, Die("middle")))
        with pytest.raises(Crash):
            versions.write(in_store(root), fitted, source, clock=lambda: 0.0, disk=disk)
        names = [version.name for version in Store(root).versions()]
        outcomes.add(tuple(names))
        for version in Store(root).versions():
            Store(root).verify(version)
    assert outcomes == {(), ("v000002",)}
    root = tmp_path / str(num_calls // 2 // 3 * 3)
    assert not Store(root).versions()
    live(root, shop.log, FaultyDisk())
    assert trained(root) == shop.trained


def _fitted(tmp_path: Path, settings: Any) -> Any:
    from deploy.fitting.epochs import Plan
    from deploy.fitting.epochs import fit as run

    lists = read(write_csv(tmp_path / "a.csv", pairs(12))).lists
    parts = split(lists, "query", dev=0.0, test=0.0, seed=0)
    return run(settings, parts, Plan(epochs=1, patience=1, seed=0, file="a.csv"))


def test_settings_of_the_learner_are_those_of_the_fit(tmp_path: Path, shop: Shop) -> None:
    other = replace(SETTINGS, learner=replace(SETTINGS.learner, lr=2e-3))
    root = tmp_path / "store"
    fit(write_csv(tmp_path / "a.csv", shown(24)), root)
    live(root, shop.log, FaultyDisk(), named=other, keep_tail=False)
    assert trained(root)[0] > shop.trained[0]


# --- tracking ---


def test_a_fit_that_is_tracked_writes_its_epochs_and_the_same_version(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    file = write_csv(tmp_path / "a.csv", shown(40))
    plain, _ = fit(file, tmp_path / "plain", dev=0.3)
    tracking = TrackingConfig(to="tensorboard", folder=tmp_path / "curves", every_steps=1)
    settings = replace(in_store(tmp_path / "own"), tracking=tracking)
    found, _ = fit(file, tmp_path / "own", settings=settings, dev=0.3)
    assert found["epochs"] == plain["epochs"]
    first, second = Store(tmp_path / "plain"), Store(tmp_path / "own")
    for name, digest in first.versions()[0].files.items():
        assert second.versions()[0].files[name] == digest, name

    folder = tmp_path / "curves" / "own" / "fit"
    last = [epoch["dev"]["ndcg"] for epoch in found["epochs"]]
    assert [value for _, value in scalars(folder, "dev/ndcg")] == pytest.approx(last)
    assert [value for _, value in scalars(folder, "fit/epoch")] == [0, 1, 2]
    steps = [step for step, _ in scalars(folder, "loss")]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) == scalars(folder, "fit/epoch")[-1][0]


def test_each_epoch_is_a_contribution_to_privacy(tmp_path: Path) -> None:
    path, root = write_csv(tmp_path / "a.csv", shown(12)), tmp_path / "store"
    settings = in_store(root)
    privacy = PrivacyConfig(noise_multiplier=1.0, max_contributions=2)
    private = replace(settings, learner=replace(settings.learner, privacy=privacy))
    with pytest.raises(UsageError, match=r"--epochs: got 3, but .*max_contributions"):
        fit(path, root, settings=private, epochs=3)
    fit(path, root, settings=private, epochs=2, patience=2)
    (version,) = Store(root).versions()
    progress = json.loads((version.path / "training" / "progress.json").read_text())
    assert progress["privacy"]["num_dropped"] == 0
    assert progress["privacy"]["max_contributions"] == 2


def test_purchases_over_all_need_a_file_that_knows_of_some(tmp_path: Path) -> None:
    settings = in_store(tmp_path / "store")
    weights = TaskWeights(purchase_over_all=1.0)
    over_all = replace(settings, learner=replace(settings.learner, task_weights=weights))
    rows = shown(12)
    unknown = [{**row, "purchased": ""} for row in rows]
    path = write_csv(tmp_path / "a.csv", unknown)
    with pytest.raises(UsageError, match=r"purchase_over_all: the file says of no clicked item"):
        fit(path, tmp_path / "store", settings=over_all)
    result, _ = fit(write_csv(path, rows), tmp_path / "store", settings=over_all, epochs=1)
    assert result["version"]
