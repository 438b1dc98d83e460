"""The `/metrics` route: all series from the start, bounded labels, a valid format."""

from __future__ import annotations

import itertools
import math
import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from serving.app import ROUTES
from serving.telemetry import CHECKS, CODES, RESULTS, STAGES, UNMATCHED
from tests.serving.conftest import Replica


def test_every_label_combination_exists_before_anything_happens() -> None:
    replica = Replica()
    routes = [*(route.path for route in ROUTES), UNMATCHED]
    expected: list[tuple[str, dict[str, str]]] = [
        ("serving_rollbacks_total", {"reason": "operator"}),
        ("freshness_seconds_count", {}),
        ("serving_swap_duration_seconds_count", {}),
        ("serving_batch_candidates_count", {}),
        ("serving_inflight_requests", {}),
    ]
    for route in routes:
        expected.append(("serving_request_duration_seconds_count", {"route": route}))
        labels = [{"route": route, "code": code} for code in CODES]
        expected += [("serving_requests_total", label) for label in labels]
    expected += [("serving_stage_duration_seconds_count", {"stage": stage}) for stage in STAGES]
    expected += [("serving_swaps_total", {"result": result}) for result in RESULTS]
    for check, result in itertools.product(CHECKS, ("ok", "failed")):
        expected.append(("serving_gate_checks_total", {"check": check, "result": result}))
    for name, labels_ in expected:
        assert replica.value(name, **labels_) == 0, (name, labels_)
    assert math.isnan(replica.value("serving_model_event_timestamp_seconds"))


def test_no_series_appears_while_serving(client: TestClient, replica: Replica) -> None:
    def series() -> set[str]:
        families = text_string_to_metric_families(client.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        names = {f"{sample.name}{sorted(sample.labels.items())}" for sample in samples}
        return {name for name in names if "model_info" not in name}

    before = series()
    client.post("/v2/rerank", json={"query": "q", "documents": ["a"]})
    client.post("/v2/rerank", json={"query": 1})
    client.get("/nowhere/at/all")
    client.get("/static/docs.js")
    replica.store.publish(2)
    replica.watcher.poll()
    assert series() == before
    assert not [name for name in before if "_created" in name]


def test_the_served_version_is_in_one_series_only(client: TestClient, replica: Replica) -> None:
    replica.store.publish(2)
    replica.watcher.poll()
    lines = client.get("/metrics").text.splitlines()
    shown = [line for line in lines if line.startswith("steelyard_serving_model_info")]
    assert shown == ['steelyard_serving_model_info{version="v000002"} 1.0']
    assert replica.value("serving_model_event_timestamp_seconds") == 1_795_471_692


def test_answers_are_counted_by_route_and_code(client: TestClient, replica: Replica) -> None:
    client.post("/v2/rerank", json={"query": "q", "documents": ["a"]})
    client.post("/v2/rerank", json={"query": 1})
    client.get("/nowhere")
    assert replica.value("serving_requests_total", route="/v2/rerank", code="200") == 1
    assert replica.value("serving_requests_total", route="/v2/rerank", code="400") == 1
    assert replica.value("serving_requests_total", route="unmatched", code="404") == 1
    assert replica.value("serving_request_duration_seconds_count", route="/v2/rerank") == 2
    assert replica.value("serving_stage_duration_seconds_count", stage="forward") == 1


def test_the_exposition_names_its_format(client: TestClient) -> None:
    content_type = client.get("/metrics").headers["Content-Type"]
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"


def test_promtool_accepts_the_exposition(client: TestClient) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH (apt-get install prometheus)")
    client.post("/v2/rerank", json={"query": "q", "documents": ["a"]})
    command, text = [promtool, "check", "metrics"], client.get("/metrics").content
    checked = subprocess.run(command, input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
