"""Checks of everything that a GPU does in another way than a CPU; each has a twin on a CPU.

A check returns what it found, or raises. On a CPU attention goes text by text, and captures copy.
"""

from __future__ import annotations

import copy
import os
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.accelerating import step_checks
from benchmarks.accelerating.found import HALF, SINGLE, Found, difference
from benchmarks.accelerating.model import SMALL, Batch, Ours, Plain, Shape, bert, ragged
from benchmarks.accelerating.timing import wait
from benchmarks.accelerating.twin import Repeating
from learner import arithmetic
from learner.artifact import Document, ScoringInput
from learner.encoder.encoder import Encoder
from learner.encoder.idle import IdleEncoders, Loan
from learner.encoder.starting import StartingEncoder
from learner.passes.captures import Captures
from learner.passes.captures import difference as largest_difference
from learner.passes.flat_passes import Flat
from learner.passes.varlen import Bounds, Kernel, kernel_for, text_by_text
from learner.process_group import TorchGroup
from learner.scorer import load_scorer
from tests.learner.training import batches, trainer

_LONGEST = 128


def _kernel(device: str) -> Kernel:
    kernel = kernel_for(torch.device(device)) if device.startswith("cuda") else text_by_text
    assert kernel is not None, "the device has no kernel for texts of different lengths"
    return kernel


def _flat(device: str, shape: Shape = SMALL) -> tuple[Encoder, Repeating | None]:
    """Return an encoder with flat passes and captures, and what counts them on a CPU."""
    model, twin = bert(shape, device), Repeating()
    on_gpu = device.startswith("cuda")
    captures = Captures(None if on_gpu else twin)
    passes = Flat(model, _kernel(device), captures)
    lowered = "bfloat16" if on_gpu else "float32"
    encoder = Encoder(model, tuning="full", passes=passes, precision=lowered)
    return encoder, None if on_gpu else twin


def attention(device: str) -> Found:
    """Attention of all texts in one kernel against text by text, with its gradient."""
    kind = torch.bfloat16 if device.startswith("cuda") else torch.float32
    lengths = [5, 1, 128, 0, 17, 40]
    offsets = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
    bounds = Bounds(offsets, _LONGEST, text_by_text)
    worst = 0.0
    for causal in (False, True):
        torch.manual_seed(0)
        states = [torch.randn(sum(lengths), 4, 64, device=device) for _ in "qkv"]
        both = []
        for kernel in (_kernel(device), text_by_text):
            own = [s.to(kind).detach().requires_grad_() for s in states]
            output = kernel(own[0], own[1], own[2], bounds, seen=bounds, causal=causal, scale=None)
            (output.float() * states[0]).sum().backward()  # type: ignore[no-untyped-call]
            both.append([output, *(s.grad for s in own if s.grad is not None)])
        worst = max(worst, *(difference(a, b) for a, b in zip(*both, strict=True)))
    return Found(worst, HALF)


def vectors(device: str) -> Found:
    """Flat passes against the model alone, text by text, in single precision."""
    encoder, _ = _flat(device)
    plain, batch = bert(SMALL, device), ragged(1_000, seed=1)
    with torch.no_grad():
        found = encoder(batch.ids)
        rows = [torch.from_numpy(own)[None].to(device) for own in batch.ids]
        means = [plain(input_ids=row).last_hidden_state[0].mean(0) for row in rows]
    expected = torch.nn.functional.normalize(torch.stack(means), dim=-1)
    return Found(difference(found, expected), 2.5 * HALF, type(encoder.passes).__name__)


def captured(device: str) -> Found:
    """Twenty steps of ragged batches with captures against twenty without."""
    graphs, twin = _flat(device)
    eager = Encoder(
        bert(SMALL, device),
        tuning="full",
        passes=Flat(bert(SMALL, device), _kernel(device)),
        precision=graphs.precision,
    )
    eager.passes = Flat(eager.model, _kernel(device))
    eager.tuning._passes = eager.passes  # type: ignore[attr-defined]
    worst, start = 0.0, copy.deepcopy(graphs.model.state_dict())
    for encoder in (graphs, eager):
        encoder.model.load_state_dict(start)
    rules = [torch.optim.SGD(e.trainable_parameters(), lr=0.05) for e in (graphs, eager)]
    for seed in range(20):
        batch, both = ragged(300 + 90 * seed, seed=seed), []
        for encoder, rule in zip((graphs, eager), rules, strict=True):
            rule.zero_grad()
            own = encoder(batch.ids)
            (own * _target(own)).sum(-1).mean().backward()
            rule.step()
            both.append(own.detach())
        worst = max(worst, difference(*both))
    assert graphs.passes.captures.trusted, "captures were switched off"  # type: ignore[attr-defined]
    note = f"{twin.number} replays" if twin else "CUDA graphs"
    return Found(worst, HALF, note)


def beside_allocations(device: str) -> Found:
    """Steps captured while another thread allocates memory of the device, as a server does."""
    on_gpu, over = device.startswith("cuda"), threading.Event()
    most = 256 if on_gpu else 4

    def allocate() -> None:
        size = 0
        while not over.is_set():
            size = size % most + 1
            torch.ones(size << 18, device=device).sum().item()

    other = threading.Thread(target=allocate)
    other.start()
    try:
        found = captured(device)
    finally:
        over.set()
        other.join()
    return found


def versions(device: str) -> Found:
    """Six versions in three places in memory, answering by captures, against passes without."""
    first, _ = _flat(device)
    start = {name: own.cpu().clone() for name, own in first.model.state_dict().items()}
    first.round_weights()
    first.capture_ahead()
    loans = [Loan()]
    encoders = IdleEncoders(first, loans[0], start)
    worst = 0.0
    for number in range(6):
        tensors = {n: own * (1 + number / 20) for n, own in start.items()}
        loans.append(Loan())
        encoder = encoders.take(tensors, loans[-1])
        model = bert(SMALL, device)
        model.load_state_dict(tensors)
        passes = Flat(model, _kernel(device))
        eager = Encoder(model, tuning="full", passes=passes, precision=encoder.precision)
        for seed in range(4):
            texts = ragged(100 + 500 * seed, seed=10 * number + seed).ids
            with torch.inference_mode():
                worst = max(worst, difference(encoder(texts), eager(texts)))
        del loans[: len(loans) - 2]  # the one before stays in use
    captures = first.passes.captures  # type: ignore[attr-defined]
    assert captures.trusted, "captures were switched off"
    expected = 3 * len(captures.sizes)
    assert len(captures) == expected, f"{len(captures)} captures, expected {expected}"
    return Found(worst, HALF, f"{expected} captures")


def ahead(device: str) -> Found:
    """Texts encoded by another thread beside steps, against texts that are encoded in a step."""
    precision = "bfloat16" if device.startswith("cuda") else "float32"
    both = [Encoder(bert(SMALL, device), tuning="top:1", precision=precision) for _ in "ab"]
    encoder, plain = both
    starting, worst = StartingEncoder(encoder), 0.0
    with ThreadPoolExecutor(1) as thread:
        for seed in range(6):
            texts = ragged(3_000, seed=seed).ids
            own = thread.submit(starting.encode_ahead, texts)
            for more in range(3):
                vectors = encoder(ragged(1_000, seed=100 + 3 * seed + more).ids)
                (vectors * _target(vectors)).sum().backward()
                encoder.zero_grad()
            own.result()
            assert all(encoder.cache.get(ids) is not None for ids in texts), "not kept"
            with torch.no_grad():
                worst = max(worst, difference(encoder(texts), plain(texts)))
    return Found(worst, HALF, f"{encoder.cache.num_bytes >> 20} MiB kept")


def _target(like: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(like.shape[1], generator=draw).to(like.device)


def fifty_steps(device: str) -> Found:
    """Fifty steps of ragged batches against plain transformers, losses, in single precision."""
    tf32 = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        ours, plain = Ours(SMALL, device, 16), Plain(SMALL, device, lowered=False)
        worst = 0.0
        for seed in range(50):
            batch = _sixteen(seed)
            worst = max(worst, difference(ours.step(batch), plain.step(batch)))
    finally:
        torch.set_float32_matmul_precision(tf32)
    return Found(worst, SINGLE, type(ours.encoder.passes).__name__)


def _sixteen(seed: int) -> Batch:
    batch = ragged(2_000, seed=seed)
    return Batch(batch.ids[:16], batch.labels[:16], batch.weights[:16])


def checkpointed(device: str) -> Found:
    """Gradients with states calculated again against those with states kept."""
    gradients = []
    for checkpointing in (False, True):
        ours = Ours(SMALL, device, 16, checkpointing=checkpointing)
        batch = _sixteen(0)
        ours.encoder(batch.ids).square().sum(0).max().backward()
        gradients.append([own.grad for own in ours.moving if own.grad is not None])
    with_vectors = [[torch.ones(1, device=device), *own] for own in gradients]
    return Found(largest_difference(with_vectors[1], with_vectors[0]), SINGLE)


def learner(device: str) -> Found:
    """Steps of the learner, its version, and scores of that version on device and CPU."""
    precision = "bfloat16" if device.startswith("cuda") else "float32"
    own = trainer(device=device, precision=precision, lr=1e-4)
    reports = [own.step(batch) for batch in batches(6)]
    assert all(report.result == "ok" for report in reports), reports
    words = ("red shoe", "blue lamp", "small oak silk")
    asked = ScoringInput(query="query red", documents=tuple(Document(text=t) for t in words))
    scores = []
    with TemporaryDirectory() as folder:
        for name, data in own.files().items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(data)
        for place in (device, "cpu"):
            scorer = load_scorer(Path(folder), "v1", threads=1, device=place)
            scores.append(torch.from_numpy(scorer.score([asked])[0].score))
    return Found(difference(*scores), HALF)


def ranks(device: str) -> Found:
    """A sum over a group of one rank by the backend of the device; bytes by gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    wanted = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    group = TorchGroup(device)
    try:
        group.start()
        tensor = torch.arange(5.0, device=device)
        group.sum_([tensor])
        assert group.gather(b"mine") == [b"mine"]
    finally:
        group.close()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
    backend = "nccl" if device.startswith("cuda") else "gloo"
    return Found(difference(tensor.cpu(), torch.arange(5.0)), 0.0, backend)


CHECKS: Mapping[str, Callable[[str], Found]] = {
    "attention in one kernel": attention,
    "vectors of flat passes": vectors,
    "captured steps": captured,
    "captures beside another thread": beside_allocations,
    "versions in the same memory": versions,
    "texts encoded ahead": ahead,
    "fifty steps against transformers": fifty_steps,
    "no read of the device in an update": step_checks.no_waiting,
    "one read of the device in a step of the learner": step_checks.one_read,
    "copies to the device and back": step_checks.copies,
    "AdamW in one kernel": step_checks.one_kernel,
    "checkpointed gradients": checkpointed,
    "learner, version, scores": learner,
    "sum over ranks": ranks,
}


def run_all(device: str, say: Callable[[str], Any]) -> bool:
    """Run every check; return whether all hold. A check that raises does not."""
    every = True
    for name, check in CHECKS.items():
        arithmetic.use(1, device)  # whatever the check before has set
        try:
            found = check(device)
            wait(device)
        except Exception as error:  # whatever torch raises: the others are run all the same
            every = False
            say(f"FAILED  {name}: {type(error).__name__}: {error}")
            continue
        every &= found.ok
        result = "ok    " if found.ok else "FAILED"
        compared = f"difference {found.difference:.1e}, at most {found.tolerance:.1e}"
        say(f"{result}  {name}: {compared}{', ' if found.note else ''}{found.note}")
    return every
