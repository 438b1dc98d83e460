"""The ranks that take a step together: each hears all, in rank order.

Everything is exact for a fixed number of ranks: bytes are gathered in rank order, and gloo's ring adds up each part of a tensor in the
order of the ring, whoever comes first; each part is added up once, so that all ranks hold the same bits.
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
    """All ranks, as seen by one of them. Every rank makes the same calls in the same order."""

    @property
    def rank(self) -> int:
        """Our own number, from 0."""

    @property
    def world(self) -> int:
        """How many there are."""

    def gather(self, data: bytes) -> list[bytes]:
        """What every rank gave, in rank order; any sizes."""

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all ranks in place of each tensor; every rank gives the same shapes."""

    def broadcast(self, data: bytes | None) -> bytes:
        """What rank 0 gave; the others give None."""

    def close(self) -> None:
        """Leave."""


class SingleProcess:
    """Nobody else: nothing is copied.

    >>> OneRank().gather(b"mine")
    [b'mine']
    """

    rank = 0
    world = 1

    def gather(self, data: bytes) -> list[bytes]:
        """Return ours alone."""
        return [data]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Leave the tensors as they are."""

    def broadcast(self, data: bytes | None) -> bytes:
        """Return our own."""
        assert data is not None
        return data

    def close(self) -> None:
        """Do nothing."""


class GlooGroup:
    """Ranks in processes of their own, on one machine or several, over gloo."""

    def __init__(self, *, timeout_seconds: float = 60.0) -> None:
        """Know how long a rank may keep the others waiting; `start` meets them."""
        self.rank = -1
        self.world = 0
        self._timeout_seconds = timeout_seconds

    def start(self) -> None:
        """Meet the other ranks, as torchrun's environment variables say: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.

        Raises:
            RankLost: not all of them came in time.
        """
        timeout = timedelta(seconds=self._timeout_seconds)
        with self._together("rendezvous"):
            store, rank, world = next(rendezvous("env://", timeout=timeout))
            # A launcher that starts all ranks again may keep its store, and there the addresses of the ranks that are dead
            attempt = PrefixStore(
                f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
            )
            dist.init_process_group(
                "gloo", store=attempt, rank=rank, world_size=world, timeout=timeout
            )
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def gather(self, data: bytes) -> list[bytes]:
        """What every rank gave, in rank order.

        Raises:
            RankLost: a rank is gone, or kept us waiting too long; so for every call.
        """
        sizes = torch.zeros(self.world, dtype=torch.int64)
        with self._together("gather"):
            dist.all_gather(list(torch.split(sizes, 1)), torch.tensor([len(data)]))
            row = torch.zeros(
                int(sizes.max()), dtype=torch.uint8
            )  # gloo gathers equal sizes: all are made as long as the longest
            row[: len(data)] = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
            rows = [torch.empty_like(row) for _ in range(self.world)]
            dist.all_gather(rows, row)
        return [
            row[:size].numpy().tobytes() for row, size in zip(rows, sizes.tolist(), strict=True)
        ]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all ranks in place of each tensor; all of them travel as one."""
        if not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1).cpu() for tensor in tensors])
        with self._together("sum"):
            dist.all_reduce(flat)
        with torch.no_grad():
            for tensor, part in zip(
                tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True
            ):
                tensor.copy_(part.view_as(tensor))

    def broadcast(self, data: bytes | None) -> bytes:
        """What rank 0 gave."""
        size = torch.tensor([len(data or b"")])
        with self._together("broadcast"):
            dist.broadcast(size, 0)
            row = torch.zeros(int(size), dtype=torch.uint8)
            if self.rank == 0 and data:
                row[:] = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
            dist.broadcast(row, 0)
        return row.numpy().tobytes()

    def close(self) -> None:
        """Leave the others; a call of theirs that waits for us fails."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextlib.contextmanager
    def _together(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch's errors of its ranks are all of this class
            raise RankLost(
                rank=self.rank, what=what, timeout_seconds=self._timeout_seconds, cause=error
            ) from error
