"""A contender as a child process: a line in, a JSON object out, until it is closed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Child:
    """A module of benchmarks that answers line by line."""

    def __init__(
        self, name: str, module: str, arguments: Sequence[str], *, peers: Path | None = None
    ) -> None:
        """Start it; it prepares on its own.

        Args:
            name: for errors.
            module: that is run.
            arguments: of its command line.
            peers: folder with libraries that come before those of this environment.
        """
        self.name = name
        environment = dict(os.environ)
        if peers is not None:
            environment["PYTHONPATH"] = os.pathsep.join([str(peers), str(Path.cwd())])
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, line: str | int) -> dict[str, Any]:
        """Send a line; return the answer.

        Raises:
            SystemExit: it has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SystemExit(f"{self.name} ended with code {self._process.wait()}") from None
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name} ended with code {self._process.wait()}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        self._process.communicate()
