"""What an operator has told the learner to do, as files that stay: a plan with its digest, and how it ended.

An order is written whole under a number that only one can have (a link), and taken by the learner when it starts a term: the manifest that
it links then says `orders_taken`. So an order is pending while no manifest has its number and it was neither refused nor withdrawn; the
learner says `taken` before it links, in the one file that a withdrawal would have to make.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from learner.errors import Corrupt, StoreFailed
from learner.store import blobs
from learner.store.blobs import Disk
from learner.store.manifest import canonical

Kind = Literal["replay", "reset"]

#: How an order may end, or stand.
TAKEN, DONE, REFUSED, WITHDRAWN = "taken", "done", "refused", "withdrawn"

_FOLDER = "control/orders"
_NAME = re.compile(r"([0-9]{6,15})\.json")
_ANSWER = re.compile(r"([0-9]{6,15})\.result\.json")
_MAX_BYTES = 4 << 20


class Command(msgspec.Struct, frozen=True, kw_only=True, rename={"created_us": "created"}):
    """One order: what the operator saw is what is carried out, or nothing is."""

    id: int
    kind: Kind
    created_us: int
    plan: dict[str, Any]  #: as JSON has it: keys are text
    digest: str  #: of the plan


def digest(plan: Mapping[str, Any]) -> str:
    """Return the sha256 of a plan; the operator sees its first eight digits."""
    return hashlib.sha256(canonical(plan)).hexdigest()


def write(
    root: Path, disk: Disk, kind: Kind, plan: Mapping[str, Any], *, now_us: int, after: int = 0
) -> Command:
    """Give an order: whole, durable, under the next number above `after` and all others.

    Raises:
        StoreFailed: it could not be written; if its link was made, the order stands all the same: look before giving it again.
    """
    try:
        _make_folder(root, disk)
        taken = max([after, *_ids(root, disk)])
        while True:
            taken += 1
            order = Command(
                id=taken, kind=kind, created_us=now_us, plan=dict(plan), digest=digest(plan)
            )
            with contextlib.suppress(
                FileExistsError
            ):  # another operator was quicker: the next number
                _write_once(disk, root / _path(taken), canonical(msgspec.to_builtins(order)))
                return order
    except OSError as error:
        raise StoreFailed(step="order", path=root / _FOLDER, cause=error) from error


def given(order: Command, *, shadow: bool = False) -> str:
    """Return what an operator is told of an order just written; `shadow`: it is for a store beside the live one."""
    who = (
        "the shadow's learner takes it when it starts"
        if shadow
        else "a running learner takes it at its next step, a stopped one when it starts"
    )
    return f"order {order.id} written ({order.digest[:8]}): {who}"


def read(root: Path, disk: Disk, order_id: int) -> Command:
    """Return one order.

    Raises:
        FileNotFoundError: there is none of that number.
        Corrupt: it is not what `write` wrote.
    """
    path = _path(order_id)
    data = blobs.read_small(disk, root, path, max_bytes=_MAX_BYTES)
    try:
        order = msgspec.json.decode(data, type=Command)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(path, expected="an order", found=str(error)) from error
    if order.id != order_id or order.digest != digest(order.plan):
        raise Corrupt(
            path,
            expected=f"order {order_id} with digest {digest(order.plan)}",
            found=f"order {order.id} with {order.digest}",
        )
    return order


def newest(root: Path, disk: Disk) -> Command | None:
    """Return the newest order that can be read, None where there is none."""
    for order_id in sorted(_ids(root, disk), reverse=True):
        with contextlib.suppress(Corrupt, FileNotFoundError):
            return read(root, disk, order_id)
    return None


def pending(root: Path, commands_taken: int, disk: Disk | None = None) -> Command | None:
    """Return the oldest order that no manifest contains and that stands; one that is damaged is answered as refused and passed over.

    Args:
        root: of the store.
        commands_taken: what the newest manifest says.
        disk: the file system, or a test's.
    """
    disk = disk or Disk()
    answers = set(_ids(root, disk, _ANSWER))
    for order_id in sorted(_ids(root, disk)):
        if order_id <= commands_taken:
            continue
        try:
            if order_id in answers and (answered(root, order_id, disk) or {}).get("state") != TAKEN:
                continue
            return read(root, disk, order_id)
        except Corrupt as error:
            answer(root, order_id, {"state": REFUSED, "reason": str(error)}, disk)
    return None


def take(root: Path, order_id: int, disk: Disk | None = None) -> bool:
    """Say that an order is being carried out, from where on it cannot be withdrawn; False where it was withdrawn or has ended.

    Raises:
        StoreFailed: it could not be written; the order is pending as before.
        Corrupt: its answer is not one.
    """
    disk = disk or Disk()
    try:
        _write_once(disk, root / _answer_path(order_id), canonical({"state": TAKEN}))
    except FileExistsError:
        return (answered(root, order_id, disk) or {}).get("state") == TAKEN
    except OSError as error:
        raise StoreFailed(step="take", path=root / _FOLDER, cause=error) from error
    return True


def answer(root: Path, order_id: int, result: Mapping[str, Any], disk: Disk | None = None) -> None:
    """Say how an order stands or ended: `state` is taken, done, refused or withdrawn; what else there is, is for people.

    Raises:
        StoreFailed: it could not be written; the answer before stays.
    """
    disk = disk or Disk()
    try:
        blobs.replace(disk, root / _answer_path(order_id), canonical(result))
    except OSError as error:
        raise StoreFailed(step="answer", path=root / _FOLDER, cause=error) from error


def answered(root: Path, order_id: int, disk: Disk | None = None) -> dict[str, Any] | None:
    """Return the answer to an order, None while there is none.

    Raises:
        Corrupt: it is not what `answer` wrote.
    """
    path = _answer_path(order_id)
    try:
        data = blobs.read_small(disk or Disk(), root, path, max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(path, expected="an answer to an order", found=str(error)) from error


def withdraw(root: Path, order_id: int, disk: Disk) -> bool:
    """Take an order back; False where it was answered before.

    Raises:
        StoreFailed: it could not be written; the order stands.
    """
    try:
        _write_once(disk, root / _answer_path(order_id), canonical({"state": WITHDRAWN}))
    except FileExistsError:
        return False
    except OSError as error:
        raise StoreFailed(step="withdraw", path=root / _FOLDER, cause=error) from error
    return True


def _write_once(disk: Disk, path: Path, data: bytes) -> None:
    """Put a whole file where there is none: temporary file, fsync, link, fsync of the folder; FileExistsError if there is one."""
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


def _path(order_id: int) -> str:
    return f"{_FOLDER}/{order_id:06d}.json"


def _answer_path(order_id: int) -> str:
    return f"{_FOLDER}/{order_id:06d}.result.json"
