"""Folders of peers: installed once from a pinned list, beside this environment."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path


def installed(name: str) -> Path:
    """Return the folder with the peers of ``benchmarks/peers/NAME.txt``; install them if need be.

    The folder is named by the list's digest, so that another list is another folder. It goes on a
    child's ``PYTHONPATH``: what this environment has already comes from the folder too.

    Raises:
        SystemExit: pip could not install them; its own message was printed.
    """
    pinned = Path(__file__).with_name(f"{name}.txt")
    digest = hashlib.sha256(pinned.read_bytes() + sys.version.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "steelyard" / "peers" / f"{name}-{digest}"
    if not folder.is_dir():
        partial = folder.with_suffix(f".{os.getpid()}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command = [*pip, "--no-deps", "--target", str(partial), "--requirement", str(pinned)]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"pip could not install the peers of {pinned.name}")
        partial.rename(folder)
    return folder
