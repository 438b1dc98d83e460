"""The documentation: a true OpenAPI document, and a page that shows it offline."""

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

DOCUMENTED = {"200", "400", "404", "413", "415", "424", "429", "503", "504"}


def test_every_documented_route_answers_and_its_examples_are_good(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method == "get":
                assert client.get(path).status_code == 200, path
                continue
            content = operation["requestBody"]["content"]["application/json"]
            for example in content["examples"].values():
                answer = client.post(path, json=example["value"])
                assert answer.status_code == 200, answer.text
            assert set(operation["responses"]) == DOCUMENTED


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
    origins = (STATIC / "README").read_text()
    lines = re.findall(r"^sha256: (\w+) +(.+)$", origins, re.MULTILINE)
    named = {name: digest for digest, name in lines}
    assert len(named) == 2
    for name, digest in named.items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest, name


def test_files_outside_the_static_folder_are_not_served(client: TestClient) -> None:
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/static/"):
        assert client.get(path).status_code == 404, path


BROWSER_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--virtual-time-budget=20000",
)


def asked_by_the_page(net_log: str, address: str) -> set[str]:
    """Return the addresses that the page asked for.

    Requests that the browser makes on its own account have no page as their initiator.
    """
    params = [event.get("params", {}) for event in json.loads(net_log)["events"]]
    return {each["url"] for each in params if each.get("initiator") == address}


def test_a_browser_shows_the_page_and_asks_only_loopback(replica: Replica, tmp_path: Path) -> None:
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((found for name in names if (found := shutil.which(name))), None)
    if chromium is None:
        pytest.skip("no chromium on PATH (apt-get install chromium): the page was not opened")
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(replica.app, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    net_log = tmp_path / "net.json"
    command = [chromium, *BROWSER_OPTIONS]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={net_log}"]
    command += ["--dump-dom", f"{address}/docs"]
    try:
        shown = subprocess.run(command, capture_output=True, check=True, text=True, timeout=120)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
    assert "/v2/rerank" in shown.stdout
    assert "Order documents" in shown.stdout
    asked = asked_by_the_page(net_log.read_text(), address)
    needed = {"/openapi.json", "/static/swagger-ui-bundle.js", "/static/swagger-ui.css"}
    assert {urlsplit(url).path for url in asked} >= needed
    own = (f"{address}/", "data:")
    assert {url for url in asked if not url.startswith(own)} == set()
