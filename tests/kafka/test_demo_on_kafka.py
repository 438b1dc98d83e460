"""The real demo on the broker of these tests: programs can rely on what it prints."""

from __future__ import annotations

import json
import math
import subprocess
import sys

from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.options import KafkaConfig
from tests.kafka.conftest import Cluster

KEYS = {
    "events",
    "samples",
    "duplicates",
    "dead_letters",
    "versions_published",
    "versions_swapped",
    "requests",
    "requests_failed",
    "freshness_p50_seconds",
    "freshness_p99_seconds",
    "within_list_auc",
    "position_normalized_entropy",
    "ndcg_gain",
    "weight_ess_ratio",
    "prior",
    "ndcg10",
}
METHODS = ("random", "bm25", "zero_shot", "click_counts", "served")


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is no JSON")


def own_topics(admin: KafkaAdmin) -> set[str]:
    """Topics of demos: other tests may make theirs meanwhile."""
    return {topic for topic in admin.topics() if topic.startswith("demo-")}


def test_the_demo_ends_by_itself_swaps_versions_and_fails_no_request(broker: Cluster) -> None:
    with KafkaAdmin(KafkaConfig(bootstrap_servers=broker.bootstrap_servers)) as admin:
        before = own_topics(admin)
        command = [
            sys.executable,
            "-c",
            "from deploy.cli.app import main; main()",
            "demo",
            "--seconds",
            "15",
            "--json",
        ]
        done = subprocess.run(
            [*command, "--bootstrap-servers", broker.bootstrap_servers],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout.splitlines()[-1], parse_constant=refuse)
        assert result.keys() >= KEYS
        assert result["requests"] > 50
        assert (result["requests_failed"], result["failures"]) == (0, {})
        assert result["versions_swapped"] >= 2
        assert result["versions_published"] >= result["versions_swapped"]
        assert result["samples"] >= result["events"] / 2 > 100
        assert min(result["duplicates"], result["dead_letters"]) >= 0
        for key in (
            "position_normalized_entropy",
            "weight_ess_ratio",
            "prior",
            "within_list_auc",
        ):
            assert 0 < result[key] < 5
        assert 0 < result["freshness_p50_seconds"] <= result["freshness_p99_seconds"]
        stream = result["ndcg10"]["stream"]
        assert all(0 < stream[method] <= 1 for method in METHODS)
        for opponent in ("zero_shot", "click_counts"):
            value, low, high = stream[f"gain_over_{opponent}"]
            assert low <= value <= high
            assert math.isclose(value, stream["served"] - stream[opponent], abs_tol=1e-9)
        assert own_topics(admin) == before
    assert "Traceback" not in done.stderr
    assert (
        "versions published" in done.stderr
    )  # the summary is for people; standard output is for programs
