"""Operator commands: plans that the learner carries out, and their results.

They are files that stay. A command is written whole under a number that only one can have (a link),
and taken by the learner when it starts a term: the manifest that it links then says `orders_taken`.
So a command is waiting while no manifest has its number and it was neither refused nor withdrawn.
The learner answers `taken` before it links, in the one file that a withdrawal would have to make.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from learner.errors import Corrupt, StoreFailed
from learner.store import blobs
from learner.store.blobs import Disk
from learner.store.manifest import canonical

Kind = Literal["replay", "reset"]

#: States of an answer.
TAKEN, DONE, REFUSED, WITHDRAWN = "taken", "done", "refused", "withdrawn"

_FOLDER = "control/orders"
_NAME = re.compile(r"([0-9]{6,15})\.json")
_ANSWER = re.compile(r"([0-9]{6,15})\.result\.json")
_MAX_BYTES = 4 << 20


class Command(msgspec.Struct, frozen=True, kw_only=True, rename={"created_us": "created"}):
    """Operator's command, carried out as it was shown or not at all.

    Attributes:
        id: number, from 1.
        kind: replay or reset.
        created_us: microseconds since the Unix epoch.
        plan: as JSON has it: keys are text.
        digest: of the plan.
    """

    id: int
    kind: Kind
    created_us: int
    plan: dict[str, Any]
    digest: str


def digest(plan: Mapping[str, Any]) -> str:
    """Return the sha256 of a plan."""
    return hashlib.sha256(canonical(plan)).hexdigest()


def write(
    root: Path, disk: Disk, kind: Kind, plan: Mapping[str, Any], *, now_us: int, after: int = 0
) -> Command:
    """Write a command, whole and durable, under the next free number.

    That is above `after`, and above those of all other commands.

    Raises:
        StoreFailed: it could not be written; if its link was made, the command stands all the
            same: look before giving it again.
    """
    try:
        _make_folder(root, disk)
        newest_id = max([after, *_ids(root, disk)])
        while True:
            newest_id += 1
            command = Command(
                id=newest_id, kind=kind, created_us=now_us, plan=dict(plan), digest=digest(plan)
            )
            data = canonical(msgspec.to_builtins(command))
            with contextlib.suppress(FileExistsError):  # another operator was quicker
                _write_once(disk, root / _path(newest_id), data)
                return command
    except OSError as error:
        raise StoreFailed(step="command", path=root / _FOLDER, cause=error) from error


def given(command: Command, *, shadow: bool = False) -> str:
    """Return the message to an operator about a command just written.

    Args:
        command: that was written.
        shadow: it is for a store beside the live one.
    """
    who = "a running learner takes it at its next step, a stopped one when it starts"
    if shadow:
        who = "the shadow's learner takes it when it starts"
    return f"command {command.id} written ({command.digest[:8]}): {who}"


def read(root: Path, disk: Disk, command_id: int) -> Command:
    """Return one command.

    Raises:
        FileNotFoundError: there is none of that number.
        Corrupt: it is not what `write` wrote.
    """
    path = _path(command_id)
    data = blobs.read_small(disk, root, path, max_bytes=_MAX_BYTES)
    try:
        command = msgspec.json.decode(data, type=Command)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(path, expected="a command", found=str(error)) from error
    if command.id != command_id or command.digest != digest(command.plan):
        raise Corrupt(
            path,
            expected=f"command {command_id} with digest {digest(command.plan)}",
            found=f"command {command.id} with {command.digest}",
        )
    return command


def newest(root: Path, disk: Disk) -> Command | None:
    """Return the newest command that can be read."""
    for command_id in sorted(_ids(root, disk), reverse=True):
        with contextlib.suppress(Corrupt, FileNotFoundError):
            return read(root, disk, command_id)
    return None


def waiting(root: Path, commands_taken: int, disk: Disk | None = None) -> list[Command]:
    """Return the commands still to be carried out, oldest first.

    Nothing is changed. A damaged one is left out: it will be refused.

    Args:
        root: of the store.
        commands_taken: number of the newest command that a manifest contains.
        disk: the file system, or a test's.
    """
    read_ones = _unanswered(root, commands_taken, disk or Disk())
    return [found for _, found in read_ones if isinstance(found, Command)]


def pending(root: Path, commands_taken: int, disk: Disk | None = None) -> Command | None:
    """Return the oldest waiting command.

    Damaged ones before it are answered as refused.

    Args:
        root: of the store.
        commands_taken: number of the newest command that a manifest contains.
        disk: the file system, or a test's.
    """
    disk = disk or Disk()
    for command_id, found in _unanswered(root, commands_taken, disk):
        if isinstance(found, Command):
            return found
        answer(root, command_id, {"state": REFUSED, "reason": str(found)}, disk)
    return None


def take(root: Path, command_id: int, disk: Disk | None = None) -> bool:
    """Take a command; False where it has ended.

    From here on it cannot be withdrawn.

    Raises:
        StoreFailed: it could not be written; the command is waiting as before.
        Corrupt: its answer is not one.
    """
    disk = disk or Disk()
    try:
        _write_once(disk, root / _answer_path(command_id), canonical({"state": TAKEN}))
    except FileExistsError:
        return _state(root, command_id, disk) == TAKEN
    except OSError as error:
        raise StoreFailed(step="take", path=root / _FOLDER, cause=error) from error
    return True


def answer(
    root: Path, command_id: int, result: Mapping[str, Any], disk: Disk | None = None
) -> None:
    """Write the answer to a command in place of the one before.

    Args:
        root: of the store.
        command_id: number of the command.
        result: `state` is taken, done, refused or withdrawn; all else is for people.
        disk: the file system, or a test's.

    Raises:
        StoreFailed: it could not be written; the answer before stays.
    """
    disk = disk or Disk()
    try:
        blobs.replace(disk, root / _answer_path(command_id), canonical(result))
    except OSError as error:
        raise StoreFailed(step="answer", path=root / _FOLDER, cause=error) from error


def answered(root: Path, command_id: int, disk: Disk | None = None) -> dict[str, Any] | None:
    """Return the answer to a command, None while there is none.

    Raises:
        Corrupt: it is not what `answer` wrote.
    """
    path = _answer_path(command_id)
    try:
        data = blobs.read_small(disk or Disk(), root, path, max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(path, expected="an answer to a command", found=str(error)) from error


def withdraw(root: Path, command_id: int, disk: Disk) -> bool:
    """Withdraw a command; False where it was answered before.

    Raises:
        StoreFailed: it could not be written; the command stands.
    """
    try:
        _write_once(disk, root / _answer_path(command_id), canonical({"state": WITHDRAWN}))
    except FileExistsError:
        return False
    except OSError as error:
        raise StoreFailed(step="withdraw", path=root / _FOLDER, cause=error) from error
    return True


def _unanswered(
    root: Path, commands_taken: int, disk: Disk
) -> Iterator[tuple[int, Command | Corrupt]]:
    """Yield number and command, or its damage, of those not ended."""
    answers = set(_ids(root, disk, _ANSWER))
    for command_id in sorted(_ids(root, disk)):
        if command_id <= commands_taken:
            continue
        try:
            if command_id in answers and _state(root, command_id, disk) != TAKEN:
                continue
            yield command_id, read(root, disk, command_id)
        except Corrupt as error:
            yield command_id, error


def _state(root: Path, command_id: int, disk: Disk) -> str | None:
    return (answered(root, command_id, disk) or {}).get("state")


def _write_once(disk: Disk, path: Path, data: bytes) -> None:
    """Create a whole file: temporary file, fsync, link, fsync of the folder.

    Raises:
        FileExistsError: there is one of that name.
    """
    temporary = path.with_name(f".{disk.token()}.tmp")
    blobs.write_new(disk, temporary, data)
    try:
        disk.link(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            disk.unlink(temporary)
    disk.fsync_folder(path.parent)


def _make_folder(root: Path, disk: Disk) -> None:
    for folder in (root / "control", root / _FOLDER):
        with contextlib.suppress(FileExistsError):
            disk.mkdir(folder)
            disk.fsync_folder(folder.parent)


def _ids(root: Path, disk: Disk, pattern: re.Pattern[str] = _NAME) -> list[int]:
    try:
        names = disk.listdir(root / _FOLDER)
    except FileNotFoundError:
        return []
    return [int(match[1]) for name in names if (match := pattern.fullmatch(name))]


def _path(command_id: int) -> str:
    return f"{_FOLDER}/{command_id:06d}.json"


def _answer_path(command_id: int) -> str:
    return f"{_FOLDER}/{command_id:06d}.result.json"
