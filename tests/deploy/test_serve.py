"""The role `serve`: takes its port, answers, and ends in good order by a call or a signal."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from threading import Thread

import httpx2
import pytest

from deploy.errors import PortTaken
from deploy.roles.serve import ServingRole
from deploy.settings.config import ServingConfig
from deploy.settings.tree import Settings
from learner.config import StoreConfig


def settings(root: Path, port: int = 0) -> Settings:
    return replace(Settings(), serving=ServingConfig(port=port), store=StoreConfig(root=root))


@contextmanager
def running(role: ServingRole) -> Iterator[str]:
    thread = Thread(target=role.run)
    thread.start()
    try:
        yield role.url
    finally:
        role.stop()
        thread.join(30)
        assert not thread.is_alive()


def test_before_the_first_version_it_lives_and_is_not_ready(tmp_path: Path) -> None:
    with running(ServingRole(settings(tmp_path))) as url, httpx2.Client(base_url=url) as client:
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 503
        metrics = client.get("/metrics").text
        assert "steelyard_serving_requests_total" in metrics
        assert "process_resident_memory_bytes" in metrics
        assert "server" not in client.get("/livez").headers


def test_its_log_info_and_metrics_name_engine_precision_and_version(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = settings(tmp_path)
    asked = replace(asked, serving=replace(asked.serving, precision="bfloat16"))
    expected = {"engine": "torch", "precision": "bfloat16", "engine_version": version("torch")}
    caplog.set_level("INFO")
    with running(ServingRole(asked)) as url, httpx2.Client(base_url=url) as client:
        info, metrics = client.get("/info").json(), client.get("/metrics").text
    line = next(record for record in caplog.records if record.getMessage() == "listening")
    assert expected.items() <= vars(line).items()
    assert expected.items() <= info.items()
    shown = [text for text in metrics.splitlines() if text.startswith("steelyard_serving_engine")]
    labels = ",".join(f'{name}="{value}"' for name, value in sorted(expected.items()))
    assert shown == [f"steelyard_serving_engine_info{{{labels}}} 1.0"]


def test_a_port_in_use_is_one_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            PortTaken,
            match=rf"cannot listen on 127\.0\.0\.1:{port} \(Address already.*set serving\.port",
        ):
            ServingRole(settings(tmp_path, port))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_its_exit_code(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    command = [
        sys.executable,
        "-c",
        "from deploy.cli.app import main; main()",
        "serve",
        "--set",
        "serving.port=0",
        "--set",
        f"store.root={tmp_path}",
    ]
    process = subprocess.Popen(
        [*command, "--set", "observability.log_format=json"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    url = next(
        line["url"] for line in map(json.loads, process.stderr) if line["event"] == "listening"
    )
    assert next(
        line["event"]
        for line in map(json.loads, process.stderr)
        if "startup complete" in line["event"]
    )
    assert httpx2.get(f"{url}/livez").status_code == 200
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
