"""Roles as child processes, with the command line that a user would type."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from deploy.errors import DeployError
from deploy.process.child import spawn

_COMMAND = "from deploy.cli.app import main; main()"


class RoleProcess:
    """A child process that runs one role, with its log in a file; it ends when we do."""

    def __init__(self, name: str, settings: Path, log: Path) -> None:
        """Start `steelyard NAME --config SETTINGS`."""
        self.name = name
        self._log = log
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-c", _COMMAND, name, "--config", str(settings)]
        with log.open("wb") as output:
            self._process = spawn(command, output, env=environment)

    def check(self) -> None:
        """Raise if the role has ended.

        Raises:
            DeployError: holds the end of its log.
        """
        code = self._process.poll()
        if code is not None:
            raise DeployError(
                f"the role {self.name} ended by itself (exit code {code}). Its log ends:\n"
                f"{self.log_tail()}"
            )

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def close(self, *, seconds: float = 60.0) -> None:
        """Ask the role to end; kill it after so long. Safe to repeat."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
