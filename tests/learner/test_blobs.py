"""Durable files are whole, have the right mode, and follow no link."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.errors import Corrupt
from learner.store import blobs
from learner.store.blobs import Disk
from tests.fakes.disk import Fail, FaultyDisk, on


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        Disk().mkdir(tmp_path / "folder")
        blobs.put(Disk(), tmp_path / "folder" / "file", b"bytes")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o2750
    assert stat.S_IMODE((tmp_path / "folder" / "file").stat().st_mode) == 0o640


def test_an_fsync_that_failed_is_not_repeated_on_the_same_file(tmp_path: Path) -> None:
    disk = FaultyDisk(on("fsync", 0, Fail(errno.EIO)))
    with pytest.raises(OSError, match="injected"):
        blobs.put(disk, tmp_path / "file", b"bytes")
    assert list(tmp_path.iterdir()) == []
    blobs.put(disk, tmp_path / "file", b"bytes")
    first, second = [call.path for call in disk.calls if call.op == "fsync"]
    assert first != second
    assert (tmp_path / "file").read_bytes() == b"bytes"


def test_a_file_keeps_its_old_bytes_when_the_new_ones_cannot_be_written(tmp_path: Path) -> None:
    blobs.put(Disk(), tmp_path / "file", b"old")
    for op in ("create", "write", "fsync", "rename"):
        with pytest.raises(OSError, match="injected"):
            blobs.replace(FaultyDisk(on(op, 0, Fail(errno.ENOSPC))), tmp_path / "file", b"new")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


class ShortWrites(Disk):
    def write(self, fd: int, data: memoryview) -> int:
        return super().write(fd, data[:7])


@given(data=st.binary(max_size=300))
def test_short_writes_lose_nothing(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("short")
    digest = blobs.put(ShortWrites(), folder / "file", data)
    assert blobs.read_exact(Disk(), folder, "file", digest) == data


def test_a_link_in_any_part_of_a_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    digest = blobs.put(Disk(), tmp_path / "outside" / "file", b"bytes")
    root = tmp_path / "root"
    root.mkdir()
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "file").symlink_to(tmp_path / "outside" / "file")
    os.mkfifo(root / "pipe")
    for path in ("folder/file", "file", "pipe"):
        with pytest.raises(Corrupt, match=path):
            blobs.check(Disk(), root, path, digest)


def test_trouble_that_is_no_damage_is_not_called_corrupt(tmp_path: Path) -> None:
    digest = blobs.put(Disk(), tmp_path / "file", b"bytes")
    with pytest.raises(OSError, match="injected") as raised:
        blobs.check(FaultyDisk(on("open", 0, Fail(errno.EMFILE))), tmp_path, "file", digest)
    assert raised.value.errno == errno.EMFILE
    with pytest.raises(Corrupt, match="EIO"):
        blobs.check(FaultyDisk(on("read", 0, Fail(errno.EIO))), tmp_path, "file", digest)


def test_tensors_and_arrays_come_back_as_they_were_and_give_the_same_bytes_in_any_order() -> None:
    transposed = np.arange(6, dtype=np.float64).reshape(2, 3).T
    arrays = {"b": transposed, "a": np.array([1, 2], dtype=np.int64)}
    data = blobs.arrays_to_bytes(arrays)
    assert data == blobs.arrays_to_bytes(dict(reversed(arrays.items())))
    back = blobs.arrays_from_bytes(data)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype

    torch = pytest.importorskip("torch")
    tensors = {"w": torch.tensor([[1.5, -2.0]]), "n": torch.tensor([3], dtype=torch.uint8)}
    data = blobs.tensors_to_bytes(tensors)
    assert data == blobs.tensors_to_bytes(dict(reversed(tensors.items())))
    for name, tensor in blobs.tensors_from_bytes(data).items():
        assert torch.equal(tensor, tensors[name])


def test_the_door_loads_no_torch() -> None:
    imports = "import sys, learner.artifact, learner.store.checkpoint"
    heavy = "('torch', 'transformers', 'safetensors')"
    code = f"{imports}; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
