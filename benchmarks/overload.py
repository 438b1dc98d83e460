"""Overload of the real server: what is answered, how late, and how fast the rest is refused.

    python -m benchmarks.overload [--json] [--capacity C ...]

The server (`deploy.roles.serve`, uvicorn on loopback) runs in a process of its own, with a scorer
that sleeps per document, so that its capacity is known: 1, 5, 25, 100 and 500 requests of ten
documents per second. A second process sends requests at Poisson times, open loop, at 0.8, 1.2, 3
and 10 times the capacity. The loads of a small capacity run side by side, since they hardly use a
processor.
Where there are two processors, servers and generators have one each.

Then clients that ask again at once, whether answered or refused, in a closed loop at the largest
capacity: how much of it they are answered is a line of its own, without a target.

The last line on standard output is one JSON object; for each load, the worst over the capacities:

- `goodput_ratio`: answers per second over the capacity; 0.8 or more is the target.
- `p99_ratio`: p99 of the answered over (2 x p99 at 0.8 + one batch); 1 or less is the target. The
  batch is the 99th percentile of those that the answers came in.
- `refused_p99_ms`: of the answers 429; below 10 is the target.

Everything else that was measured comes before it, one line per run. An answer that is neither 200
nor 429, and a 429 without Retry-After, is counted under `others`. `late_p99_ms` says by how much
the generator itself was late: where it is more than a millisecond or so, other work took the
processors, and the latencies contain that.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

LOADS = (0.8, 1.2, 3.0, 10.0)
#: Capacity -> seconds of each load.
SECONDS = {1: 60.0, 5: 40.0, 25: 25.0, 100: 12.0, 500: 10.0}
#: Up to this capacity, the loads use so little of a processor that all run at the same time.
TOGETHER = 25
#: Clients that ask again at once, and for how long.
RETRYING, RETRYING_SECONDS = 300, 10.0


def serve(stack: ExitStack, capacity: float) -> str:
    """Start a server; return its URL."""
    command = [sys.executable, "-m", "benchmarks.overloading.server", "--capacity", str(capacity)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    stack.callback(_end, process)
    pin(process.pid, 0)
    assert process.stdout is not None
    return process.stdout.readline().strip()


def load(url: str, seconds: float, **options: float) -> subprocess.Popen[str]:
    """Start a load generator, with a `rate` or `connections`; its report is its standard output."""
    chosen = {"url": url, "seconds": seconds, **options}
    words = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.overloading.load", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pin(process.pid, 1)
    return process


def retrying(capacity: int) -> str:
    """Run clients that ask again at once; return what became of their requests."""
    with ExitStack() as stack:
        url = serve(stack, capacity)
        warm(url)
        found = json.loads(load(url, RETRYING_SECONDS, connections=RETRYING).communicate()[0])
    rate, refused = found["answered_per_second"], found["refused"] / RETRYING_SECONDS
    answered = f"{RETRYING} clients that ask again at once: answered {rate:.1f}/s of {capacity}"
    return f"{answered}, refused {refused:.0f}/s, others {found['others']}"


def pin(pid: int, index: int) -> None:
    """Keep a process on one of the processors, if there are two."""
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) > 1:
        os.sched_setaffinity(pid, {processors[index]})


def measure(capacity: int, loads: Sequence[float]) -> list[dict[str, Any]]:
    """Run loads of one capacity at the same time, on a server each."""
    with ExitStack() as stack:
        urls = [serve(stack, capacity) for _ in loads]
        for url in urls:
            warm(url)
        generators = [
            load(url, SECONDS[capacity], rate=capacity * factor)
            for url, factor in zip(urls, loads, strict=True)
        ]
        reports = [json.loads(generator.communicate()[0]) for generator in generators]
    return [
        {"capacity": capacity, "load": factor, **report}
        for factor, report in zip(loads, reports, strict=True)
    ]


def summary(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the worst of each load over the capacities."""
    calm = {found["capacity"]: found["p99"] for found in results if found["load"] < 1}
    summed = {}
    for factor in (factor for factor in LOADS if factor > 1):
        runs = [found for found in results if found["load"] == factor]
        goodput = [found["answered_per_second"] / found["capacity"] for found in runs]
        late = [found["p99"] / (2 * calm[found["capacity"]] + found["batch"]) for found in runs]
        summed[f"{factor:g}x"] = {
            "goodput_ratio": round(min(goodput), 3),
            "p99_ratio": round(max(late), 3),
            "refused_p99_ms": round(1e3 * max(found["refused_p99"] for found in runs), 2),
        }
    return summed


def warm(url: str) -> None:
    """Wait until the server has a version; its first requests are not counted.

    Raises:
        TimeoutError: it has none.
    """
    for _ in range(300):
        try:
            urlopen(f"{url}/readyz").close()
            break
        except HTTPError as error:
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
        time.sleep(0.1)
    else:
        raise TimeoutError(f"{url} has no version")
    load(url, 1.0, rate=5.0).communicate()


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait()


def _line(found: dict[str, Any]) -> str:
    milliseconds = {
        name: round(1e3 * found[name], 1)
        for name in ("p50", "p99", "batch", "refused_p99", "late_p99")
    }
    rest = {
        name: found[name]
        for name in ("answered", "refused", "refused_without_retry_after", "others")
    }
    rate = f"{found['answered_per_second']:.1f}/s of {found['capacity']}"
    return f"{found['load']:g}x: {rate}  ms: {milliseconds}  {rest}"


def main() -> None:
    """Run all of it; the last line is the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="nothing but the last line")
    parser.add_argument("--capacity", type=int, action="append", choices=list(SECONDS))
    arguments = parser.parse_args()
    capacities = arguments.capacity or list(SECONDS)
    results: list[dict[str, Any]] = []
    for capacity in capacities:
        groups = [LOADS] if capacity <= TOGETHER else [(factor,) for factor in LOADS]
        for found in (found for loads in groups for found in measure(capacity, loads)):
            results.append(found)
            if not arguments.json:
                print(_line(found), flush=True)
    if not arguments.json:
        print(retrying(capacities[-1]), flush=True)
    print(json.dumps(summary(results)))


if __name__ == "__main__":
    main()
