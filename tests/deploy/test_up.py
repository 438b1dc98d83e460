"""Several roles in one process: the end of one ends all, and its error is reported."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

COMMAND = [sys.executable, "-c", "from deploy.cli.app import main; main()", "up"]


def up(root: Path, *more: str, role: str = "learn,serve") -> subprocess.Popen[str]:
    sets = [
        f"store.root={root}",
        "serving.port=0",
        "observability.metrics_port=0",
        "observability.log_format=json",
        *more,
    ]
    options = [part for one in sets for part in ("--set", one)]
    return subprocess.Popen(
        [*COMMAND, "--role", role, *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_when_one_role_cannot_start_the_other_ends_too_and_the_error_is_one_sentence(
    tmp_path: Path,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        process = up(
            tmp_path,
            f"kafka.bootstrap_servers={where}",
            "kafka.connect_timeout=1s",
            "learner.model=random:1x32",
        )
        out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err  # retriable: start it again
    assert f"no Kafka broker answered at {where}" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_the_roles_in_good_order(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = up(tmp_path, role="serve")
    assert process.stderr is not None
    lines = map(json.loads, process.stderr)
    url = next(line["url"] for line in lines if line["event"] == "listening")
    assert next(line["event"] for line in lines if "startup complete" in line["event"])
    assert httpx2.get(f"{url}/livez").status_code == 200
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
