"""Exclusions: a file of ids to leave out becomes keyed hashes before anything of it is written."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import msgspec

from consumers.exclusion import ExclusionList, keyed
from deploy.errors import UsageError
from learner.errors import Corrupt, StoreFailed
from learner.store import blobs
from learner.store.blobs import Disk
from weighting.provenance import Slice

_KEY = "control/exclusions.key"
_FOLDER = "control/exclusions"
_SLICE = re.compile(r"(.+)\[([0-9]+)\]@([0-9]+)-([0-9]+)")
_KEY_BYTES = 32
_MAX_BYTES = 64 << 20


def read_file(path: Path, key: bytes, before: ExclusionList | None = None) -> ExclusionList:
    """Return the list of a file.

    One `client_id:X`, `event_id:Y` or `topic[p]@start-end` (the end is kept) a line; # begins a
    comment.

    Args:
        path: the file.
        key: of the hashes.
        before: the list in force; what it has stays left out.

    Raises:
        UsageError: it cannot be read; names the line and what was expected.
    """
    before = before or ExclusionList()
    clients, events, slices = set(before.client_ids), set(before.event_ids), set(before.slices)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--exclude: {path}: {reason}") from error
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        kind, _, name = text.partition(":")
        if kind == "client_id" and name:
            clients.add(keyed(key, name))
        elif kind == "event_id" and name:
            events.add(keyed(key, name))
        elif (found_slice := _parse_slice(text)) is not None:
            slices.add(found_slice)
        else:
            raise UsageError(
                f"--exclude: {path}:{number}: expected client_id:ID, event_id:ID or "
                "topic[partition]@start-end"
            )
    found = ExclusionList(
        client_ids=tuple(sorted(clients)),
        event_ids=tuple(sorted(events)),
        slices=tuple(sorted(slices)),
    )
    if not found.num:
        raise UsageError(f"--exclude: {path}: no line in it")
    return found


def key_of(root: Path, disk: Disk) -> bytes:
    """Return the key of this store's hashes, made at the first call.

    Raises:
        Corrupt: the file is not one; without the key, the lists in force are useless.
        StoreFailed: it could not be made.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            return _key(root, disk)
        temporary = root / f"control/.{disk.token()}.tmp"
        with contextlib.suppress(FileExistsError):
            disk.mkdir(root / "control")
        blobs.write_new(disk, temporary, os.urandom(_KEY_BYTES))
        try:
            with contextlib.suppress(FileExistsError):  # another operator was quicker
                disk.link(temporary, root / _KEY)
        finally:
            disk.unlink(temporary)
        disk.fsync_folder(root / "control")
        return _key(root, disk)
    except OSError as error:
        raise StoreFailed(step="exclusions", path=root / _KEY, cause=error) from error


def write(root: Path, disk: Disk, found: ExclusionList) -> str:
    """Keep a list under its sha256; return that, as manifests name it.

    Raises:
        StoreFailed: it could not be written.
    """
    name = found.digest()
    try:
        with contextlib.suppress(FileExistsError):
            disk.mkdir(root / _FOLDER)
            disk.fsync_folder(root / "control")
        data = msgspec.json.encode(found, order="sorted")
        blobs.replace(disk, root / _FOLDER / f"{name}.json", data)
    except OSError as error:
        raise StoreFailed(step="exclusions", path=root / _FOLDER, cause=error) from error
    return name


def load(root: Path, disk: Disk, name: str) -> ExclusionList:
    """Return the list of that sha256.

    Raises:
        Corrupt: it is missing, or another one.
    """
    path = f"{_FOLDER}/{name}.json"
    if not re.fullmatch(r"[0-9a-f]{64}", name):
        raise Corrupt(path, expected="a sha256", found=repr(name))
    try:
        data = blobs.read_small(disk, root, path, max_bytes=_MAX_BYTES)
        found = msgspec.json.decode(data, type=ExclusionList)
    except FileNotFoundError as error:
        expected = "the list of exclusions that a manifest names"
        raise Corrupt(path, expected=expected, found="no such file") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corrupt(path, expected="a list of exclusions", found=str(error)) from error
    if found.digest() != name:
        raise Corrupt(path, expected=f"sha256 {name}", found=f"sha256 {found.digest()}")
    return found


def _parse_slice(text: str) -> Slice | None:
    match = _SLICE.fullmatch(text)
    if match is None or int(match[3]) >= int(match[4]):
        return None
    return Slice(match[1], int(match[2]), int(match[3]), int(match[4]), 0, 0)


def _key(root: Path, disk: Disk) -> bytes:
    key = blobs.read_small(disk, root, _KEY, max_bytes=1024)
    if len(key) != _KEY_BYTES:
        raise Corrupt(_KEY, expected=f"{_KEY_BYTES} bytes", found=f"{len(key)}")
    return key
