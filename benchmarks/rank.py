"""Ranking a hundred titles on a CPU, against sentence-transformers in the same run.

    python -m benchmarks.rank [--rounds N] [--questions N] [--threads N] [--json]

A question is a query and a hundred invented titles of log-normal length, mean 40 tokens and at most
128. Ours is the scorer of a version as serving calls it, whole score included, in bfloat16, with
float32 beside, and with 8-bit integers (`serving.precision: int8`) against the peer that has them.
Peers are sentence-transformers' CrossEncoder (torch in float32 and bfloat16, and statically
quantised OpenVINO int8) and its bi-encoder. A model of each interaction is first learned
from graded pairs by `steelyard fit`'s code, and all contenders have its weights.

Each runs in a process of its own, one after the other, round by round, all on the same questions.
*Cold* are titles that nobody has met; *warm* the same titles again under another query, as a shop's
products are. A pair is new in both. Ours keeps vectors of texts, the bi-encoder of the last titles;
a CrossEncoder has nothing to keep. The ratio of a round is that of median seconds; reported is the
median over the rounds, with its bootstrap 95 % interval. Titles are warm in the ratios whose names
do not say cold. Ratios of CPU seconds, which neighbours on the machine move less, end in ``_cpu``.

Before any timing: our float32 gives the logits of the peer's; the order of the logits keeps a
Kendall tau of .98 with float32 in bfloat16, of .96 in int8, and NDCG@10 moves by at most 1 % or two
standard errors over the questions; our scores do not depend on what else is asked. A contender that
fails is `void`. `control` is ours through itself.

The last line on standard output is one JSON object; 1 is as fast as the peer.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from benchmarks.accelerating.timing import median_interval
from benchmarks.answering.contender import CONTENDERS, CROSS, JUDGED_SEED, NUM_TITLES, TOWERS
from benchmarks.answering.model import write_model
from benchmarks.answering.questions import questions
from benchmarks.answering.sentence_transformers import MAX_TOKENS
from benchmarks.learning_judging.metrics import ndcg
from benchmarks.peers.child import Child
from benchmarks.peers.folder import installed

Array = NDArray[np.float64]
Round = Mapping[str, Mapping[str, Any]]
LEARNED_SEED, FIRST_ROUND = 7, 100
NUM_JUDGED = 8
LEAST_TAU, LEAST_TAU_OF_INT8 = 0.98, 0.96
MOST_NDCG, MOST_LOGIT, MOST_CHANGE = 0.01, 1e-3, 1e-6
#: Name of a ratio -> peer, ours, cold or warm.
RATIOS = {
    "ratio_to_cross_encoder": ("cross_encoder", "steelyard", "warm"),
    "ratio_to_cross_encoder_cold": ("cross_encoder", "steelyard", "cold"),
    "ratio_to_cross_encoder_bfloat16": ("cross_encoder_bfloat16", "steelyard", "warm"),
    "ratio_to_openvino_int8": ("openvino_int8", "steelyard_int8", "warm"),
    "ratio_to_openvino_int8_cold": ("openvino_int8", "steelyard_int8", "cold"),
    "bfloat16_ratio_to_openvino_int8": ("openvino_int8", "steelyard", "warm"),
    "int8_ratio_to_cross_encoder": ("cross_encoder", "steelyard_int8", "warm"),
    "int8_ratio_to_bfloat16": ("steelyard", "steelyard_int8", "warm"),
    "ratio_to_bi_encoder_cold": ("bi_encoder", "steelyard_towers", "cold"),
    "ratio_to_bi_encoder_warm": ("bi_encoder", "steelyard_towers", "warm"),
    "float32_ratio_to_cross_encoder": ("cross_encoder", "steelyard_float32", "warm"),
    "int8_ratio_to_bi_encoder_cold": ("bi_encoder", "steelyard_towers_int8", "cold"),
    "float32_ratio_to_bi_encoder_cold": ("bi_encoder", "steelyard_towers_float32", "cold"),
    "control": ("steelyard_again", "steelyard", "warm"),
}
#: Contender -> the one whose logits its own are compared with, in float32.
EXACT = {
    "steelyard": "steelyard_float32",
    "steelyard_again": "steelyard_float32",
    "steelyard_float32": "cross_encoder",
    "steelyard_int8": "steelyard_float32",
    "cross_encoder_bfloat16": "cross_encoder",
    "openvino_int8": "cross_encoder",
    "steelyard_towers": "steelyard_towers_float32",
    "steelyard_towers_float32": "bi_encoder",
    "steelyard_towers_int8": "steelyard_towers_float32",
}


def main() -> None:
    """Learn the models, judge the contenders, time them, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--questions", type=int, default=4, help="questions of a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="the last line alone")
    options = parser.parse_args()
    peers = installed("rank")
    with tempfile.TemporaryDirectory(prefix="steelyard-rank-") as folder:
        _write_models(Path(folder), options.threads)
        with ExitStack() as stack:
            contenders = [
                stack.enter_context(
                    Child(
                        name,
                        "benchmarks.answering.contender",
                        [name, folder, str(options.questions), str(options.threads)],
                        peers=None if name.startswith("steelyard") else peers,
                    )
                )
                for name in CONTENDERS
            ]
            judged = {own.name: own.ask(f"judge {NUM_JUDGED}") for own in contenders}
            gates = gate(judged, _grades())
            rounds = []
            for number in range(options.rounds):
                rounds.append({own.name: own.ask(FIRST_ROUND + number) for own in contenders})
                if not options.json:
                    print(f"round {number}: {_line(rounds[-1])}", file=sys.stderr, flush=True)
    print(json.dumps(report(rounds, gates)))


def _write_models(folder: Path, threads: int) -> None:
    settings = {
        "learner.precision": "bfloat16",
        "learner.threads": str(threads),
        "learner.max_tokens": str(MAX_TOKENS),
        "learner.batch_size": "40",
        "learner.reference_batch_size": "40",
    }
    # A head begins with nothing: with fewer pairs its order is not one that a gate could compare
    for interaction, tuning, rate, number in (
        (CROSS, "full", "5e-5", 100),
        (TOWERS, "top:1", "1e-4", 30),
    ):
        (folder / interaction).mkdir()
        own = {"learner.interaction": interaction, "learner.tuning": tuning, "learner.lr": rate}
        learned = questions(number, titles=40, seed=LEARNED_SEED)
        write_model(folder / interaction, learned, {**settings, **own})


def _grades() -> list[Array]:
    asked = questions(NUM_JUDGED, titles=NUM_TITLES, seed=JUDGED_SEED)
    return [np.array(own.grades) for own in asked]


def gate(judged: Round, grades: Sequence[Array]) -> dict[str, dict[str, Any]]:
    """Return what each contender's answers are worth beside those in float32; ``ok`` or not."""
    found: dict[str, dict[str, Any]] = {}
    for name, own in judged.items():
        quality = _ndcg(own["logits"], grades)
        row: dict[str, Any] = {
            "ndcg": round(float(quality.mean()), 4),
            "ndcg_of_scores": round(float(_ndcg(own["scores"], grades).mean()), 4),
            "ok": True,
        }
        if name in EXACT:
            exact = judged[EXACT[name]]["logits"]
            pairs = list(zip(own["logits"], exact, strict=True))
            tau = float(np.mean([kendalltau(a, b).statistic for a, b in pairs]))
            far = max(float(np.ptp(np.subtract(a, b)) / np.std(b)) for a, b in pairs)
            row |= {"tau": round(tau, 4), "largest_difference": float(f"{far:.2g}")}
            row["ok"] = tau >= (LEAST_TAU_OF_INT8 if name.endswith("int8") else LEAST_TAU)
            row["ok"] &= not moved(quality, _ndcg(exact, grades))
            if name == "steelyard_float32":
                row["ok"] &= far <= MOST_LOGIT
        if "largest_change" in own:
            row["changed_by_neighbours"] = float(f"{own['largest_change']:.2g}")
            row["ok"] &= own["largest_change"] <= MOST_CHANGE
        row["ok"] = bool(row["ok"])
        found[name] = row
    return found


def moved(found: Array, expected: Array) -> bool:
    """Return whether the mean of questions' NDCG (n,) moved, and by more than chance explains."""
    change = found - expected
    error = float(change.std(ddof=1)) / math.sqrt(len(change))
    return bool(abs(change.mean()) > max(MOST_NDCG * expected.mean(), 2 * error))


def _ndcg(rankings: Sequence[Sequence[float]], grades: Sequence[Array]) -> Array:
    own = zip(rankings, grades, strict=True)
    return np.array([ndcg(np.array(ranking), right) for ranking, right in own])


def report(rounds: Sequence[Round], gates: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return ratios with their intervals, latencies, and the gates."""
    result: dict[str, Any] = {}
    for key, (peer, own, kind) in RATIOS.items():
        for suffix, clock in (("", kind), ("_cpu", f"{kind}_cpu")):
            ratios = np.array([_median(r[peer], clock) / _median(r[own], clock) for r in rounds])
            middle, low, high = median_interval(ratios)
            result[f"{key}{suffix}"] = round(middle, 3)
            result[f"{key}{suffix}_interval"] = [round(low, 3), round(high, 3)]
    result["void"] = [name for name, row in gates.items() if not row["ok"]]
    result["milliseconds"] = {
        name: {
            f"{kind}_p{share}": round(
                1e3 * float(np.percentile([s for r in rounds for s in r[name][kind]], share)), 1
            )
            for kind in ("cold", "warm")
            for share in (50, 95)
        }
        for name in rounds[0]
    }
    result["gate"] = dict(gates)
    return result


def _median(found: Mapping[str, Any], kind: str) -> float:
    return float(np.median(found[kind]))


def _line(found: Round) -> str:
    return ", ".join(
        f"{name} {1e3 * _median(own, 'cold'):.0f}/{1e3 * _median(own, 'warm'):.0f}"
        for name, own in found.items()
    )


if __name__ == "__main__":
    main()
