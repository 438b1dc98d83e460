"""Weighted updates of the whole encoder on a CPU, against peers in the same run.

    python -m benchmarks.update [--rounds N] [--batches N] [--threads N] [--json]

The default encoder with a linear head, every parameter moving; texts of log-normal length, mean
40 tokens and at most 128, 32 a step; AdamW, gradients clipped at 1, L = 1/N sum w_i loss_i. Peers
are the Trainer of transformers, padded to the longest text of a batch and with its mode that
groups by length, and deep-river, all in float32; Steelyard in bfloat16 stands beside. Each runs in
a process of its own, one after the other, round by round; the ratio of a round is that of real
tokens per CPU second, and its median over the rounds is reported. Steelyard and the padded Trainer
take the same steps: their losses must agree within .001, or the run is void.

The last line on standard output is one JSON object; 1 is as fast as the peer.
"""

from __future__ import annotations

import argparse
import json
import statistics
from contextlib import ExitStack
from typing import Any

from benchmarks.peers.child import Child
from benchmarks.peers.folder import installed
from benchmarks.updating.contender import NAMES

BATCH_SIZE = 32
TOLERANCE = 1e-3


def main() -> None:
    """Run the rounds and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=10, help="steps of a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="the last line alone")
    options = parser.parse_args()
    rounds = _run(options.rounds, options.batches, options.threads, quiet=options.json)
    _check(rounds)
    rates = {name: [_rate(found[name]) for found in rounds] for name in NAMES}
    result: dict[str, Any] = {}
    for name in NAMES[1:]:
        ratios = [a / b for a, b in zip(rates["steelyard"], rates[name], strict=True)]
        key = f"ratio_to_{name}"
        if name.endswith("bfloat16"):
            ratios, key = [1 / ratio for ratio in ratios], "bfloat16_to_float32"
        result[key] = round(statistics.median(ratios), 3)
        result[f"{key}_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    result["tokens_per_cpu_second"] = {n: round(statistics.median(r)) for n, r in rates.items()}
    result["largest_difference_of_losses"] = _difference(rounds)
    total = sum(rounds[-1]["steelyard"]["phases"].values())
    phases = rounds[-1]["steelyard"]["phases"].items()
    result["phases"] = {name: round(seconds / total, 3) for name, seconds in phases}
    print(json.dumps(result))


def _run(num_rounds: int, num_batches: int, threads: int, *, quiet: bool) -> list[dict[str, Any]]:
    """Let all take round after round, in turns."""
    peers = installed("update")
    rounds = []
    arguments = [str(BATCH_SIZE), str(num_batches), str(threads)]
    with ExitStack() as stack:
        contenders = [
            stack.enter_context(
                Child(
                    name,
                    "benchmarks.updating.contender",
                    [name, *arguments],
                    peers=None if name.startswith("steelyard") else peers,
                )
            )
            for name in NAMES
        ]
        for number in range(num_rounds):
            found = {contender.name: contender.ask(number) for contender in contenders}
            rounds.append(found)
            if not quiet:
                rates = ", ".join(f"{name} {_rate(own):.0f}" for name, own in found.items())
                print(f"round {number}, tokens per CPU second: {rates}", flush=True)
    return rounds


def _rate(found: dict[str, Any]) -> float:
    return float(found["tokens"]) / float(found["cpu_seconds"])


def _difference(rounds: list[dict[str, Any]]) -> float:
    pairs = [
        (ours, theirs)
        for found in rounds
        for ours, theirs in zip(
            found["steelyard"]["losses"], found["hf_trainer"]["losses"], strict=True
        )
    ]
    return float(max(abs(ours - theirs) for ours, theirs in pairs))


def _check(rounds: list[dict[str, Any]]) -> None:
    difference = _difference(rounds)
    if not difference <= TOLERANCE:
        raise SystemExit(f"void: losses of the same steps differ by {difference:.2g}")


if __name__ == "__main__":
    main()
