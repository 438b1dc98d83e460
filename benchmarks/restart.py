"""Time of a killed learner to its next step, and cost of checkpoints and journal in training.

    python -m benchmarks.restart [--kills N] [--seconds S] [--model minilm-l6] [--tuning top:1]

Apache Kafka and the learner, with the model of the demo, run as child processes; the invented log
of `benchmarks.crash` is written meanwhile. The learner is killed (SIGKILL) after S seconds of
learning, N times, and started again at once. `restart_seconds`: from the start of the process to
its first journaled live step, with everything that comes before: imports, model, checkpoint, the
journal's tail learned again. `stall_ratio`: time that training stood still for checkpoints over
time in steps, of all lives; `journal_ratio` the same for the journal, whose records are written and
synced here once more, as many and as long as the learner wrote, on the same file system. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.crashing.log import NUM_PARTITIONS, TOPICS, Producer
from benchmarks.crashing.oracle import is_live, newest_segment
from benchmarks.crashing.processes import Role
from benchmarks.crashing.run import DEAD_LETTERS
from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.options import KafkaConfig
from deploy.broker.node import Broker
from deploy.process.child import free_ports

_PATIENCE_SECONDS = 120.0
_SERIES = ("checkpoint_stall_seconds", "learner_step_duration_seconds")


def measure(
    num_kills: int, seconds: float, model: str, tuning: str, folder: Path
) -> dict[str, Any]:
    """Kill and start again; return what was measured."""
    with ExitStack() as stack:
        broker = Broker(folder / "kafka")
        stack.callback(broker.close)
        broker.start()
        config = KafkaConfig(bootstrap_servers=broker.bootstrap_servers)
        with KafkaAdmin(config) as admin:
            for topic in TOPICS:
                admin.create_topic(topic, NUM_PARTITIONS)
            admin.create_topic(DEAD_LETTERS, 1)
        (port,) = free_ports(1)
        root, settings = folder / "store", folder / "steelyard.yaml"
        topics = {**{topic: topic for topic in TOPICS}, "items": None, "dead_letter": DEAD_LETTERS}
        written: dict[str, Any] = {
            "kafka": {"bootstrap_servers": broker.bootstrap_servers, "topics": topics},
            "join": {
                "click_window": "20s",
                "observation_window": "60s",
                "attribution_window": "600s",
                "grace": "5s",
            },
            "learner": {"model": model, "tuning": tuning, "batch_size": 160, "publish_every": "3s"},
            "store": {"root": str(root)},
            "observability": {"metrics_port": port},
        }
        settings.write_text(json.dumps(written))
        producer = Producer(config, 0, 60.0)
        stack.callback(producer.close)
        producer.start()
        learner = Role("learn", settings, folder / "learn.log")
        stack.callback(learner.kill)
        restarts: list[float] = []
        totals = dict.fromkeys(
            (f"{name}_{part}" for name in _SERIES for part in ("sum", "count")), 0.0
        )
        for life in range(num_kills + 1):
            segment, began = newest_segment(root), time.monotonic()
            learner.start()
            while not is_live(root, segment):
                if learner.ended() is not None or time.monotonic() - began > _PATIENCE_SECONDS:
                    raise RuntimeError(f"the learner takes no step:\n{learner.log_tail()}")
                time.sleep(0.02)
            if life:
                restarts.append(time.monotonic() - began)
            time.sleep(seconds)
            for name, value in _scrape(port).items():
                totals[name] += value
            learner.kill()
        num_steps = totals["learner_step_duration_seconds_count"]
        size = sum(path.stat().st_size for path in (root / "journal").iterdir())
        synced = _sync_seconds(folder / "synced", max(1, int(size / max(num_steps, 1))), 200)
        restarts.sort()
        in_steps = totals["learner_step_duration_seconds_sum"]
        return {
            "restart_p50_seconds": restarts[len(restarts) // 2],
            "restart_max_seconds": restarts[-1],
            "num_steps": int(num_steps),
            "step_mean_seconds": in_steps / num_steps,
            "num_checkpoints": int(totals["checkpoint_stall_seconds_count"]),
            "stall_mean_seconds": totals["checkpoint_stall_seconds_sum"]
            / max(totals["checkpoint_stall_seconds_count"], 1),
            "stall_ratio": totals["checkpoint_stall_seconds_sum"] / in_steps,
            "journal_mean_bytes": size / num_steps,
            "journal_ratio": synced * num_steps / in_steps,
            "model": model,
            "tuning": tuning,
            "cpu": platform.machine(),
        }


def _scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    wanted = {
        f"steelyard_{name}_{part}": f"{name}_{part}"
        for name in _SERIES
        for part in ("sum", "count")
    }
    return {
        wanted[s.name]: s.value for family in families for s in family.samples if s.name in wanted
    }


def _sync_seconds(path: Path, size: int, repeats: int) -> float:
    """Seconds to append and sync one record of `size` bytes."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o640)
    began = time.perf_counter()
    for _ in range(repeats):
        os.write(fd, b"x" * size)
        os.fsync(fd)
    os.close(fd)
    return (time.perf_counter() - began) / repeats


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--tuning", default="top:1")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="steelyard-restart-") as folder:
        print(
            json.dumps(measure(asked.kills, asked.seconds, asked.model, asked.tuning, Path(folder)))
        )


if __name__ == "__main__":
    main()
