"""Durable files with digests: temporary file, fsync, rename, fsync of the folder.

Every call that can fail, tear or die goes through `Disk`, so that a test can make it. An fsync that
failed is never repeated on the same file: Linux may have dropped the dirty pages, and the second
call would succeed. The file is thrown away and a new one is written.

A digest is of the bytes that were meant, computed before they are written. torch and safetensors
load only when tensors are converted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from learner.errors import Corrupt

if TYPE_CHECKING:
    import numpy as np
    import torch

FILE_MODE = 0o640
FOLDER_MODE = 0o2750
_CHUNK_BYTES = 4 << 20
_DAMAGE = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "a symbolic link or a file where a folder should be",
    errno.ELOOP: "a symbolic link, or not a regular file",
    errno.EIO: "unreadable: EIO",
}


class Digest(msgspec.Struct, frozen=True, kw_only=True):
    """Identity of a file's content; `size` in bytes."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    size: Annotated[int, msgspec.Meta(ge=0)]

    def __str__(self) -> str:
        """Return ``sha256 <hex>, <size> bytes``."""
        return f"sha256 {self.sha256}, {self.size} bytes"


class Disk:
    """The file system, one method per call that can fail; tests inject faults."""

    def create(self, path: Path) -> int:
        """Return a descriptor of a new file; FileExistsError if there is one.

        Its mode is 0640, whatever the umask.
        """
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, FILE_MODE)
        os.fchmod(fd, FILE_MODE)
        return fd

    def write(self, fd: int, data: memoryview) -> int:
        """Write some of `data`; return how many bytes."""
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        """Make the file's bytes durable."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Rename `source` to `target`, in place of what had that name."""
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """Hard-link `source` as `target`; FileExistsError if taken: the compare-and-swap."""
        target.hardlink_to(source)

    def num_links(self, path: Path) -> int:
        """Return the number of hard links of a file."""
        return path.lstat().st_nlink

    def unlink(self, path: Path) -> None:
        """Remove the name of a file."""
        path.unlink()

    def mkdir(self, path: Path) -> None:
        """Make a folder; FileExistsError if there is one.

        Its mode is 2750, whatever the umask, where the system permits it.
        """
        path.mkdir()
        with contextlib.suppress(PermissionError):
            path.chmod(FOLDER_MODE)

    def rmdir(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()

    def fsync_folder(self, path: Path) -> None:
        """Make the names in a folder durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def listdir(self, path: Path) -> list[str]:
        """Return the names in a folder, sorted."""
        return sorted(entry.name for entry in path.iterdir())

    def free_bytes(self, path: Path) -> int:
        """Return the bytes that an unprivileged process may still write."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def modified_us(self, path: Path) -> int:
        """Return the last write of a file, in microseconds since the Unix epoch."""
        return path.lstat().st_mtime_ns // 1000

    def token(self) -> str:
        """Return a name for a temporary file that no other writer has."""
        return os.urandom(8).hex()

    def open(self, root: Path, relative: str) -> int:
        """Open a regular file for reading; no symbolic link below `root` is followed.

        Raises:
            OSError: ELOOP or ENOTDIR for a link on the way, ENOENT for a missing file.
        """
        *folders, name = relative.split("/")
        folder_flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        here = os.open(root, folder_flags)
        try:
            for folder in folders:
                below = os.open(folder, folder_flags | os.O_NOFOLLOW, dir_fd=here)
                os.close(here)
                here = below
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(name, flags, dir_fd=here)
        finally:
            os.close(here)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.ELOOP, "not a regular file", relative)
        return fd

    def read(self, fd: int, num_bytes: int) -> bytes:
        """Return up to `num_bytes` from the descriptor's position; empty at the end."""
        return os.read(fd, num_bytes)


def digest(data: bytes) -> Digest:
    """Return the digest of `data`."""
    return Digest(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def put(disk: Disk, path: Path, data: bytes) -> Digest:
    """Write a file, its bytes durable before its name; the caller fsyncs the folder.

    Returns:
        The digest of `data`, computed before it was written.

    Raises:
        OSError: the final name is as before; the temporary file is removed where possible.
    """
    meant = digest(data)
    temporary = path.with_name(f".{disk.token()}.tmp")
    try:
        write_new(disk, temporary, data)
        disk.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            disk.unlink(temporary)
        raise
    return meant


def write_new(disk: Disk, path: Path, data: bytes) -> None:
    """Create `path` with the bytes `data` and fsync it; FileExistsError if there is one."""
    fd = disk.create(path)
    try:
        write_all(disk, fd, data)
        disk.fsync(fd)
    finally:
        disk.close(fd)


def write_all(disk: Disk, fd: int, data: bytes) -> None:
    """Write all of `data` at the descriptor's position."""
    rest = memoryview(data)
    while rest:
        rest = rest[disk.write(fd, rest[:_CHUNK_BYTES]) :]


def replace(disk: Disk, path: Path, data: bytes) -> None:
    """Replace a small file atomically and durably."""
    put(disk, path, data)
    disk.fsync_folder(path.parent)


def remove_tree(disk: Disk, folder: Path) -> None:
    """Remove a folder and its content, if it exists."""
    try:
        names = disk.listdir(folder)
    except FileNotFoundError:
        return
    for path in [folder / name for name in names]:
        if path.is_dir() and not path.is_symlink():
            remove_tree(disk, path)
        else:
            disk.unlink(path)
    disk.rmdir(folder)


def read_small(disk: Disk, root: Path, relative: str, *, max_bytes: int) -> bytes:
    """Return a whole file below `root`.

    Raises:
        FileNotFoundError: there is none.
        Corrupt: it is a link, not a regular file, unreadable or larger than `max_bytes`.
    """
    with _reading(disk, root, relative) as fd:
        data = b"".join(_chunks(disk, fd, max_bytes + 1))
    if len(data) > max_bytes:
        raise Corrupt(relative, expected=f"at most {max_bytes} bytes", found="more")
    return data


def read_exact(disk: Disk, root: Path, relative: str, expected: Digest) -> bytes:
    """Return a file's bytes, checked against `expected`.

    Raises:
        Corrupt: they are not, or the file is missing.
    """
    with _reading(disk, root, relative, missing=expected) as fd:
        data = b"".join(_chunks(disk, fd, expected.size + 1))
    _compare(relative, expected, digest(data))
    return data


def check(disk: Disk, root: Path, relative: str, expected: Digest) -> None:
    """Read a file below `root` and compare its digest, in constant memory.

    Raises:
        Corrupt: it is missing, a link, unreadable, or not the bytes that `expected` names.
    """
    sha256, size = hashlib.sha256(), 0
    with _reading(disk, root, relative, missing=expected) as fd:
        for chunk in _chunks(disk, fd, expected.size + 1):
            sha256.update(chunk)
            size += len(chunk)
    _compare(relative, expected, Digest(sha256=sha256.hexdigest(), size=size))


def _compare(relative: str, expected: Digest, found: Digest) -> None:
    if found.size > expected.size:
        raise Corrupt(relative, expected=str(expected), found=f"more than {expected.size} bytes")
    if found != expected:
        raise Corrupt(relative, expected=str(expected), found=str(found))


def _chunks(disk: Disk, fd: int, max_bytes: int) -> Iterator[bytes]:
    while max_bytes > 0 and (chunk := disk.read(fd, min(_CHUNK_BYTES, max_bytes))):
        max_bytes -= len(chunk)
        yield chunk


@contextlib.contextmanager
def _reading(
    disk: Disk, root: Path, relative: str, *, missing: Digest | None = None
) -> Iterator[int]:
    """Open and close a file, with `Corrupt` for damage.

    Other trouble (permission, too many open files) stays an OSError.
    """
    try:
        fd = disk.open(root, relative)
        try:
            yield fd
        finally:
            disk.close(fd)
    except OSError as error:
        if error.errno not in _DAMAGE or (missing is None and error.errno == errno.ENOENT):
            raise
        expected = str(missing or "a regular file")
        raise Corrupt(relative, expected=expected, found=_DAMAGE[error.errno]) from error


def tensors_to_bytes(
    tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str] | None = None
) -> bytes:
    """Encode tensors as a safetensors file, the same bytes for the same tensors.

    They may have any shapes and dtypes, are contiguous and share no storage. `metadata` goes into
    the file's header.
    """
    import safetensors.torch

    return safetensors.torch.save(dict(tensors), dict(metadata) if metadata else None)


def tensors_from_bytes(data: bytes) -> dict[str, torch.Tensor]:
    """Decode a safetensors file whose digest was checked, on the CPU.

    Raises:
        ValueError: it is none.
    """
    import safetensors.torch

    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error


def arrays_to_bytes(arrays: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """Encode arrays of any shapes and dtypes as a safetensors file, without torch."""
    import numpy as np
    import safetensors.numpy

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return safetensors.numpy.save(contiguous)


def arrays_from_bytes(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """Decode a safetensors file whose digest was checked, without torch.

    Raises:
        ValueError: it is none.
    """
    import safetensors.numpy

    try:
        return safetensors.numpy.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
