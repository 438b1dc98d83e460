"""What each of several gloo processes does in a test, and the processes: real ones, on the loopback device, with a deadline."""

from __future__ import annotations

import contextlib
import hashlib
import math
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from learner.errors import RankLost
from learner.process_group import GlooGroup, ProcessGroup
from learner.trainer import Trainer
from tests.learner.training import config, lists
from weighting.sample import Sample
from weighting.weigher import Weigher

DEADLINE_SECONDS = 240.0
NUM_STEPS = 5
KINDS: dict[str, dict[str, Any]] = {
    "full": {"tuning": "full"},
    "top": {"tuning": "top:1"},
    "listwise": {"tuning": "full", "loss": "listwise"},
    "cross": {"tuning": "full", "interaction": "cross_encoder"},
    "dropout": {"tuning": "full", "dropout": 0.1},
}


class Ended(msgspec.Struct, kw_only=True):
    """How one rank ended a scenario."""

    results: list[str] = []
    losses: list[float] = []
    num_micro_batches: list[int] = []
    trained: tuple[int, int] = (0, 0)
    digests: dict[str, str] = {}
    parameters: dict[str, list[float]] = {}


def learner(
    ranks: ProcessGroup | None = None,
    scoring: Callable[[int], None] = lambda num_samples: None,
    **changes: Any,
) -> Trainer:
    torch.set_num_threads(
        1
    )  # and small steps: AdamW makes a whole one of a gradient that is next to nothing but rounding
    return Trainer(
        config(model="random:1x32", lr=1e-4, head_lr=1e-3, **changes),
        Weigher(),
        ranks,
        scoring=scoring,
    )


def shares(step: int, busy: int, world: int) -> list[list[Sample]]:
    """What each rank brings to a step: whole lists, dealt out to the first `busy` ranks; the others have none."""
    samples = lists(6, seed=step, start=6 * step)
    return [
        [s for s in samples if int(s.list_id.removeprefix("list-")) % busy == rank]
        for rank in range(world)
    ]


def told(own: Trainer, ended: Ended) -> Ended:
    ended.trained = own.trained
    ended.digests = {name: hashlib.sha256(data).hexdigest() for name, data in own.files().items()}
    ended.parameters = {
        name: p.detach().flatten().tolist() for name, p in own.ranker.named_parameters()
    }
    return ended


def steps(own: Trainer, bring: Callable[[int], list[Sample]], number: int = NUM_STEPS) -> Ended:
    ended = Ended()
    for step in range(number):
        report = own.step(bring(step))
        ended.results.append(report.result)
        ended.losses.append(report.loss)
        ended.num_micro_batches.append(report.num_micro_batches)
    return told(own, ended)


def spoiled(ranks: ProcessGroup, name: str, value: float) -> Ended:
    """In its second step the last rank alone has a parameter of the heads that is not finite; afterwards it is as before."""

    def spoil(num_samples: int) -> None:
        if own.step_number == 1 and ranks.rank == ranks.world - 1:
            with torch.no_grad():
                own.ranker.heads()[name].fill_(value)

    own = learner(ranks, spoil)
    ended = Ended()
    for step in range(3):
        kept = own.ranker.heads()[name].detach().clone()
        clicks = [
            s for s in shares(step, ranks.world, ranks.world)[ranks.rank] if s.task == "click"
        ]
        ended.results.append(own.step(clicks).result)
        if step == 1:
            with torch.no_grad():
                own.ranker.heads()[name].copy_(kept)
    return told(own, ended)


def tight(ranks: ProcessGroup) -> Ended:
    """The last rank alone runs out of memory, in the third step."""
    number = [0]

    def scoring(num_samples: int) -> None:
        number[0] += 1
        if ranks.rank == ranks.world - 1 and number[0] > 2 and num_samples > 4:
            raise torch.OutOfMemoryError

    return steps(
        learner(ranks, scoring), lambda step: shares(step, ranks.world, ranks.world)[ranks.rank]
    )


def as_told(ranks: ProcessGroup, numbers: list[int]) -> Ended:
    """Steps in as many parts as a journal tells, without running out of memory."""
    own = learner(ranks)

    def bring(step: int) -> list[Sample]:
        own.num_micro_batches = numbers[step]
        return shares(step, ranks.world, ranks.world)[ranks.rank]

    return steps(own, bring)


def seeded(ranks: ProcessGroup) -> Ended:
    learner(ranks).step(shares(0, ranks.world, ranks.world)[ranks.rank])
    return Ended(
        num_micro_batches=[
            int.from_bytes(seed, "little")
            for seed in ranks.gather(torch.initial_seed().to_bytes(8, "little"))
        ]
    )


def skipped(ranks: ProcessGroup) -> Ended:
    own = learner(ranks)
    own.step(shares(0, ranks.world, ranks.world)[ranks.rank])
    own.skip(shares(1, ranks.world, ranks.world)[ranks.rank])
    return told(own, Ended(num_micro_batches=[own.step_number, own.num_samples]))


def talked(ranks: ProcessGroup) -> Ended:
    """Bytes of any length arrive in rank order; a sum of numbers whose order counts is the same bits every time and everywhere."""
    assert ranks.gather(bytes(ranks.rank) * 3) == [bytes(rank) * 3 for rank in range(ranks.world)]
    assert ranks.gather(b"") == [b""] * ranks.world
    assert ranks.broadcast(b"from nought" if ranks.rank == 0 else None) == b"from nought"
    assert ranks.broadcast(b"" if ranks.rank == 0 else None) == b""
    draw, sums = np.random.default_rng(ranks.rank), set()
    wild = torch.from_numpy(
        (draw.normal(size=50_001) * 10.0 ** draw.integers(-6, 7, 50_001)).astype(np.float32)
    )
    for _ in range(20):
        first, second = wild[:40_000].clone().view(400, 100), wild[40_000:].clone()
        ranks.sum_([first, second])
        sums.add(first.numpy().tobytes() + second.numpy().tobytes())
    assert len(sums) == 1
    assert len(set(ranks.gather(hashlib.sha256(sums.pop()).digest()))) == 1
    return Ended()


def scenarios(ranks: ProcessGroup) -> Iterator[tuple[str, Ended]]:
    world = ranks.world
    yield "talked", talked(ranks)
    for name, kind in KINDS.items():
        yield (
            name,
            steps(learner(ranks, **kind), lambda step: shares(step, world, world)[ranks.rank]),
        )
    yield (
        "full again",
        steps(learner(ranks, **KINDS["full"]), lambda step: shares(step, world, world)[ranks.rank]),
    )
    yield (
        "one is empty",
        steps(
            learner(ranks, **KINDS["full"]), lambda step: shares(step, world - 1, world)[ranks.rank]
        ),
    )
    yield "all are empty", steps(learner(ranks), lambda step: [])
    yield "a score", spoiled(ranks, "bias", math.nan)
    yield "a gradient", spoiled(ranks, "purchase_scale", math.inf)
    ran_out = tight(ranks)
    yield "tight", ran_out
    yield "tight as told", as_told(ranks, ran_out.num_micro_batches)
    yield "seeded", seeded(ranks)
    yield "skipped", skipped(ranks)


def run(rank: int, world: int, port: int, folder: str) -> None:
    """One rank: every scenario, then the last rank goes without a word and the others find out."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    ranks = GlooGroup(timeout_seconds=60)
    ranks.start()
    found = dict(scenarios(ranks))
    (Path(folder) / f"{rank}.msgpack").write_bytes(msgspec.msgpack.encode(found))
    if rank != world - 1:
        with contextlib.suppress(RankLost):
            ranks.gather(b"still there?")
            os._exit(3)
    os._exit(0)


def together(world: int, folder: Path) -> list[dict[str, Ended]]:
    """What each rank found; fails if one has not ended well before the deadline."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=run, args=(rank, world, port, str(folder))) for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(DEADLINE_SECONDS)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
        process.close()
    assert codes == [0] * world
    return [
        msgspec.msgpack.decode((folder / f"{rank}.msgpack").read_bytes(), type=dict[str, Ended])
        for rank in range(world)
    ]
