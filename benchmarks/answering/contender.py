"""A contender in a process of its own: a line on standard input is answered by a JSON object.

    python -m benchmarks.answering.contender NAME FOLDER QUESTIONS THREADS

``judge N`` asks for the scores and logits of N questions, and for what neighbours change; a number
asks for a round: wall and CPU seconds of each question, cold and then warm.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.answering.questions import asked_again, questions

CROSS, TOWERS = "cross_encoder", "bi_encoder"
NUM_TITLES = 100
JUDGED_SEED = 9_000
_WARMING_SEED = 8_000
#: Name -> interaction. Those that begin with "steelyard" are ours.
CONTENDERS = {
    "steelyard": CROSS,
    "steelyard_again": CROSS,
    "steelyard_float32": CROSS,
    "steelyard_int8": CROSS,
    "cross_encoder": CROSS,
    "cross_encoder_bfloat16": CROSS,
    "openvino_int8": CROSS,
    "steelyard_towers": TOWERS,
    "steelyard_towers_float32": TOWERS,
    "steelyard_towers_int8": TOWERS,
    "bi_encoder": TOWERS,
}


def main() -> None:
    """Answer until standard input ends."""
    name, folder, number, threads = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:5])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    contender = make(name, folder / CONTENDERS[name], threads)
    for own in questions(2, titles=NUM_TITLES, seed=_WARMING_SEED):
        contender.cold(own)
    for line in sys.stdin:
        word, *rest = line.split()
        found: dict[str, Any]
        if word == "judge":
            found = _judged(contender, int(rest[0]))
        else:
            found = _round(contender, number, int(word))
        print(json.dumps(found), file=answers, flush=True)


def make(name: str, folder: Path, threads: int) -> Any:
    """Load a contender's model."""
    if name.startswith("steelyard"):
        from benchmarks.answering.steelyard import Steelyard

        precision = name.rpartition("_")[2]
        kinds = ("float32", "int8")
        return Steelyard(folder, precision if precision in kinds else "bfloat16", threads)
    from benchmarks.answering.sentence_transformers import BiEncoder, CrossEncoder

    if name == TOWERS:
        return BiEncoder(folder, threads)
    backends = {"cross_encoder": "torch", "cross_encoder_bfloat16": "bfloat16"}
    return CrossEncoder(folder, backends.get(name, name), threads)


def _judged(contender: Any, number: int) -> dict[str, Any]:
    asked = questions(number, titles=NUM_TITLES, seed=JUDGED_SEED)
    found: dict[str, Any] = {
        "scores": [contender.cold(own).tolist() for own in asked],
        "logits": [contender.logits(own).tolist() for own in asked],
    }
    if hasattr(contender, "largest_change"):
        found["largest_change"] = contender.largest_change(asked[:2])
    return found


def _round(contender: Any, number: int, seed: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"cold": [], "warm": [], "cold_cpu": [], "warm_cpu": []}
    for place, own in enumerate(questions(number, titles=NUM_TITLES, seed=seed)):
        again = asked_again(own, seed=seed * 1_000 + place)
        for kind, answer, question in (
            ("cold", contender.cold, own),
            ("warm", contender.warm, again),
        ):
            began, cpu = time.perf_counter(), time.process_time()
            answer(question)
            found[kind].append(time.perf_counter() - began)
            found[f"{kind}_cpu"].append(time.process_time() - cpu)
    return found


if __name__ == "__main__":
    main()
