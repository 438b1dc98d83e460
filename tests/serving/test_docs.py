"""The documents: an OpenAPI description that is true, and a page that reads it without a network."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvicorn
from starlette.testclient import TestClient

from serving.wire.documents import STATIC
from tests.serving.conftest import Replica


def test_every_documented_route_answers_and_its_examples_are_good(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method == "get":
                assert client.get(path).status_code == 200, path
                continue
            for example in operation["requestBody"]["content"]["application/json"][
                "examples"
            ].values():
                answer = client.post(path, json=example["value"])
                assert answer.status_code == 200, answer.text
            assert set(operation["responses"]) == {
                "200",
                "400",
                "404",
                "413",
                "415",
                "424",
                "429",
                "503",
                "504",
            }


def test_every_reference_in_the_document_resolves(client: TestClient) -> None:
    text = client.get("/openapi.json").text
    names = json.loads(text)["components"]["schemas"].keys()
    references = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert references <= names
    assert {"RerankRequest", "TeiRequest", "ScoreRequest", "Problem"} <= references


def test_the_page_asks_nothing_of_other_hosts(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self';")
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert links
    for link in links:
        assert urlsplit(link).netloc == "", link
        if not link.startswith("data:"):
            assert client.get(f"/{link}").status_code == 200, link


def test_vendored_files_are_the_ones_that_their_origin_names() -> None:
    lines = [
        line.split()
        for line in (STATIC / "README").read_text().splitlines()
        if line.startswith("sha256:")
    ]
    named = {name: digest for _, digest, name in lines}
    assert len(named) == 2
    for name, digest in named.items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest, name


def test_files_outside_the_static_folder_are_not_served(client: TestClient) -> None:
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/static/"):
        assert client.get(path).status_code == 404, path


def asked_by_the_page(net_log: str, address: str) -> set[str]:
    """Return the addresses that the page asked for; what the browser asks on its own account has no page as its initiator."""
    events = json.loads(net_log)["events"]
    return {
        event["params"]["url"]
        for event in events
        if event.get("params", {}).get("initiator") == address
    }


def test_a_browser_shows_the_page_and_asks_only_loopback(replica: Replica, tmp_path: Path) -> None:
    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if chromium is None:
        pytest.skip(
            "no chromium on PATH (apt-get install chromium): the page was not opened in a browser"
        )
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(replica.app, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    net_log = tmp_path / "net.json"
    try:
        shown = subprocess.run(
            [
                *(
                    chromium,
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    f"--user-data-dir={tmp_path / 'profile'}",
                ),
                *(
                    "--no-first-run",
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--disable-sync",
                    "--no-proxy-server",
                ),
                *(
                    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
                    f"--log-net-log={net_log}",
                ),
                *("--virtual-time-budget=20000", "--dump-dom", f"{address}/docs"),
            ],
            capture_output=True,
            check=True,
            text=True,
            timeout=120,
        )
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
    assert "/v2/rerank" in shown.stdout
    assert "Order documents" in shown.stdout
    asked = asked_by_the_page(net_log.read_text(), address)
    assert {urlsplit(url).path for url in asked} >= {
        "/openapi.json",
        "/static/swagger-ui-bundle.js",
        "/static/swagger-ui.css",
    }
    assert {
        url for url in asked if not url.startswith(f"{address}/") and not url.startswith("data:")
    } == set()
