"""Weighted updates on one GPU, against transformers in the same run; needs no Kafka.

    python -m benchmarks.gpu [--self-test] [--device NAME] [--json]

`--self-test` checks, in two minutes, everything that a GPU does in another way than a CPU: the
attention of all texts in one kernel, captured steps, fifty steps against transformers, that an
update reads nothing from the device and a step of the learner once, copies there and back, AdamW in
one kernel, checkpointed gradients, captures beside another thread, versions and scores, versions in
the same memory, texts encoded ahead, sums over ranks. On a CPU (`--device cpu`)
the same checks run on their twins. Every check must hold before anything is timed.

Then, within nine minutes: an untrained BERT-base in bfloat16 on ragged texts, log-normal lengths of
mean 48 and at most 128, 16,384 real tokens a step, forward, backward, clipping and optimiser, with
token ids on the host. MFU counts real tokens against 989.4 TFLOP/s, and against an 8192^3 product
of random matrices in the same run. The peer pads the same batches to their longest text under
autocast, with fused AdamW. Then single steps of 8 to 64 texts of 64 tokens, captured and not;
training beside publishing and serving; and what the host does per sample.

The last line on standard output is one JSON object; null is 'not measured'.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

from benchmarks.accelerating import checks
from benchmarks.accelerating.freshness import freshness
from benchmarks.accelerating.model import BASE
from benchmarks.accelerating.timing import copy_rate
from benchmarks.accelerating.updates import memory, small, sustained
from learner import arithmetic
from tests.learner.training import batches, trainer

FIGURES = (
    "mfu",
    "mfu_against_measured_gemm",
    "ratio_to_hf",
    "captured_ms",
    "freshness_p50_seconds",
    "host_us_per_sample",
)
_SIZES, _LENGTH = (8, 16, 32, 64), 64
_WARM_STEPS = 5


def host_microseconds(num_batches: int = 40) -> float:
    """Measure CPU time per sample of a step whose model is tiny and frozen: weighing, and scores.

    Decoding and joining come before it (`benchmarks.ingest`).
    """
    own = trainer(model="random:1x32", tuning="frozen")
    stream = batches(num_batches + _WARM_STEPS)
    for batch in stream[:_WARM_STEPS]:
        own.step(batch)
    began = time.process_time()
    for batch in stream[_WARM_STEPS:]:
        own.step(batch)
    num_samples = sum(len(batch) for batch in stream[_WARM_STEPS:])
    return (time.process_time() - began) / num_samples * 1e6


def measure(device: str, say: Any) -> dict[str, Any]:
    """Measure everything on a GPU."""
    update = sustained(BASE, device, num_tokens=16_384, rounds=6, steps=50, precision="bfloat16")
    say(f"sustained update of BERT-base: {json.dumps(update)}")
    steps = small(BASE, device, sizes=_SIZES, length=_LENGTH, steps=100, precision="bfloat16")
    say(f"small steps, milliseconds: {json.dumps(steps)}")
    fresh: dict[str, Any] = {}
    for tuning in ("lora:8", "full"):
        found = freshness(
            device, model="random:12x768", tuning=tuning, precision="bfloat16", num_seconds=20
        )
        say(f"training beside publishing and serving, {tuning}: {json.dumps(found)}")
        fresh = fresh or found
    say(f"copy on the device: {copy_rate(device) / 1e12:.2f} TB/s; {memory(device):.1f} GiB used")
    return {
        **{name: update[name] for name in FIGURES[:3]},
        "captured_ms": steps["captured_32"]["p50"],
        "freshness_p50_seconds": fresh["freshness_p50_seconds"],
    }


def main() -> None:
    """Check, then measure; print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--self-test", action="store_true", help="the checks alone")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="the last line alone")
    options = parser.parse_args()
    device, on_gpu = options.device, options.device.startswith("cuda")

    def say(line: str) -> None:
        if not options.json:
            print(line, flush=True)

    arithmetic.use(1, device)
    say(f"torch {torch.__version__}, {torch.cuda.get_device_name() if on_gpu else 'CPU twins'}")
    sound = checks.run_all(device, say)
    found: dict[str, Any] = {"self_test": "ok" if sound else "failed", **dict.fromkeys(FIGURES)}
    if not options.self_test:
        found["host_us_per_sample"] = host_microseconds()
        if on_gpu and sound:
            arithmetic.use(1, device)  # the step before was a CPU's
            found |= measure(device, say)
        else:
            say("no GPU: not measured" if not on_gpu else "a check failed: nothing is timed")
    print(json.dumps(found))
    if not sound:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
