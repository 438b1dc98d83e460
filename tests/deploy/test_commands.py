"""Operator commands: whole, numbered once, carried out as planned, never in the learner's way."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.admin import checkpoints
from learner.artifact import Store
from learner.errors import Corrupt, StoreFailed
from learner.store import commands
from learner.store.blobs import Disk
from tests.fakes.disk import Crash, Die, Fail, FaultyDisk, Meanwhile, at, on
from tests.fakes.paper import Paper
from tests.learner.saving import owner, saved

PLAN = {"offsets": {"clicks": {"0": 7}}}
NOW_US = 1_700_000_000_000_000


def reset(root: Path, disk: Disk | None = None, *, after: int = 0) -> commands.Command:
    return commands.write(root, disk or FaultyDisk(), "reset", PLAN, now_us=NOW_US, after=after)


def replay(root: Path, version: str) -> commands.Command:
    return commands.write(root, Disk(), "replay", {"version": version}, now_us=NOW_US)


def damage(root: Path, command_id: int, change: tuple[bytes, bytes]) -> None:
    file = root / "control" / "orders" / f"{command_id:06d}.json"
    file.chmod(0o640)
    file.write_bytes(file.read_bytes().replace(*change, 1))


def test_commands_are_numbered_and_pending_until_a_manifest_has_their_number(
    tmp_path: Path,
) -> None:
    first, second = reset(tmp_path), reset(tmp_path)
    assert (first.id, second.id) == (1, 2)
    assert commands.pending(tmp_path, 0) == first
    assert commands.pending(tmp_path, 1) == second
    assert commands.pending(tmp_path, 2) is None
    assert commands.read(tmp_path, Disk(), 1).digest == commands.digest(PLAN)


def test_all_that_wait_are_listed_oldest_first_and_nothing_is_changed_by_that(
    tmp_path: Path,
) -> None:
    first, second, third, _, fifth = [reset(tmp_path) for _ in range(5)]
    commands.take(tmp_path, first.id)
    commands.withdraw(tmp_path, second.id, Disk())
    damage(tmp_path, 4, (b'"0":7', b'"0":8'))
    assert commands.waiting(tmp_path, 0) == [first, third, fifth]
    assert commands.waiting(tmp_path, 3) == [fifth]
    assert commands.answered(tmp_path, 4) is None


def test_a_number_that_a_manifest_has_is_not_used_again_though_its_file_is_gone(
    tmp_path: Path,
) -> None:
    assert reset(tmp_path, after=41).id == 42


def test_a_number_that_somebody_else_takes_meanwhile_is_left_to_him(tmp_path: Path) -> None:
    reset(tmp_path)
    disk = FaultyDisk(on("link", 0, Meanwhile(lambda: reset(tmp_path))))
    assert reset(tmp_path, disk).id == 3
    assert [commands.read(tmp_path, Disk(), number).id for number in (1, 2, 3)] == [1, 2, 3]


def test_wherever_writing_dies_there_is_a_whole_command_or_none(tmp_path: Path) -> None:
    healthy = FaultyDisk()
    (tmp_path / "healthy").mkdir()
    reset(tmp_path / "healthy", healthy)
    for index in range(len(healthy.calls)):
        for when in ("before", "middle", "after"):
            root = tmp_path / f"{index}-{when}"
            root.mkdir()
            disk = FaultyDisk(at(index, Die(when)))
            with pytest.raises(Crash):
                reset(root, disk)
            disk.lose_power(data=True, names=True)
            found = commands.pending(root, 0)
            assert found is None or found.digest == commands.digest(PLAN)


def test_a_full_disk_is_an_error_and_leaves_no_command(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match="ENOSPC"):
        reset(tmp_path, FaultyDisk(on("write", 0, Fail(errno.ENOSPC))))
    assert commands.pending(tmp_path, 0) is None


@pytest.mark.parametrize("change", [(b'"0":7', b'"0":8'), (b'"id":1', b'"id":9'), (b"{", b"")])
def test_a_command_that_was_tampered_with_is_refused_and_the_next_one_is_taken(
    tmp_path: Path, change: tuple[bytes, bytes]
) -> None:
    reset(tmp_path)
    damage(tmp_path, 1, change)
    with pytest.raises(Corrupt):
        commands.read(tmp_path, Disk(), 1)
    second = reset(tmp_path)
    assert commands.pending(tmp_path, 0) == second
    assert (commands.answered(tmp_path, 1) or {})["state"] == "refused"


def test_an_answer_stays_and_an_answered_command_is_not_pending(tmp_path: Path) -> None:
    reset(tmp_path)
    assert commands.answered(tmp_path, 1) is None
    commands.answer(tmp_path, 1, {"state": commands.TAKEN, "version": "v000007"})
    commands.answer(tmp_path, 1, {"state": commands.DONE})
    assert commands.answered(tmp_path, 1) == {"state": "done"}
    assert commands.pending(tmp_path, 0) is None


def test_a_command_is_withdrawn_once_and_not_after_it_was_answered(tmp_path: Path) -> None:
    reset(tmp_path)
    reset(tmp_path)
    assert commands.withdraw(tmp_path, 1, Disk())
    assert not commands.withdraw(tmp_path, 1, Disk())
    commands.answer(tmp_path, 2, {"state": commands.TAKEN})
    assert not commands.withdraw(tmp_path, 2, Disk())
    assert commands.answered(tmp_path, 2) == {"state": "taken"}


def test_the_message_to_the_operator_names_number_and_digest(tmp_path: Path) -> None:
    command = reset(tmp_path)
    message = f"command 1 written ({command.digest[:8]}): a running learner takes it"
    assert commands.given(command).startswith(message)


def by_the_learner(root: Path) -> list[str]:
    return owner(root).prune(5)


def by_the_operator(root: Path) -> list[str]:
    paper = Paper()
    checkpoints.prune(Store(root), paper.output(as_json=True), keep=5, yes=True)
    retired: list[str] = paper.objects[0]["retired"]
    return retired


@pytest.mark.parametrize("prune", [by_the_learner, by_the_operator])
def test_all_versions_that_waiting_replays_name_are_kept_whoever_prunes(
    tmp_path: Path, prune: Callable[[Path], list[str]]
) -> None:
    saved(tmp_path, *range(1, 10))
    replay(tmp_path, "v000003")
    replay(tmp_path, "v000004")
    assert prune(tmp_path) == ["v000002", "v000005"]


@pytest.mark.parametrize("prune", [by_the_learner, by_the_operator])
def test_a_version_that_only_an_ended_or_damaged_command_names_is_not_kept(
    tmp_path: Path, prune: Callable[[Path], list[str]]
) -> None:
    saved(tmp_path, *range(1, 10))
    commands.withdraw(tmp_path, replay(tmp_path, "v000002").id, Disk())
    commands.answer(tmp_path, replay(tmp_path, "v000003").id, {"state": commands.REFUSED})
    damage(tmp_path, replay(tmp_path, "v000004").id, (b"v000004", b"v000005"))
    commands.take(tmp_path, replay(tmp_path, "v000005").id)
    assert prune(tmp_path) == ["v000002", "v000003", "v000004"]
