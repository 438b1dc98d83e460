"""Process group: collective calls of the ranks that take each step together.

Everything is exact for a fixed number of ranks: bytes are gathered in rank order, and a ring adds
up each part of a tensor in the order of the ring, whoever comes first; each part is added up once,
so that all ranks hold the same bits.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from learner.errors import RankLost


class ProcessGroup(Protocol):
    """Collective calls: every rank makes the same ones in the same order."""

    @property
    def rank(self) -> int:
        """Our own number, from 0."""

    @property
    def world(self) -> int:
        """Number of ranks."""

    def gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of every rank, of any sizes, in rank order."""

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks; shapes are equal everywhere."""

    def broadcast(self, data: bytes | None) -> bytes:
        """Return the bytes of rank 0; the others give None."""

    def close(self) -> None:
        """Leave the group."""


class SingleProcess:
    """Group of one process: nothing is copied.

    >>> SingleProcess().gather(b"mine")
    [b'mine']
    """

    rank = 0
    world = 1

    def gather(self, data: bytes) -> list[bytes]:
        """Return our own bytes alone."""
        return [data]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Leave the tensors as they are."""

    def broadcast(self, data: bytes | None) -> bytes:
        """Return our own bytes."""
        assert data is not None
        return data

    def close(self) -> None:
        """Do nothing."""


def backend(device: str) -> str:
    """Return what connects processes whose tensors are on a device: NCCL for those of GPUs.

    >>> backend("cuda")
    'cpu:gloo,cuda:nccl'
    """
    return "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"


class TorchGroup:
    """Processes on one machine or several: bytes go by gloo, gradients by NCCL where GPUs are."""

    def __init__(self, device: str = "cpu", *, timeout_seconds: float = 60.0) -> None:
        """Set how long a rank may keep the others waiting; `start` connects them.

        Args:
            device: of the tensors to be summed; ``cuda`` is then the GPU of this rank on its
                machine.
            timeout_seconds: for any call.
        """
        self.rank = -1
        self.world = 0
        self._device = device
        self._timeout_seconds = timeout_seconds

    def start(self) -> None:
        """Connect to the other ranks by torchrun's environment variables.

        They are RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

        Raises:
            RankLost: not all of them came in time.
        """
        timeout = timedelta(seconds=self._timeout_seconds)
        # A launcher that starts all ranks again may keep its store, with the addresses of the dead
        attempt = f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        with self._rank_lost("rendezvous"):
            store, rank, world = next(rendezvous("env://", timeout=timeout))
            own = PrefixStore(attempt, store)
            if self._device.startswith("cuda"):
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
            dist.init_process_group(
                backend(self._device), store=own, rank=rank, world_size=world, timeout=timeout
            )
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of every rank, in rank order.

        Raises:
            RankLost: a rank is gone, or kept us waiting too long; so for every call.
        """
        sizes = torch.zeros(self.world, dtype=torch.int64)
        with self._rank_lost("gather"):
            dist.all_gather(list(torch.split(sizes, 1)), torch.tensor([len(data)]))
            # gloo gathers equal sizes: all are made as long as the longest
            row = torch.zeros(int(sizes.max()), dtype=torch.uint8)
            row[: len(data)] = _to_tensor(data)
            rows = [torch.empty_like(row) for _ in range(self.world)]
            dist.all_gather(rows, row)
        sized = zip(rows, sizes.tolist(), strict=True)
        return [row[:size].numpy().tobytes() for row, size in sized]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, in one message."""
        if not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        with self._rank_lost("sum"):
            dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        views = [part.view_as(tensor) for tensor, part in zip(tensors, parts, strict=True)]
        with torch.no_grad():
            torch._foreach_copy_(list(tensors), views)

    def broadcast(self, data: bytes | None) -> bytes:
        """Return the bytes of rank 0."""
        size = torch.tensor([len(data or b"")])
        with self._rank_lost("broadcast"):
            dist.broadcast(size, 0)
            row = torch.zeros(int(size), dtype=torch.uint8)
            if self.rank == 0 and data:
                row[:] = _to_tensor(data)
            dist.broadcast(row, 0)
        return row.numpy().tobytes()

    def close(self) -> None:
        """Leave the others; a call of theirs that waits for us fails."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextlib.contextmanager
    def _rank_lost(self, what: str) -> Iterator[None]:
        """Translate torch's errors of other ranks, all of which are RuntimeError."""
        try:
            yield
        except RuntimeError as error:
            raise RankLost(
                rank=self.rank, what=what, timeout_seconds=self._timeout_seconds, cause=error
            ) from error


def _to_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())
