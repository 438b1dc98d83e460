"""What `/metrics` shows: every series from the start, bounded labels, a format that promtool accepts."""

from __future__ import annotations

import math
import shutil
import subprocess
from typing import Any

import pytest
from litestar.testing import TestClient
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from serving.telemetry import CHECKS, CODES, RESULTS, ROUTES, STAGES, Telemetry
from tests.serving.conftest import House


def test_every_label_combination_exists_before_anything_happens() -> None:
    registry = CollectorRegistry()
    Telemetry(registry)
    expected: list[tuple[str, dict[str, str]]] = [
        *(
            ("serving_requests_total", {"route": route, "code": code})
            for route in ROUTES
            for code in CODES
        ),
        *(("serving_request_duration_seconds_count", {"route": route}) for route in ROUTES),
        *(("serving_stage_duration_seconds_count", {"stage": stage}) for stage in STAGES),
        *(("serving_swaps_total", {"result": result}) for result in RESULTS),
        *(
            ("serving_gate_checks_total", {"check": check, "result": result})
            for check in CHECKS
            for result in ("ok", "failed")
        ),
        ("serving_rollbacks_total", {"reason": "operator"}),
        *(
            (name, {})
            for name in (
                "freshness_seconds_count",
                "serving_swap_duration_seconds_count",
                "serving_batch_candidates_count",
            )
        ),
        ("serving_inflight_requests", {}),
    ]
    for name, labels in expected:
        assert registry.get_sample_value(f"steelyard_{name}", labels) == 0, (name, labels)
    assert math.isnan(
        registry.get_sample_value("steelyard_serving_model_event_timestamp_seconds") or 0.0
    )


def test_no_series_appears_while_serving(client: TestClient[Any], house: House) -> None:
    def series() -> set[str]:
        families = text_string_to_metric_families(client.get("/metrics").text)
        return {
            f"{sample.name}{sorted(sample.labels.items())}"
            for family in families
            for sample in family.samples
            if "model_info" not in family.name
        }

    before = series()
    client.post("/v2/rerank", json={"query": "q", "documents": ["a"]})
    client.post("/v2/rerank", json={"query": 1})
    client.get("/nowhere/at/all")
    client.get("/static/docs.js")
    house.store.publish(2)
    house.watcher.poll()
    assert series() == before
    assert not [name for name in before if "_created" in name]


def test_the_served_version_is_in_one_series_only(client: TestClient[Any], house: House) -> None:
    house.store.publish(2)
    house.watcher.poll()
    lines = [
        line
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("steelyard_serving_model_info")
    ]
    assert lines == ['steelyard_serving_model_info{version="v000002"} 1.0']
    assert house.value("serving_model_event_timestamp_seconds") == 1_795_471_692


def test_answers_are_counted_by_route_and_code(client: TestClient[Any], house: House) -> None:
    client.post("/v2/rerank", json={"query": "q", "documents": ["a"]})
    client.post("/v2/rerank", json={"query": 1})
    client.get("/nowhere")
    assert house.value("serving_requests_total", route="/v2/rerank", code="200") == 1
    assert house.value("serving_requests_total", route="/v2/rerank", code="400") == 1
    assert house.value("serving_requests_total", route="unmatched", code="404") == 1
    assert house.value("serving_request_duration_seconds_count", route="/v2/rerank") == 2
    assert house.value("serving_stage_duration_seconds_count", stage="forward") == 1


def test_the_exposition_says_its_format(client: TestClient[Any]) -> None:
    assert (
        client.get("/metrics").headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    )


def test_promtool_finds_nothing_to_say(client: TestClient[Any]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH (apt-get install prometheus)")
    client.post("/v2/rerank", json={"query": "q", "documents": ["a"]})
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=client.get("/metrics").content,
        capture_output=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
