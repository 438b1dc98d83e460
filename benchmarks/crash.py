"""Random kills of learner, broker and server: what is lost, doubled, or differs in its bytes.

    python -m benchmarks.crash --kills N [--seed S] [--events E] [--json]

The real learner (two layers of 384 columns, one of which moves, with dropout; steps of 320 samples,
two threads, no variables of threads in the environment), Apache Kafka and the server run as child
processes with the command lines that a user types. A producer writes an invented log to topics
compressed with lz4: exposures, clicks, purchases; 5 % of them twice, 2 % late, 1 % unreadable; 5 %
of the searches find nothing, and one client's clock is ahead in some visits and behind in others.
Meanwhile SIGKILLs fall: most on the learner, from right after its start to deep in training; the
others on broker and server. Then the learner drains and is asked to end.

What is compared knows nothing of the code under test:

- events: a consumer of our own reads the log and hashes it; the last manifest must say the same
  number and sum of every partition, and one outcome for each record.
- samples: a naive join of that log (`tests.consumers.oracle`) must give what the manifest says was
  trained: number and sum. Where the learner left steps out (`samples_left_out`: a loss beyond all
  others, or not finite), number only, those included.
- digests: a fresh process learns the journal again from the first version on, never interrupted,
  and compares every file of every version that it passes to the byte (`steelyard verify --deep`).
- answers: one request, again and again. Each answer is 200 from a version that is durable in the
  store, and one version has one list of scores; except while the server was killed or has no model
  yet.

The seed decides the log, the target of each kill, behind which moment (start, claim of the store,
first live step) it falls and after which delay. The wall clock still decides how far each process
has come by then, and how much of the endless log is written. `recovery_*_seconds`: from a learner's
start to its first journaled live step, all of the journal's tail learned again; lives during which
the broker was away are counted apart. `crashes_in_recovery`: kills of a learner before that step.

The producer sends again what was not acknowledged: the same event id twice in the log, which the
learner has to notice.

Progress goes to standard error; the last line on standard output is one JSON object; exit 1 if
anything is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.crashing.judgment import judge
from benchmarks.crashing.run import Failed, Run


def measure(num_kills: int, seed: int, num_events: int, folder: Path) -> dict[str, Any]:
    """Run it once in a given folder; no process of it is left afterwards.

    Raises:
        Failed: a process ended by itself, or hangs; holds the end of its log.
    """
    with ExitStack() as stack:
        try:
            run = Run(num_kills, seed, num_events, folder, stack)
            records, expected = run.run()
            return judge(run, records, expected)
        except Failed as error:
            print(f"failed: {error}", file=sys.stderr, flush=True)
            raise


def is_clean(result: Mapping[str, Any]) -> bool:
    """Return whether nothing was lost, doubled, different, refused or mixed."""
    names = (
        "lost",
        "doubled",
        "divergences",
        "verify_failures",
        "serving_failures",
        "mixed_versions",
    )
    return not any(result[name] for name in names)


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument(
        "--seed",
        type=int,
        default=int(uuid.uuid4()) % 1_000_000,
        help="left out, a random one, which is printed",
    )
    parser.add_argument("--events", type=int, help="records at least; left out, 200 per kill")
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the folder with store, broker data and logs; printed",
    )
    options = parser.parse_args()
    num_events = options.events or 200 * options.kills
    print(f"seed {options.seed}", file=sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="steelyard-crash-"))
    kept = options.keep
    try:
        result = measure(options.kills, options.seed, num_events, folder)
        kept = kept or not is_clean(result)
    except BaseException:
        kept = True
        raise
    finally:
        if kept:
            where = f"store, logs and broker data are in {folder}"
            print(f"seed {options.seed}; {where}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if not options.json:
        for key, value in result.items():
            print(f"{key:<36} {value}")
    print(json.dumps(result), flush=True)
    sys.exit(not is_clean(result))


if __name__ == "__main__":
    main()
