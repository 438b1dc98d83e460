"""Verify: agrees where each record counted once, else names the smallest range; never guesses."""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.audit import Hasher
from deploy.admin import lineage
from deploy.admin.rate import Throttle
from deploy.verification import log_sums, recount
from deploy.verification.check import Check
from learner.artifact import Store, Version
from learner.store import verdict
from learner.store.blobs import Disk
from learner.store.journal.records import Part, Step
from learner.store.journal.writer import Journal
from learner.store.verdict import Verdict
from tests.deploy.stores import SEGMENT, A, B, audit, change, clicks, consumed
from tests.fakes.clock import ManualClock
from tests.fakes.disk import Fail, FaultyDisk, on
from tests.fakes.log import Log
from tests.fakes.paper import Paper
from weighting.provenance import Poll, Slice

CUTS = [{A: 0, B: 0}, {A: 10, B: 5}, {A: 20, B: 12}, {A: 40, B: 30}]


def run(
    root: Path, log: Log, pace: Callable[[], None] = lambda: None, **given: Any
) -> tuple[int, dict[str, Any]]:
    paper = Paper()
    asked = log_sums.Log(
        topics=["clicks"],
        beginning_offsets=lambda topics: log.beginnings,
        open=lambda: contextlib.closing(log.reader()),
        pace=pace,
    )
    code = recount.run(Store(root), asked, paper.output(as_json=True), **given)
    return code, paper.objects[0]


def wrong(verdict: dict[str, Any]) -> list[tuple[str, str | None, Any]]:
    return [
        (check["step"], check["partition"], check["offsets"])
        for check in verdict["checks"]
        if check["outcome"] == "differs"
    ]


def test_a_store_that_counted_each_record_once_is_equal(tmp_path: Path) -> None:
    log = clicks(50, 40)
    consumed(tmp_path, log, CUTS)
    code, verdict = run(tmp_path, log)
    assert (code, verdict["result"], verdict["version"], verdict["since"]) == (
        0,
        "equal",
        "v000005",
        "v000002",
    )
    assert [check["outcome"] for check in verdict["checks"]] == ["equal"] * 3
    assert "70 records in 2 partitions" in verdict["checks"][1]["text"]


def test_a_rewritten_record_is_found_between_the_versions_that_hold_it(tmp_path: Path) -> None:
    log = clicks(50, 40)
    consumed(tmp_path, log, CUTS)
    record = log.records[B][17]
    log.records[B][17] = replaced(record, b"another")
    code, verdict = run(tmp_path, log)
    assert code == 1
    assert wrong(verdict) == [("log", "clicks[1]", [12, 30])]


def replaced(record: Any, value: bytes) -> Any:
    return type(record)(
        record.topic,
        record.partition,
        record.offset,
        record.timestamp_us,
        record.key,
        value,
        record.headers,
    )


@settings(max_examples=25, deadline=None)
@given(at=st.integers(0, 39), bounds=st.sets(st.integers(1, 39)))
def test_a_journal_narrows_a_difference_down_to_its_slice(
    tmp_path_factory: pytest.TempPathFactory, at: int, bounds: set[int]
) -> None:
    root, log = tmp_path_factory.mktemp("store"), clicks(40, 0)
    consumed(root, log, [{A: 0}, {A: 40}])
    edges = [0, *sorted(bounds), 40]
    hasher = Hasher(*A)
    slices = [
        Slice(*A, a, b, b - a, sum(map(hasher, log.records[A][a:b])) % 2**64)
        for a, b in itertools.pairwise(edges)
    ]
    log.records[A][at] = replaced(log.records[A][at], b"another")

    def journal(start: Version, version: Version) -> Sequence[Slice]:
        return slices

    code, verdict = run(root, log, journal=journal)
    (first, last) = next((a, b) for a, b in itertools.pairwise(edges) if a <= at < b)
    assert (code, wrong(verdict)) == (1, [("log", "clicks[0]", [first, last])])


def test_slices_are_read_from_the_journal_between_two_places_and_a_broken_frame_is_a_difference(
    tmp_path: Path,
) -> None:
    log = clicks(40, 0)
    first, second = consumed(tmp_path, log, [{A: 5}, {A: 35}])
    (tmp_path / "journal" / SEGMENT).unlink()
    journal, hasher, places = Journal(tmp_path, Disk()), Hasher(*A), []
    journal.start(1, {})
    for number in range(4):  # polls of 5 records, two a step
        places.append(journal.place)
        polls = []
        for start in (number * 10, number * 10 + 5):
            polls.append(
                Poll(
                    (
                        Slice(
                            *A,
                            start,
                            start + 5,
                            5,
                            sum(map(hasher, log.records[A][start : start + 5])) % 2**64,
                        ),
                    )
                )
            )
        journal.append(Step(number, (Part(tuple(polls), "full"),)))
    for version, place in ((first, places[0]), (second, places[3])):
        change(
            tmp_path,
            version.name,
            journal={"segment": place.segment, "byte": place.byte, "skip": [1]},
        )
    store = Store(tmp_path)

    def slices(start: Version, version: Version) -> Sequence[Slice]:
        return lineage.slices(store, start, version)

    found = slices(store.version(first.name), store.version(second.name))
    assert [(part.start, part.end) for part in found] == [
        (start, start + 5) for start in range(5, 35, 5)
    ]
    assert run(tmp_path, log, journal=slices)[0] == 0
    log.records[A][17] = replaced(log.records[A][17], b"x")
    assert wrong(run(tmp_path, log, journal=slices)[1]) == [("log", "clicks[0]", [15, 20])]
    file = tmp_path / "journal" / SEGMENT
    data = bytearray(file.read_bytes())
    data[places[1].byte + 9] ^= 1
    file.write_bytes(data)
    assert wrong(run(tmp_path, log, journal=slices)[1])[0] == ("journal", None, None)


@pytest.mark.parametrize("changed", [{"num_records": 41}, {"sum64": 7}])
def test_a_record_that_counted_twice_or_never_is_a_difference(
    tmp_path: Path, changed: Mapping[str, int]
) -> None:
    log = clicks(50, 40)
    consumed(tmp_path, log, CUTS)
    written = audit(log, CUTS[-1])
    written["clicks"]["0"].update(changed)
    written["clicks"]["0"]["outcomes"] = {"accepted": written["clicks"]["0"]["num_records"]}
    change(tmp_path, "v000005", audit=written)
    code, verdict = run(tmp_path, log)
    assert code == 1
    assert ("log", "clicks[0]", [20, 40]) in wrong(verdict)


def test_every_record_that_is_read_again_waits_for_its_turn_when_a_difference_is_narrowed_down_too(
    tmp_path: Path,
) -> None:
    log, clock = clicks(50, 40), ManualClock(0.0)
    consumed(tmp_path, log, CUTS)
    throttle = Throttle(10, clock=clock, sleep=clock.advance)
    assert run(tmp_path, log, pace=throttle.wait)[0] == 0
    assert clock.seconds == pytest.approx(6.9)  # 70 records
    log.records[B][17] = replaced(log.records[B][17], b"another")
    assert run(tmp_path, log, pace=throttle.wait)[0] == 1
    assert clock.seconds == pytest.approx(6.9 + 7.0 + 3.0)  # and 30 of one partition once more


def test_a_verdict_is_left_in_the_store_with_when_all_was_equal_last(tmp_path: Path) -> None:
    log, clock = clicks(50, 40), ManualClock(1000.0)
    consumed(tmp_path, log, CUTS)
    assert run(tmp_path, log, clock=clock)[0] == 0
    equal = verdict.read(tmp_path, Disk())
    assert equal == Verdict(
        version="v000005",
        since="v000002",
        num_differences=0,
        at_us=1_000_000_000,
        equal_us=1_000_000_000,
    )
    for tp, at in ((A, 3), (B, 17)):
        log.records[tp][at] = replaced(log.records[tp][at], b"another")
    clock.advance(60)
    assert run(tmp_path, log, clock=clock)[0] == 1
    differs = verdict.read(tmp_path, Disk())
    assert differs == Verdict(
        version="v000005",
        since="v000002",
        num_differences=2,
        at_us=1_060_000_000,
        equal_us=1_000_000_000,
    )


def test_what_cannot_be_decided_leaves_the_verdict_before(tmp_path: Path) -> None:
    log = clicks(50, 40)
    consumed(tmp_path, log, CUTS)
    run(tmp_path, log)
    before = verdict.read(tmp_path, Disk())
    log.beginnings |= {A: 50, B: 40}
    assert run(tmp_path, log)[0] == 3
    assert verdict.read(tmp_path, Disk()) == before is not None


@pytest.mark.parametrize("code", [0, 1])
def test_a_store_that_may_not_be_written_to_is_told_in_one_line_and_changes_no_exit_code(
    tmp_path: Path, code: int
) -> None:
    log, paper = clicks(50, 40), Paper()
    consumed(tmp_path, log, CUTS)
    log.records[B][17] = replaced(log.records[B][17], b"another") if code else log.records[B][17]
    asked = log_sums.Log(
        topics=["clicks"],
        beginning_offsets=lambda topics: log.beginnings,
        open=lambda: contextlib.closing(log.reader()),
    )
    disk = FaultyDisk(on("create", 0, Fail(errno.EACCES)))
    assert recount.run(Store(tmp_path), asked, paper.output(as_json=True), disk=disk) == code
    (message,) = paper.reported
    assert (
        message
        == f"{tmp_path}/control/verified.json: injected: the verdict is not left in the store; "
        "/metrics keeps the one before"
    )
    assert verdict.read(tmp_path, Disk()) is None


def test_a_record_without_an_outcome_is_a_difference(tmp_path: Path) -> None:
    log = clicks(50, 40)
    consumed(tmp_path, log, CUTS)
    written = audit(log, CUTS[-1])
    written["clicks"]["1"]["outcomes"] = {"accepted": 28, "late": 1}
    change(tmp_path, "v000005", audit=written)
    code, verdict = run(tmp_path, log)
    assert (code, wrong(verdict)) == (1, [("conservation", "clicks[1]", None)])


def test_a_damaged_file_is_a_difference_though_the_log_agrees(tmp_path: Path) -> None:
    log = clicks(50, 40)
    newest = consumed(tmp_path, log, CUTS)[-1]
    damaged = newest.path / "model.safetensors"
    damaged.chmod(0o640)
    damaged.write_bytes(b"x")
    code, verdict = run(tmp_path, log)
    assert (code, wrong(verdict)) == (1, [("files", None, None)])


def test_what_is_retained_is_verified_since_the_oldest_version_that_is(tmp_path: Path) -> None:
    log = clicks(50, 40)
    consumed(tmp_path, log, CUTS)
    log.beginnings[A] = 15
    code, verdict = run(tmp_path, log)
    assert (code, verdict["since"]) == (0, "v000004")


@pytest.mark.parametrize("since", [None, "v000003"])
def test_what_retention_took_cannot_be_decided(tmp_path: Path, since: str | None) -> None:
    log = clicks(50, 40)
    consumed(tmp_path, log, CUTS)
    log.beginnings[A] = 35
    code, verdict = run(tmp_path, log, since=since)
    assert (code, verdict["result"]) == (3, "undecided")


def test_versions_without_audits_cannot_be_decided(tmp_path: Path) -> None:
    log = clicks(50, 40)
    consumed(tmp_path, log, CUTS, audit={})
    assert run(tmp_path, log)[0] == 3


def test_a_reset_in_between_is_left_out_by_itself_and_undecided_by_name(tmp_path: Path) -> None:
    log = clicks(50, 40)
    consumed(tmp_path, log, CUTS)
    moved = [{"order": 1, "step": 2, "offsets": {"clicks": {"0": [10, 4]}}}]
    for name in ("v000004", "v000005"):
        change(tmp_path, name, resets=moved)
    assert run(tmp_path, log)[1]["since"] == "v000004"
    code, verdict = run(tmp_path, log, since="v000003")
    assert code == 3
    assert "offsets were reset" in verdict["checks"][1]["text"]


def test_records_that_a_manifest_names_as_a_gap_are_not_expected(tmp_path: Path) -> None:
    log = clicks(50, 40)
    consumed(tmp_path, log, CUTS)
    written = audit(log, CUTS[-1])
    hasher = Hasher(*A)
    lost = log.records[A][25:30]
    written["clicks"]["0"]["num_records"] -= 5
    written["clicks"]["0"]["outcomes"] = {"accepted": 35}
    written["clicks"]["0"]["sum64"] = (
        written["clicks"]["0"]["sum64"] - sum(map(hasher, lost))
    ) % 2**64
    change(
        tmp_path,
        "v000005",
        audit=written,
        gaps=[{"topic": "clicks", "partition": 0, "start": 25, "end": 30, "reason": "reset"}],
    )
    assert run(tmp_path, log)[0] == 0


def test_a_version_of_another_timeline_is_no_start(tmp_path: Path) -> None:
    log = clicks(50, 40)
    first = consumed(tmp_path, log, CUTS)[0]
    change(tmp_path, "v000005", parent={"version": first.name, "self": first.manifest["self"]})
    code, verdict = run(tmp_path, log, since="v000004")
    assert code == 3
    assert "did not come from v000004" in verdict["checks"][1]["text"]
    assert run(tmp_path, log)[1]["since"] == "v000002"


def test_deep_is_one_more_check(tmp_path: Path) -> None:
    log = clicks(50, 40)
    consumed(tmp_path, log, CUTS)

    def deep(start: Version, version: Version) -> Check:
        return Check(step="state", outcome="differs", text=f"{start.name} {version.name}")

    code, verdict = run(tmp_path, log, deep=deep)
    assert (code, verdict["checks"][2]["text"]) == (1, "v000002 v000005")


def test_an_empty_store_cannot_be_decided(tmp_path: Path) -> None:
    assert run(tmp_path, clicks(1))[0] == 3


def test_a_difference_is_told_to_a_person_with_its_offsets(tmp_path: Path) -> None:
    log = clicks(50, 40)
    consumed(tmp_path, log, CUTS)
    log.records[A][3] = replaced(log.records[A][3], b"x")
    paper = Paper()
    asked = log_sums.Log(
        topics=["clicks"],
        beginning_offsets=lambda topics: log.beginnings,
        open=lambda: contextlib.closing(log.reader()),
    )
    assert recount.run(Store(tmp_path), asked, replace(paper.output())) == 1
    assert paper.written[1].startswith("X  log: clicks[0]@0-10: the log has 40 records")
    assert paper.written[-1] == "different"
