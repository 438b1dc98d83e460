"""Scenarios of several ranks in real gloo processes, with a deadline."""

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
from learner.process_group import ProcessGroup, TorchGroup
from learner.trainer import Trainer
from learner.training.rehearsal import RehearsalConfig
from tests.learner.training import config, lists
from weighting.sample import Sample
from weighting.weigher import Weigher

DEADLINE_SECONDS = 240.0
NUM_STEPS = 5
KINDS: dict[str, dict[str, Any]] = {
    "full": {"tuning": "full"},
    "top": {"tuning": "top:1"},
    "listwise": {"tuning": "full", "loss": "listwise"},
    "in batch": {"tuning": "full", "loss": "in_batch_softmax"},
    "cross": {"tuning": "full", "interaction": "cross_encoder"},
    "dropout": {"tuning": "full", "dropout": 0.1},
    "rehearsal": {
        "tuning": "full",
        "rehearsal": RehearsalConfig(size_bytes=100_000, share=0.5),
    },
}


class Ended(msgspec.Struct, kw_only=True):
    """Result of a scenario on one rank."""

    results: list[str] = []
    losses: list[float] = []
    num_micro_batches: list[int] = []
    learned: tuple[int, int] = (0, 0)
    digests: dict[str, str] = {}
    parameters: dict[str, list[float]] = {}


def learner(
    group: ProcessGroup | None = None,
    scoring: Callable[[int], None] = lambda num_samples: None,
    **changes: Any,
) -> Trainer:
    # Small steps: AdamW makes a whole one of a gradient that is little more than rounding
    changes = {"loss": "pointwise", **changes}  # whose samples can be divided in any way
    small = config(model="random:1x32", lr=1e-4, head_lr=1e-3, **changes)
    return Trainer(small, Weigher(), group, scoring=scoring)


def shares(step: int, busy: int, world: int) -> list[list[Sample]]:
    """Samples of each rank: whole lists, dealt out to the first `busy` ranks."""
    samples = lists(6, seed=step, start=6 * step)
    return [
        [s for s in samples if int(s.list_id.removeprefix("list-")) % busy == rank]
        for rank in range(world)
    ]


def own_share(group: ProcessGroup, step: int) -> list[Sample]:
    return shares(step, group.world, group.world)[group.rank]


def completed(own: Trainer, ended: Ended) -> Ended:
    ended.learned = own.trained
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
    return completed(own, ended)


def spoiled(group: ProcessGroup, name: str, value: float) -> Ended:
    """Make one head of the last rank not finite in the second step."""

    def spoil(num_samples: int) -> None:
        if own.step_number == 1 and group.rank == group.world - 1:
            with torch.no_grad():
                own.ranker.heads()[name].fill_(value)

    own = learner(group, spoil)
    ended = Ended()
    for step in range(3):
        kept = own.ranker.heads()[name].detach().clone()
        clicks = [s for s in own_share(group, step) if s.task == "click"]
        ended.results.append(own.step(clicks).result)
        if step == 1:
            with torch.no_grad():
                own.ranker.heads()[name].copy_(kept)
    return completed(own, ended)


def tight(group: ProcessGroup) -> Ended:
    """The last rank alone runs out of memory, in the third step."""
    number = [0]

    def scoring(num_samples: int) -> None:
        number[0] += 1
        if group.rank == group.world - 1 and number[0] > 2 and num_samples > 4:
            raise torch.OutOfMemoryError

    return steps(learner(group, scoring), lambda step: own_share(group, step))


def as_journaled(group: ProcessGroup, numbers: list[int]) -> Ended:
    """Steps in as many micro-batches as a journal says, without running out of memory."""
    own = learner(group)

    def bring(step: int) -> list[Sample]:
        own.num_micro_batches = numbers[step]
        return own_share(group, step)

    return steps(own, bring)


def seeded(group: ProcessGroup) -> Ended:
    learner(group).step(own_share(group, 0))
    seeds = group.gather(torch.initial_seed().to_bytes(8, "little"))
    return Ended(num_micro_batches=[int.from_bytes(seed, "little") for seed in seeds])


def skipped(group: ProcessGroup) -> Ended:
    own = learner(group)
    own.step(own_share(group, 0))
    own.skip(own_share(group, 1))
    return completed(own, Ended(num_micro_batches=[own.step_number, own.num_samples]))


def collective_calls(group: ProcessGroup) -> Ended:
    """Check that bytes keep rank order and sums have the same bits everywhere."""
    assert group.gather(bytes(group.rank) * 3) == [bytes(rank) * 3 for rank in range(group.world)]
    assert group.gather(b"") == [b""] * group.world
    assert group.broadcast(b"from nought" if group.rank == 0 else None) == b"from nought"
    assert group.broadcast(b"" if group.rank == 0 else None) == b""
    draw, sums = np.random.default_rng(group.rank), set()
    values = draw.normal(size=50_001) * 10.0 ** draw.integers(-6, 7, 50_001)
    wild = torch.from_numpy(values.astype(np.float32))
    for _ in range(20):
        first, second = wild[:40_000].clone().view(400, 100), wild[40_000:].clone()
        group.sum_([first, second])
        sums.add(first.numpy().tobytes() + second.numpy().tobytes())
    assert len(sums) == 1
    assert len(set(group.gather(hashlib.sha256(sums.pop()).digest()))) == 1
    return Ended()


def scenarios(group: ProcessGroup) -> Iterator[tuple[str, Ended]]:
    def bring(step: int) -> list[Sample]:
        return own_share(group, step)

    def bring_but_last(step: int) -> list[Sample]:
        return shares(step, group.world - 1, group.world)[group.rank]

    yield "collective calls", collective_calls(group)
    for name, kind in KINDS.items():
        yield name, steps(learner(group, **kind), bring)
    yield "full again", steps(learner(group, **KINDS["full"]), bring)
    yield "one is empty", steps(learner(group, **KINDS["full"]), bring_but_last)
    yield "all are empty", steps(learner(group), lambda step: [])
    yield "a score", spoiled(group, "bias", math.nan)
    yield "a gradient", spoiled(group, "purchase_scale", math.inf)
    ran_out = tight(group)
    yield "tight", ran_out
    yield "tight as journaled", as_journaled(group, ran_out.num_micro_batches)
    yield "seeded", seeded(group)
    yield "skipped", skipped(group)


def run(rank: int, world: int, port: int, folder: str) -> None:
    """Run every scenario; then the last rank exits and the others notice."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    group = TorchGroup(timeout_seconds=60)
    group.start()
    found = dict(scenarios(group))
    (Path(folder) / f"{rank}.msgpack").write_bytes(msgspec.msgpack.encode(found))
    if rank != world - 1:
        with contextlib.suppress(RankLost):
            group.gather(b"still there?")
            os._exit(3)
    os._exit(0)


def together(world: int, folder: Path) -> list[dict[str, Ended]]:
    """Return each rank's results; fail if one has not ended well before the deadline."""
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
