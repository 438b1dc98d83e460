"""Processes of the crash benchmark: roles as children, and a client that checks every answer."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.process.child import spawn

COMMAND = "from deploy.cli.app import main; main()"


class Role:
    """A child process that runs one role; it can be started again after each end."""

    def __init__(self, name: str, settings: Path, log: Path) -> None:
        """Start nothing yet."""
        self.name, self._settings, self._log = name, settings, log
        self.num_lives = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Spawn it; its output is appended to the log."""
        self.num_lives += 1
        with self._log.open("ab") as output:
            command = [sys.executable, "-c", COMMAND, self.name, "--config", str(self._settings)]
            self._process = spawn(command, output)

    def ended(self) -> int | None:
        """Return its exit code, None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def kill(self) -> None:
        """SIGKILL, to its whole group."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def end(self, seconds: float) -> int:
        """SIGTERM; return the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(seconds)

    def log_tail(self) -> str:
        """Return the last lines of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])


class Asker(threading.Thread):
    """A client that sends one request after the other, and checks every answer."""

    REQUEST = json.dumps(
        {
            "query": "shoes 7",
            "documents": [
                {"id": f"SKU-{n:03d}", "text": f"text of SKU-{n:03d}"} for n in range(12)
            ],
        }
    )

    def __init__(self, port: int, root: Path) -> None:
        """Ask nothing before `start`."""
        super().__init__(name="asker", daemon=True)
        self._port, self._root = port, root
        self._stopped = threading.Event()
        self.life = 0  #: of the server; another one means that it was killed
        self.answered_life = 0  #: the last one that has answered
        self.num_answers = 0
        self.failures: list[str] = []
        self.scores: dict[str, list[float]] = {}
        self.mixed: set[str] = set()

    def run(self) -> None:
        """Ask until closed."""
        while not self._stopped.wait(0.02):
            life = self.life
            try:
                status, data = self._ask()
            except (OSError, http.client.HTTPException) as error:
                if life == self.life == self.answered_life:
                    self.failures.append(f"{type(error).__name__}: {error}")
                continue
            if status == 200:
                self.answered_life = max(self.answered_life, life)
                self._check(json.loads(data))
            elif status != 503 or life == self.answered_life:
                self.failures.append(f"{status} {data[:200]!r}")

    def close(self) -> None:
        """End after the answer at hand."""
        self._stopped.set()
        self.join()

    def _ask(self) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            headers = {"content-type": "application/json"}
            connection.request("POST", "/v2/rerank", self.REQUEST, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _check(self, answer: Mapping[str, Any]) -> None:
        self.num_answers += 1
        version = answer["model"]
        if not (self._root / "man" / f"M-{int(version[1:]):08d}").exists():
            self.failures.append(f"an answer of {version}, which is not in the store")
        scores = [0.0] * len(answer["results"])
        for row in answer["results"]:
            scores[row["index"]] = row["relevance_score"]
        if self.scores.setdefault(version, scores) != scores:
            self.mixed.add(version)
