"""Host work of a learner per sample, and what running it ahead of the model is worth.

    python -m benchmarks.host [--lists N] [--model NAME] [--threads N] [--rounds N]

A shop's log in memory goes through the product's own pipeline and training loop. First each part's
CPU time of this one thread, in microseconds a sample: `decode and join` is all from records to
batches, `weigh` what `Trainer.prepare` does, `tokenise` the texts that are not cached yet, `encode
ahead` the part of their vectors that no training changes, `prequential` and `residual` what a step
does beside the encoder, `report` the series. `model` is the rest of a step. Then samples/s by the
clock with `learner.run_ahead` off and on, in turn, from the same start. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any
from unittest.mock import patch

import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks.host_log import MemoryLog, pipeline, shop
from learner import training_step
from learner.config import LearnerConfig
from learner.loop import train
from learner.publish import Identity, IngestState, Publisher
from learner.store.manifest import ResumePoint
from learner.telemetry import Telemetry
from learner.trainer import Trainer
from learner.training_step import StepReport
from weighting.provenance import Offsets
from weighting.sample import Batch, Signal
from weighting.weigher import Weigher

Values = dict[str, list[bytes]]


def batches(values: Values, config: LearnerConfig) -> Iterator[Batch]:
    """Yield the batches of the log, until it is read."""
    log = MemoryLog(values)
    for item in pipeline(log, config.batch_size).batches():
        if isinstance(item, Batch):
            yield item
        elif log.exhausted:
            return


def parts(values: Values, config: LearnerConfig) -> dict[str, float]:
    """Return CPU microseconds of each part, per sample."""
    spent: dict[str, float] = {}
    trainer, telemetry = Trainer(config, Weigher()), Telemetry(CollectorRegistry())

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def run(*arguments: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*arguments, **named)
            finally:
                spent[name] = spent.get(name, 0.0) + time.thread_time() - began

        return run

    prequential = trainer.components.prequential
    prequential.run = timed("prequential", prequential.run)  # type: ignore[method-assign]
    residuals = timed("residual", training_step.learn_residuals)
    stream, num_samples = batches(values, config), 0
    pull = timed("decode and join", lambda: next(stream, None))
    tokenise, prepare = timed("tokenise", trainer.tokenise), timed("weigh", trainer.prepare)
    encode = timed("encode ahead", trainer.encode_ahead)
    take, report = timed("step", trainer.take), timed("report", telemetry.stepped)
    with patch.object(training_step, "learn_residuals", residuals):
        while (batch := pull()) is not None:
            num_samples += len(batch.samples)
            tokenise(batch.samples)
            encode(batch.samples)
            report(take(prepare(batch.samples)), trainer, 0.0)
    spent["model"] = spent.pop("step") - spent["prequential"] - spent["residual"]
    return {name: 1e6 * seconds / num_samples for name, seconds in spent.items()}


def samples_per_second(values: Values, config: LearnerConfig) -> tuple[float, float]:
    """Return samples/s by the clock of the training loop without a store, and the last loss."""
    trainer, telemetry = Trainer(config, Weigher()), Telemetry(CollectorRegistry())
    publisher = Publisher(
        trainer,
        None,
        lambda: IngestState(parts={}, offsets=Offsets(), watermark_us=None),
        telemetry,
        clock=time.time,
        identity=Identity(config_sha256="", fingerprint={}, inputs={}),
        journal=ResumePoint(segment="", byte=0),
    )
    began, loss = time.perf_counter(), 0.0
    stream: Iterator[Batch | Signal] = batches(values, config)
    for result in train(stream, trainer, publisher, telemetry, None):
        if isinstance(result, StepReport):
            loss = result.loss
    return trainer.num_samples / (time.perf_counter() - began), loss


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lists", type=int, default=640)
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--tuning", default="top:1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    chosen = {n: getattr(arguments, n) for n in ("model", "tuning", "threads", "device")}
    values, config = shop(arguments.lists), LearnerConfig(**chosen)
    found = parts(values, config)
    for name, microseconds in found.items():
        print(f"{name:16}{microseconds:9.1f} us/sample")
    rates: dict[bool, list[float]] = {False: [], True: []}
    losses = set()
    for _ in range(arguments.rounds):
        for run_ahead, own in rates.items():
            rate, loss = samples_per_second(values, LearnerConfig(**chosen, run_ahead=run_ahead))
            own.append(rate)
            losses.add(loss)
            print(f"run_ahead {run_ahead}: {rate:.0f} samples/s")
    assert arguments.device != "cpu" or len(losses) <= 1, "the same bits"
    logs = np.log(rates[True]) - np.log(rates[False]) if arguments.rounds else np.zeros(1)
    error = float(logs.std(ddof=1) / np.sqrt(len(logs))) if len(logs) > 1 else float("nan")
    ratio = float(np.exp(logs.mean()))
    print(f"run ahead: {ratio:.3f} times the samples/s (standard error {error:.3f})")
    result = {
        "benchmark": "host",
        **chosen,
        "lists": arguments.lists,
        "us_per_sample": {name: round(value, 1) for name, value in found.items()},
        "samples_per_second": {str(k): [round(r, 1) for r in v] for k, v in rates.items()},
        "ratio": round(ratio, 4),
        "ratio_standard_error": round(error, 4),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
