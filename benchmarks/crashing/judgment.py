"""Judgment of a run: lost and doubled records and samples, and bytes that differ."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.crashing import oracle
from benchmarks.crashing.oracle import MODULUS, Records
from benchmarks.crashing.processes import COMMAND
from benchmarks.crashing.run import BROKER, LEARNER, SERVING, Run
from consumers.source import Record

_Sum = tuple[int, int]
"""Number, and sum of hashes; the sum is 0 where only the number counts."""


class _Tally:
    """Counts of what was lost and doubled, with a sentence for each."""

    def __init__(self) -> None:
        self.num_lost = 0
        self.num_doubled = 0
        self.problems: list[str] = []

    def compare(self, what: str, found: _Sum, expected: _Sum) -> None:
        """Count a difference; with equal numbers and another sum it is one of each."""
        if found == expected:
            return
        same = found[0] == expected[0]
        self.num_lost += 1 if same else max(0, expected[0] - found[0])
        self.num_doubled += 1 if same else max(0, found[0] - expected[0])
        self.problems.append(
            f"{what}: found {found[0]} ({found[1]:016x}), expected {expected[0]} "
            f"({expected[1]:016x})"
        )


def judge(run: Run, records: Records, expected: _Sum) -> dict[str, Any]:
    """Compare the last manifest with log and oracle, and learn the journal again.

    Args:
        run: drained; its learner has ended.
        records: the whole log.
        expected: number and sum of the samples of a naive join.

    Returns:
        The JSON object of the benchmark.
    """
    final = oracle.newest_checkpoint(run.root)
    assert final is not None
    tally = _Tally()
    _compare_records(tally, final, records)
    left_out = _compare_samples(tally, final, expected)
    _compare_events(tally, run.producer.event_ids, records)
    checks = _verify(run)
    state = next(check for check in checks if check["step"] == "state")
    wrong = [c for c in checks if c["step"] != "state" and c["outcome"] != "equal"]
    equal = state["outcome"] == "equal"
    asker, problems = run.asker, tally.problems
    problems += [] if equal else [f"learned again: {state['text']}"]
    problems += [f"verify: {check['text']}" for check in wrong]
    problems += [f"serving: {text}" for text in asker.failures[:5]]
    problems += [f"two lists of scores: {name}" for name in sorted(asker.mixed)]
    for problem in problems:
        print(problem, file=sys.stderr)
    return {
        "kills": sum(run.done.values()),
        "kills_by": {name: run.done[name] for name in (LEARNER, BROKER, SERVING)},
        "crashes_in_recovery": run.num_in_recovery,
        "events": sum(map(len, records.values())),
        "searches_without_hits": _count(records, b'"query_response_hit_ids":[]'),
        "events_of_a_wrong_clock": _count(records, b'"c-wrong-clock"'),
        "samples": final["trained"]["num"],
        "samples_left_out": left_out,
        "steps_in_quarantine": sum(end - first for first, end in final["quarantine"]),
        "lost": tally.num_lost,
        "doubled": tally.num_doubled,
        "divergences": len(state["versions"]) or int(not equal),
        "digests_compared": state["num_compared"] or 0,
        "verify_failures": len(wrong),
        "steps": final["step"],
        **_recoveries(run.recoveries, run.through_outage),
        "restarts_by_itself": dict(run.restarts),
        "records_resent": run.producer.num_resent,
        "seed": run.seed,
        "seconds": round(time.monotonic() - run.began, 1),
        "serving_answers": asker.num_answers,
        "serving_failures": len(asker.failures),
        "versions_answering": len(asker.scores),
        "mixed_versions": len(asker.mixed),
    }


def _compare_records(tally: _Tally, final: dict[str, Any], records: Records) -> None:
    for (topic, p), part in records.items():
        audit, end = final["audit"][topic][str(p)], final["offsets"][topic][str(p)]
        contained = [record for record in part if record.offset < end]
        num_records = audit["num_records"]
        expected = len(contained), _sum_of(contained)
        tally.compare(f"{topic}[{p}]", (num_records, audit["sum64"]), expected)
        num_outcomes = sum(audit["outcomes"].values())
        tally.compare(f"outcomes of {topic}[{p}]", (num_outcomes, 0), (num_records, 0))
        tally.compare(f"unread of {topic}[{p}]", (len(contained), 0), (len(part), 0))


def _compare_samples(tally: _Tally, final: dict[str, Any], expected: _Sum) -> int:
    """Compare what was trained with the oracle; return how many samples were left out."""
    trained: dict[str, int] = final["trained"]
    left_out = int(final["samples"] - trained["num"])
    if left_out:  # a step left out has each of its samples once, but is in no sum
        tally.compare("samples in steps", (final["samples"], 0), (expected[0], 0))
    else:
        tally.compare("samples", (trained["num"], trained["sum64"]), expected)
    return left_out


def _compare_events(tally: _Tally, event_ids: set[str], records: Records) -> None:
    names = (oracle.event_id(record) for part in records.values() for record in part)
    written = {name for name in names if name is not None}
    tally.compare("events in the log", (len(event_ids & written), 0), (len(event_ids), 0))


def _count(records: Records, part: bytes) -> int:
    return sum(part in (record.value or b"") for each in records.values() for record in each)


def _sum_of(records: Sequence[Record]) -> int:
    return sum(map(oracle.hash64, records)) % MODULUS


def _recoveries(seconds: Sequence[float], through_outage: Sequence[float]) -> dict[str, Any]:
    p50, p99 = np.quantile(np.array(seconds or [float("nan")]), [0.5, 0.99])
    return {
        "recovery_p50_seconds": round(float(p50), 3),
        "recovery_p99_seconds": round(float(p99), 3),
        "recoveries": len(seconds),
        "recovery_through_outage_max_seconds": round(max(through_outage, default=0.0), 3),
    }


def _verify(run: Run) -> list[dict[str, Any]]:
    """Run `steelyard verify --deep` from the first version on; return its checks."""
    first = next(found for found in oracle.manifests(run.root) if found["kind"] == "checkpoint")
    options = ["--deep", "--json", "--since", first["version"], "--config", str(run.settings)]
    out, err = run.folder / "verify.json", run.folder / "verify.err"
    with out.open("wb") as output, err.open("wb") as errors:
        subprocess.run(
            [sys.executable, "-c", COMMAND, "verify", *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            timeout=3600,
            check=False,
        )
    try:
        checks: list[dict[str, Any]] = json.loads(out.read_text())["checks"]
        if any(check["step"] == "state" for check in checks):
            return checks
        reason = "no check of the state"
    except (ValueError, KeyError) as error:
        reason = repr(error)
    text = (
        f"verify --deep says nothing of the state ({reason}):\n{out.read_text()[-2000:]}\n"
        f"{err.read_text()[-3000:]}"
    )
    unknown = {"step": "state", "outcome": "undecided", "text": text}
    return [unknown | {"num_compared": 0, "versions": []}]
