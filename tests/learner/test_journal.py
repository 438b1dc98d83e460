"""Journal records come back whole and in order; one that is not durable stops the owner."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.errors import JournalFailed
from learner.store.blobs import Disk
from learner.store.journal.frames import MAGIC
from learner.store.journal.records import (
    Fingerprint,
    JournalPosition,
    JournalRange,
    JournalRecord,
    Outcome,
    Part,
    Step,
    truncate,
)
from learner.store.journal.tail import read_tail
from learner.store.journal.writer import Journal
from tests.fakes.disk import Crash, Die, Fail, FaultyDisk, at, on
from weighting.provenance import Poll, Slice

FINGERPRINT: Fingerprint = {"torch": "2.13.0", "threads": 1}
BEGINNING = JournalPosition("000001-0000", 0)


def step(number: int) -> Step:
    poll = Poll(
        (Slice("clicks", 0, number, number + 3, 3, 2**64 - 1), Slice("items", 1, 0, 2, 1, 0)),
        (("clicks", 1),),
    )
    return Step(number, (Part((poll, poll), "full"), Part((), None)))


def steps(*numbers: int) -> list[JournalRecord]:
    return [step(number) for number in numbers]


def journal(
    root: Path, disk: Disk | None = None, *, epoch: int = 1, segment_bytes: int = 64 << 20
) -> Journal:
    (root / "journal").mkdir(exist_ok=True)
    own = Journal(root, disk or FaultyDisk(), segment_bytes=segment_bytes)
    own.start(epoch, FINGERPRINT)
    return own


def written(
    root: Path, *records: JournalRecord, epoch: int = 1, segment_bytes: int = 64 << 20
) -> Journal:
    own = journal(root, epoch=epoch, segment_bytes=segment_bytes)
    for record in records:
        own.append(record)
    own.close()
    return own


def read(
    root: Path, timeline: Sequence[JournalRange], start: JournalPosition | None = None
) -> list[JournalRecord]:
    found = read_tail(root, Disk(), timeline, start or JournalPosition(timeline[0].segment, 0))
    assert found.damage is None
    return [record for _, record in found.records]


def segment(root: Path, name: str = "000001-0000") -> Path:
    return root / "journal" / name


def test_records_come_back_in_order_with_the_position_behind_each(tmp_path: Path) -> None:
    own = journal(tmp_path)
    assert own.spans == [JournalRange("000001-0000", 0, None)]
    records: list[JournalRecord] = [step(1), Outcome(1, 4), step(2)]
    places = [own.place]
    for record in records:
        own.append(record)
        places.append(own.place)
    found = read_tail(tmp_path, Disk(), own.spans, BEGINNING)
    assert found.records == list(zip(places[1:], records, strict=True))
    assert found.timeline == (JournalRange("000001-0000", 0, places[-1].byte),)
    assert own.num_bytes == places[-1].byte == segment(tmp_path).stat().st_size
    for skipped, place in enumerate(places):
        assert read(tmp_path, own.spans, place) == records[skipped:]
    own.close()


def test_a_record_is_on_the_disk_before_append_returns_and_its_segment_has_its_name(
    tmp_path: Path,
) -> None:
    disk = FaultyDisk()
    own = journal(tmp_path, disk, segment_bytes=150)
    assert [call.op for call in disk.calls] == ["create", "write", "fsync", "fsync_folder"]
    for number in range(1, 5):
        first = len(disk.calls)
        own.append(step(number))
        ops = [call.op for call in disk.calls[first:]]
        assert ops[-2:] == ["write", "fsync"]
        assert ops[:-2] in ([], ["create", "write", "fsync", "fsync_folder"])
    own.close()
    assert len(own.spans) > 1


def test_a_full_segment_is_followed_by_another_and_the_open_range_goes_on_in_it(
    tmp_path: Path,
) -> None:
    own = written(tmp_path, *steps(*range(1, 10)), segment_bytes=200)
    names = sorted(path.name for path in (tmp_path / "journal").iterdir())
    assert names == [f"000001-{number:04d}" for number in range(len(names))]
    assert len(names) > 3
    assert [span.segment for span in own.spans] == names
    sizes = [segment(tmp_path, name).stat().st_size for name in names[:-1]]
    assert [span.end for span in own.spans] == [*sizes, None]
    known_at_the_start = [JournalRange("000001-0000", 0, None)]
    assert read(tmp_path, own.spans) == read(tmp_path, known_at_the_start) == steps(*range(1, 10))
    closed = read_tail(tmp_path, Disk(), known_at_the_start, BEGINNING).timeline
    assert read(tmp_path, closed) == steps(*range(1, 10))


def test_a_timeline_of_several_owners_is_read_as_one_and_ends_where_it_says(tmp_path: Path) -> None:
    first = written(tmp_path, *steps(1, 2, 3))
    end_of_second = read_tail(tmp_path, Disk(), first.spans, BEGINNING).records[1][0]
    closed = (JournalRange("000001-0000", 0, end_of_second.byte),)
    second = written(tmp_path, *steps(13, 14), epoch=2)
    timeline = (*closed, *second.spans)
    assert read(tmp_path, timeline) == steps(1, 2, 13, 14)
    assert read(tmp_path, timeline, end_of_second) == steps(13, 14)
    assert truncate(timeline, end_of_second) == closed
    assert truncate(timeline, JournalPosition("000009-0000", 0)) == ()
    with pytest.raises(ValueError, match="000001-0000@99999 is not on the timeline"):
        read(tmp_path, timeline, JournalPosition("000001-0000", 99999))


def test_an_owner_that_never_wrote_leaves_nothing_and_no_damage(tmp_path: Path) -> None:
    first = written(tmp_path, *steps(1))
    end = JournalPosition("000001-0000", first.num_bytes)
    timeline = (JournalRange("000001-0000", 0, end.byte), JournalRange("000002-0000", 0, None))
    found = read_tail(tmp_path, Disk(), timeline, end)
    assert (found.records, found.timeline, found.damage) == ([], timeline[:1], None)
    written(tmp_path, epoch=2)
    assert read_tail(tmp_path, Disk(), timeline, end).timeline == timeline[:1]


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("when", ["before", "middle", "after"])
def test_a_crash_at_every_call_loses_at_most_the_record_that_was_being_written(
    tmp_path: Path, when: str, zeros: bool
) -> None:
    def life(root: Path, disk: FaultyDisk) -> list[JournalRecord]:
        done: list[JournalRecord] = []
        try:
            own = journal(root, disk, segment_bytes=250)
            for record in steps(*range(1, 7)):
                own.append(record)
                done.append(record)
        except Crash:
            pass
        return done

    probe = FaultyDisk()
    (tmp_path / "probe").mkdir()
    assert life(tmp_path / "probe", probe) == steps(*range(1, 7))
    for index in range(len(probe.calls)):
        root = tmp_path / f"{index}"
        root.mkdir()
        disk = FaultyDisk(at(index, Die(when)))
        done = life(root, disk)
        disk.lose_power(data=True, names=True, zeros=zeros)
        found = read(root, [JournalRange("000001-0000", 0, None)])
        assert found in (done, [*done, step(len(done) + 1)]), f"died {when} {disk.calls[-1]}"


@pytest.mark.parametrize("op", ["write", "fsync", "create", "fsync_folder"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_what_cannot_be_made_durable_stops_the_owner_for_good_and_no_fsync_is_repeated(
    tmp_path: Path, op: str, code: int
) -> None:
    disk = FaultyDisk()
    own = journal(tmp_path, disk, segment_bytes=100)
    own.append(step(1))
    disk.plan = on(op, 2 if op in ("write", "fsync") else 1, Fail(code))
    with pytest.raises(JournalFailed, match=f"{errno.errorcode[code]}.*exit 75") as raised:
        own.append(step(2))
    assert (raised.value.retriable, raised.value.errno) == (False, code)
    disk.plan = lambda call: None
    num_calls = len(disk.calls)
    with pytest.raises(JournalFailed):
        own.append(step(2))
    assert len(disk.calls) == num_calls
    own.close()
    assert read(tmp_path, [JournalRange("000001-0000", 0, None)]) == steps(1)


def damaged(root: Path, timeline: Sequence[JournalRange]) -> tuple[list[JournalRecord], str]:
    found = read_tail(root, Disk(), timeline, JournalPosition(timeline[0].segment, 0))
    assert found.damage is not None
    last, place = found.timeline[-1], found.damage.place
    assert last.end == place.byte or last.segment != place.segment
    return [record for _, record in found.records], found.damage.reason


def test_junk_behind_the_last_record_is_torn_and_junk_inside_is_damage(tmp_path: Path) -> None:
    own = written(tmp_path, *steps(1, 2, 3))
    places = [place.byte for place, _ in read_tail(tmp_path, Disk(), own.spans, BEGINNING).records]
    healthy = segment(tmp_path).read_bytes()
    half = healthy[places[0] : places[1] - 1]
    for junk in (b"\0", bytes(500), os.urandom(300), b"\xff" * 9, half):
        segment(tmp_path).write_bytes(healthy + junk)
        assert read(tmp_path, own.spans) == steps(1, 2, 3)
    for place in range(places[0], places[1]):
        flipped = bytearray(healthy)
        flipped[place] ^= 0x40
        segment(tmp_path).write_bytes(flipped)
        assert damaged(tmp_path, own.spans)[0] == steps(1)
    for place in range(places[1], places[2]):
        segment(tmp_path).write_bytes(healthy[:place])
        assert read(tmp_path, own.spans) == steps(1, 2)
        closed = [JournalRange("000001-0000", 0, places[2])]  # must be whole
        assert damaged(tmp_path, closed)[0] == steps(1, 2)
    segment(tmp_path).write_bytes(healthy[: places[0]] + healthy[places[1] :])
    assert damaged(tmp_path, own.spans) == (steps(1), "expected record number 2, found 3")


def test_a_segment_that_is_gone_short_or_another_is_damage_and_nothing_behind_it_is_read(
    tmp_path: Path,
) -> None:
    first = written(tmp_path, *steps(1, 2))
    second = written(tmp_path, *steps(3, 4), epoch=2)
    timeline = (JournalRange("000001-0000", 0, first.num_bytes), *second.spans)
    assert read(tmp_path, timeline) == steps(1, 2, 3, 4)
    healthy = segment(tmp_path).read_bytes()
    segment(tmp_path).unlink()
    assert damaged(tmp_path, timeline) == ([], "no such file, or not a regular one")
    segment(tmp_path).symlink_to(segment(tmp_path, "000002-0000"))
    assert damaged(tmp_path, timeline) == ([], "no such file, or not a regular one")
    segment(tmp_path).unlink()
    shutil.copy(segment(tmp_path, "000002-0000"), segment(tmp_path))
    assert damaged(tmp_path, timeline) == ([], "the beginning of segment 000002-0000")
    segment(tmp_path).write_bytes(b"SYJRNL02" + healthy[8:])
    assert damaged(tmp_path, timeline)[0] == []
    segment(tmp_path).write_bytes(healthy)
    segment(tmp_path, "000002-0000").unlink()
    beyond = JournalPosition("000002-0000", 100)
    assert read_tail(tmp_path, Disk(), timeline, beyond).damage is not None
    written(tmp_path, epoch=2)
    # A checkpoint says that there were a hundred bytes
    assert read_tail(tmp_path, Disk(), timeline, beyond).damage is not None


def test_a_segment_that_cannot_be_read_for_now_is_not_taken_for_damage(tmp_path: Path) -> None:
    own = written(tmp_path, *steps(1))
    busy = FaultyDisk(on("open", 0, Fail(errno.EMFILE)))
    with pytest.raises(OSError, match="injected"):
        read_tail(tmp_path, busy, own.spans, BEGINNING)


def frame(payload: bytes) -> bytes:
    return struct.pack("<II", len(payload), zlib.crc32(payload)) + payload


HOSTILE = [
    b"",
    b"\xff" * 100,
    b"\x91" * 100_000,
    msgspec.msgpack.encode([0, ["pickle", 1]]),
    msgspec.msgpack.encode([0, ["step", "1", []]]),
    msgspec.msgpack.encode([0, ["step", 1, [[[[["t", 0, "../x", 1, 1]], []]], None]]]),
    msgspec.msgpack.encode([-1, ["step", 1, []]])[:-1],
]


@pytest.mark.parametrize("payload", HOSTILE)
def test_a_frame_that_holds_but_says_nonsense_is_refused(tmp_path: Path, payload: bytes) -> None:
    own = written(tmp_path, *steps(1))
    segment(tmp_path).write_bytes(segment(tmp_path).read_bytes() + frame(payload) + frame(payload))
    found = read_tail(tmp_path, Disk(), own.spans, BEGINNING)
    assert [record for _, record in found.records] == steps(1)


def test_lengths_that_lie_cost_no_memory_and_no_time(tmp_path: Path) -> None:
    own = written(tmp_path, *steps(1))
    liar = struct.pack("<II", 1 << 20, 7) + b"\x92"
    segment(tmp_path).write_bytes(segment(tmp_path).read_bytes() + liar * 200_000)
    found = read_tail(tmp_path, Disk(), own.spans, BEGINNING)
    assert [record for _, record in found.records] == steps(1)
    assert found.damage is not None
    segment(tmp_path).write_bytes(MAGIC + struct.pack("<II", 0xFFFFFFFF, 0))
    assert read(tmp_path, own.spans) == []


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_fuzzed_bytes_never_give_a_record_that_was_not_written(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("fuzz")
    own = written(root, *steps(*range(1, 6)))
    content = bytearray(segment(root).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 40)))
        content[start:end] = data.draw(st.binary(max_size=40))
    segment(root).write_bytes(content)
    found = read_tail(root, Disk(), own.spans, BEGINNING)
    records = [record for _, record in found.records]
    assert records == steps(*range(1, len(records) + 1))
    shutil.rmtree(root)


@pytest.mark.parametrize(
    "name", ["../man/M-00000001", "000001", "000001-0000/..", "/etc/passwd", "1-0"]
)
def test_a_name_that_is_no_segment_never_becomes_a_path(name: str) -> None:
    for kind, value in itertools.product(
        (JournalPosition, JournalRange), ([name, 0], [name, 0, None])
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(value, kind)
