"""A contender in a process of its own: a round for each line on standard input.

    python -m benchmarks.updating.contender NAME BATCH_SIZE BATCHES THREADS

A line is the number of a round; the answer is one JSON object: CPU and wall seconds, real tokens,
losses of the steps, and where there are any, CPU seconds of each phase.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from benchmarks.updating.texts import texts

NAMES = ("steelyard", "hf_trainer", "length_grouped", "deep_river", "steelyard_bfloat16")


class Clock:
    """CPU and wall time from the first start to the last stop."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.cpu = self.wall = 0.0
        self._begun = (0.0, 0.0)

    def start(self) -> None:
        """Begin."""
        self._begun = (time.process_time(), time.perf_counter())

    def stop(self) -> None:
        """Take the time since the start."""
        self.cpu = time.process_time() - self._begun[0]
        self.wall = time.perf_counter() - self._begun[1]


def main() -> None:
    """Answer until standard input ends."""
    name, batch_size, num_batches, threads = sys.argv[1], *map(int, sys.argv[2:5])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    clock = Clock()
    contender = _make(name, batch_size, threads, clock)
    for line in sys.stdin:
        number = int(line)
        own = texts(batch_size * num_batches, seed=number)
        batches = [own[i : i + batch_size] for i in range(0, len(own), batch_size)]
        clock.start()
        losses = contender.round(batches, number)
        if not name.startswith(("hf", "length")):  # they stop after their last step
            clock.stop()
        found = {
            "cpu_seconds": clock.cpu,
            "wall_seconds": clock.wall,
            "tokens": getattr(contender, "num_tokens", 0) or sum(len(text.ids) for text in own),
            "losses": losses,
            "phases": getattr(contender, "seconds", {}),
        }
        print(json.dumps(found), file=answers, flush=True)


def _make(name: str, batch_size: int, threads: int, clock: Clock) -> Any:
    if name.startswith("steelyard"):
        from benchmarks.updating.steelyard import Steelyard

        lowered = name.endswith("bfloat16")
        return Steelyard(batch_size, threads, precision="bfloat16" if lowered else "float32")
    if name == "deep_river":
        from benchmarks.updating.deep_river import DeepRiver

        return DeepRiver(threads)
    from benchmarks.updating.hugging_face import HuggingFace

    return HuggingFace(batch_size, threads, clock, grouped=name == "length_grouped")


if __name__ == "__main__":
    main()
