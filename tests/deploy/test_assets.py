"""Alert rules, dashboard and compose file: all that they name exists, and the rules fire."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.accept_surface import ROOT, declared_series

DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "steelyard.json"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not on PATH: alert rules not tested (Debian: apt-get install prometheus)",
)


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def walk(node: object) -> Iterator[dict[str, Any]]:
    """Every object inside a JSON document."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def expressions() -> list[str]:
    return [node["expr"] for node in walk(dashboard()) if "expr" in node]


@pytest.mark.skipif(
    not (ROOT / "learner/telemetry.py").exists(), reason="the learner declares no series yet"
)
@pytest.mark.parametrize("file", [ALERTS, DASHBOARD], ids=lambda file: file.name)
def test_every_series_that_is_asked_for_is_declared_by_the_code(file: Path) -> None:
    declared = set()
    for name, (kind, _) in declared_series().items():
        declared |= (
            {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
        )
    asked = set(re.findall(r"\bsteelyard_\w+", file.read_text()))
    assert asked - declared == set()


def test_every_alert_fires_in_one_test_stays_silent_in_another_and_has_a_runbook() -> None:
    sections = {
        line.removeprefix("## ")
        for line in (ROOT / "docs" / "runbooks.md").read_text().splitlines()
        if line.startswith("## ")
    }
    tested: dict[str, set[bool]] = {}
    for world in yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yml").read_text())["tests"]:
        for case in world["alert_rule_test"]:
            tested.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    for rule in alerts():
        name = rule["alert"]
        assert tested.get(name) == {True, False}, name
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{name.lower()}"
        assert name in sections, name
    assert sections == {rule["alert"] for rule in alerts()}


@needs_promtool
def test_the_alert_rules_hold_in_every_world() -> None:
    result = promtool("test", "rules", str(DEPLOY / "prometheus" / "alerts_test.yml"))
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_prometheus_takes_the_configuration() -> None:
    result = promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_every_expression_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"x{index}", "expr": expression.replace("$topic", "clicks")}
        for index, expression in enumerate(expressions())
    ]
    (tmp_path / "rules.yml").write_text(
        json.dumps({"groups": [{"name": "dashboard", "rules": rules}]})
    )
    result = promtool("check", "rules", str(tmp_path / "rules.yml"))
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_dashboard_can_be_provisioned_as_it_is() -> None:
    raw = dashboard()
    assert raw["id"] is None
    assert raw["uid"] == "steelyard"
    assert "__inputs" not in raw
    assert {node["datasource"]["uid"] for node in walk(raw) if "datasource" in node} == {
        "${datasource}"
    }
    (source,) = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    )["datasources"]
    (variable,) = [
        variable for variable in raw["templating"]["list"] if variable["type"] == "datasource"
    ]
    assert variable["current"] == {"text": source["name"], "value": source["uid"]}
    ids = [panel["id"] for panel in raw["panels"]]
    assert len(set(ids)) == len(ids)


def test_compose_mounts_files_that_exist_and_kafka_advertises_where_its_clients_are() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists(), source
    kafka = services["kafka"]["environment"]
    assert kafka["KAFKA_ADVERTISED_LISTENERS"] == "INTERNAL://kafka:19092,HOST://localhost:9092"
    assert services["kafka"]["ports"] == ["127.0.0.1:9092:9092"]
