"""Latency of the real server while versions are swapped in.

    python -m benchmarks.swap [--swaps N] [--busy N] [--json]

The store holds one version of the default model; every few seconds its learner takes a step and
publishes the next. `steelyard serve` runs in a process of its own. Requests come at Poisson times,
open loop: a query and twenty products, drawn from 200 products by a law of power, so that nearly
all texts were scored before. `--busy` processes multiply matrices meanwhile, as a learner does.

The last line on standard output is one JSON object with milliseconds: `swap` are the answers
to requests from a second before a publication to two seconds after its first answer, `calm` the
others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from learner.config import LearnerConfig
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.trainer import Trainer
from tests.learner.saving import cut, start
from tests.learner.training import batches
from weighting.config import WeigherConfig
from weighting.weigher import Weigher

RATE = 5.0
SECONDS_BETWEEN = 6.0
SECONDS_AFTER = 2.0
NUM_PRODUCTS, NUM_DOCUMENTS = 200, 20
SECONDS_BEFORE = 15.0
_BURN = "import torch; torch.set_num_threads(1); a = torch.rand(512, 512)\nwhile True: a @ a"


class Load:
    """Requests at Poisson times; each in a thread of its own."""

    def __init__(self, url: str) -> None:
        """Send nothing yet."""
        self._client = httpx2.Client(base_url=url, timeout=30)
        self._draw = np.random.default_rng(0)
        share = 1 / np.arange(1, NUM_PRODUCTS + 1) ** 0.8
        self._share = share / share.sum()
        self.answers: list[tuple[float, float, str]] = []  # sent, seconds, version
        self.num_refused = 0

    def request(self) -> dict[str, Any]:
        """Draw a query and its products."""
        products = self._draw.choice(NUM_PRODUCTS, NUM_DOCUMENTS, replace=False, p=self._share)
        documents = [f"product {n}, made for the year {n % 97} of {n % 31} parts" for n in products]
        return {"query": f"parts of the year {self._draw.integers(200)}", "documents": documents}

    def run(self, stop: threading.Event) -> None:
        """Send until told to stop, then wait for what is under way."""
        under_way = []
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            due += self._draw.exponential(1 / RATE)
            thread = threading.Thread(target=self._send, args=(self.request(),))
            thread.start()
            under_way.append(thread)
        for thread in under_way:
            thread.join()

    def _send(self, body: dict[str, Any]) -> None:
        sent = time.monotonic()
        answer = self._client.post("/v2/rerank", json=body)
        if answer.status_code == httpx2.codes.TOO_MANY_REQUESTS:
            self.num_refused += 1
            return
        answer.raise_for_status()
        self.answers.append((sent, time.monotonic() - sent, answer.headers["x-model-version"]))


def serve(stack: ExitStack, root: Path) -> str:
    """Start a server on a store and wait until it is up; return its URL."""
    settings = {"store.root": root, "serving.port": 0, "observability.log_format": "json"}
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    run = "from deploy.cli.app import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", run, "serve", *options], stderr=subprocess.PIPE, text=True
    )
    stack.callback(end, process)
    assert process.stderr is not None
    lines = (json.loads(line) for line in process.stderr)
    url = str(next(line["url"] for line in lines if line["event"] == "listening"))
    next(line for line in lines if "startup complete" in line["event"])
    threading.Thread(target=process.stderr.read, daemon=True).start()  # the pipe never fills
    while httpx2.get(f"{url}/readyz").status_code != httpx2.codes.OK:
        time.sleep(0.05)
    return url


def burn(stack: ExitStack) -> None:
    """Keep a processor busy."""
    stack.callback(end, subprocess.Popen([sys.executable, "-c", _BURN]))


def end(process: subprocess.Popen[Any]) -> None:
    """End a process and wait for it."""
    process.terminate()
    process.wait()


def swap(
    load: Load, trainer: Trainer, checkpointer: Checkpointer, num_swaps: int
) -> list[tuple[float, float]]:
    """Publish versions while the load runs; return when each was begun, and first answered."""
    swaps = []
    time.sleep(SECONDS_BEFORE)
    for step, batch in enumerate(batches(num_swaps), 1):
        trainer.step(batch)
        announced = time.monotonic()
        version = checkpointer.save(trainer.files(), cut(step))
        checkpointer.announce(version)
        while not load.answers or load.answers[-1][2] != version.name:
            time.sleep(0.01)
        swaps.append((announced, time.monotonic()))
        time.sleep(SECONDS_BETWEEN)
    return swaps


def report(
    answers: list[tuple[float, float, str]], swaps: list[tuple[float, float]]
) -> dict[str, Any]:
    """Return percentiles of the latency, in milliseconds, in and outside of swaps."""
    sent = np.array([one[0] for one in answers])
    milliseconds = np.array([one[1] for one in answers]) * 1e3
    counted = sent > swaps[0][0] - SECONDS_BETWEEN / 2
    swapping = np.zeros(len(sent), bool)
    for begin, first_answer in swaps:
        swapping |= (sent > begin - 1) & (sent < first_answer + SECONDS_AFTER)
    found = {"calm": milliseconds[counted & ~swapping], "swap": milliseconds[counted & swapping]}
    return {
        "swaps": len(swaps),
        "swap_seconds": round(float(np.mean([after - begin for begin, after in swaps])), 2),
        **{
            part: {
                "requests": len(values),
                **{f"p{p}": round(float(np.percentile(values, p)), 1) for p in (50, 95, 99)},
                "max": round(float(values.max()), 1),
            }
            for part, values in found.items()
        },
    }


def main() -> None:
    """Serve, load, swap, and print the latencies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=10)
    parser.add_argument("--busy", type=int, default=0, help="processes that multiply matrices")
    parser.add_argument("--json", action="store_true", help="only the last line")
    options = parser.parse_args()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpointer = Checkpointer(root, Disk(), time.time)
        start(checkpointer, root, Disk())
        trainer = Trainer(LearnerConfig(), Weigher(WeigherConfig()))
        checkpointer.announce(checkpointer.save(trainer.files(), cut(0)))
        load = Load(serve(stack, root))
        for _ in range(options.busy):
            burn(stack)
        stop = threading.Event()
        running = threading.Thread(target=load.run, args=(stop,))
        running.start()
        try:
            swaps = swap(load, trainer, checkpointer, options.swaps)
        finally:
            stop.set()
            running.join()
    found = report(load.answers, swaps)
    if not options.json:
        for begin, first_answer in swaps:
            print(f"saved, announced, then answered after {first_answer - begin:.2f} s")
    print(json.dumps({"busy": options.busy, "refused": load.num_refused, **found}))


if __name__ == "__main__":
    main()
