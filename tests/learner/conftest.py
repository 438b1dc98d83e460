"""Fixtures that the tests of the store share."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        refused = f"mounting a tmpfs is not permitted here ({mounted.stderr.strip()})"
        pytest.skip(f"NOT RUN: {refused}; injected ENOSPC covers the same calls")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
