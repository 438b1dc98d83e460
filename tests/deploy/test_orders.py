"""Orders: whole, numbered once, carried out exactly as planned, and never in the way of the learner."""

import errno
from pathlib import Path

import pytest

from learner.errors import Corrupt, StoreFailed
from learner.store import commands
from learner.store.blobs import Disk
from tests.fakes.disk import Crash, Die, Fail, FaultyDisk, Meanwhile, at, on

PLAN = {"offsets": {"clicks": {"0": 7}}}


def order(root: Path, disk: Disk | None = None, *, after: int = 0) -> commands.Command:
    return commands.write(
        root, disk or FaultyDisk(), "reset", PLAN, now_us=1_700_000_000_000_000, after=after
    )


def test_orders_are_numbered_and_pending_until_a_manifest_has_their_number(tmp_path: Path) -> None:
    first, second = order(tmp_path), order(tmp_path)
    assert (first.id, second.id) == (1, 2)
    assert commands.pending(tmp_path, 0) == first
    assert commands.pending(tmp_path, 1) == second
    assert commands.pending(tmp_path, 2) is None
    assert commands.read(tmp_path, Disk(), 1).digest == commands.digest(PLAN)


def test_a_number_that_a_manifest_has_is_not_used_again_though_its_file_is_gone(
    tmp_path: Path,
) -> None:
    assert order(tmp_path, after=41).id == 42


def test_a_number_that_somebody_else_takes_meanwhile_is_left_to_him(tmp_path: Path) -> None:
    order(tmp_path)
    assert order(tmp_path, FaultyDisk(on("link", 0, Meanwhile(lambda: order(tmp_path))))).id == 3
    assert [commands.read(tmp_path, Disk(), number).id for number in (1, 2, 3)] == [1, 2, 3]


def test_wherever_writing_dies_there_is_a_whole_order_or_none(tmp_path: Path) -> None:
    healthy = FaultyDisk()
    (tmp_path / "healthy").mkdir()
    order(tmp_path / "healthy", healthy)
    for index in range(len(healthy.calls)):
        for when in ("before", "middle", "after"):
            root = tmp_path / f"{index}-{when}"
            root.mkdir()
            disk = FaultyDisk(at(index, Die(when)))
            with pytest.raises(Crash):
                order(root, disk)
            disk.lose_power(data=True, names=True)
            found = commands.pending(root, 0)
            assert found is None or found.digest == commands.digest(PLAN)


def test_a_disk_that_is_full_is_said_and_leaves_no_order(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match="ENOSPC"):
        order(tmp_path, FaultyDisk(on("write", 0, Fail(errno.ENOSPC))))
    assert commands.pending(tmp_path, 0) is None


@pytest.mark.parametrize("change", [(b'"0":7', b'"0":8'), (b'"id":1', b'"id":9'), (b"{", b"")])
def test_an_order_that_was_tampered_with_is_refused_and_the_next_one_is_taken(
    tmp_path: Path, change: tuple[bytes, bytes]
) -> None:
    order(tmp_path)
    file = tmp_path / "control" / "orders" / "000001.json"
    file.chmod(0o640)
    file.write_bytes(file.read_bytes().replace(*change, 1))
    with pytest.raises(Corrupt):
        commands.read(tmp_path, Disk(), 1)
    second = order(tmp_path)
    assert commands.pending(tmp_path, 0) == second
    assert (commands.answered(tmp_path, 1) or {})["state"] == "refused"


def test_an_answer_stays_and_an_answered_order_is_not_pending(tmp_path: Path) -> None:
    order(tmp_path)
    assert commands.answered(tmp_path, 1) is None
    commands.answer(tmp_path, 1, {"state": commands.TAKEN, "version": "v000007"})
    commands.answer(tmp_path, 1, {"state": commands.DONE})
    assert commands.answered(tmp_path, 1) == {"state": "done"}
    assert commands.pending(tmp_path, 0) is None


def test_an_order_is_withdrawn_once_and_not_after_it_was_answered(tmp_path: Path) -> None:
    order(tmp_path)
    order(tmp_path)
    assert commands.withdraw(tmp_path, 1, Disk())
    assert not commands.withdraw(tmp_path, 1, Disk())
    commands.answer(tmp_path, 2, {"state": commands.TAKEN})
    assert not commands.withdraw(tmp_path, 2, Disk())
    assert commands.answered(tmp_path, 2) == {"state": "taken"}
