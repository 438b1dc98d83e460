"""Scores of a step's samples, as processes exchange them.

Legend: n samples, D width, K tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
import torch

from learner.ranker import PairLogits
from weighting.tasks import TASKS, TaskName

Column: TypeAlias = np.ndarray[Any, Any]


class Scored(msgspec.Struct, kw_only=True, frozen=True, eq=False):
    """Logits, vectors and loss of n samples; columns are float32, NaN of samples not drawn.

    Attributes:
        loss: the samples' part of L.
        by_task: task -> (n,) logit.
        base: (n,) logit of the task without a parent, without the query's residual.
        items: (n, D) vectors of the items.
        value: (n,) of the value head; empty without one.
    """

    loss: float
    by_task: dict[TaskName, Column]
    base: Column
    items: Column
    value: Column


_encode = msgspec.msgpack.Encoder(enc_hook=lambda column: column.tobytes()).encode
_decode = msgspec.msgpack.Decoder(
    Scored, dec_hook=lambda kind, data: np.frombuffer(data, np.float32)
).decode


def encode(scored: Scored) -> bytes:
    """Return scores as msgpack."""
    return _encode(scored)


def decode(data: bytes) -> Scored:
    """Return the scores that `encode` wrote; `items` comes back flat."""
    return _decode(data)


def concatenated(shares: Sequence[Scored], *, width: int) -> Scored:
    """Join the scores of all processes, in rank order."""
    return Scored(
        loss=sum(share.loss for share in shares),
        by_task={task: np.concatenate([s.by_task[task] for s in shares]) for task in TASKS},
        base=np.concatenate([share.base for share in shares]),
        items=np.concatenate([share.items.reshape(-1, width) for share in shares]),
        value=np.concatenate([share.value for share in shares]),
    )


class Share(msgspec.Struct, kw_only=True, frozen=True):
    """What the processes of a step tell each other before anything is read from a device.

    Attributes:
        num_micro_batches: in which the samples were scored.
        has_gradient: per parameter.
    """

    num_micro_batches: int
    has_gradient: list[bool]


class Collected:
    """Losses and logits of micro-batches, on the device until somebody has read them."""

    def __init__(self, width: int, num_samples: int, *, has_value: bool = False) -> None:
        """Start empty, for vectors of this width, of a ranker with a value head or without."""
        self._width = width
        self._num_samples = num_samples
        self._has_value = has_value
        self._losses: list[torch.Tensor] = []
        self._rows: list[torch.Tensor] = []
        self._places: list[int] = []

    def add(self, loss: torch.Tensor, logits: PairLogits, places: Sequence[int]) -> None:
        """Take a micro-batch; `places` are its samples' places among all."""
        columns = [*(logits.by_task[task] for task in TASKS), logits.base]
        value = [] if logits.value is None else [logits.value[:, None]]
        rows = torch.cat([torch.stack(columns, dim=1), logits.items, *value], dim=1)
        self._rows.append(rows.detach())
        self._losses.append(loss.detach())
        self._places += places

    @property
    def unread(self) -> list[torch.Tensor]:
        """Return what is to be read from the device for `scored`."""
        return [*self._losses, *self._rows]

    def scored(self, read: Sequence[Column]) -> Scored:
        """Return the scores.

        Args:
            read: what was `unread`, on the host.
        """
        end = len(TASKS) + 1 + self._width
        num_columns = end + self._has_value
        losses, rows = read[: len(self._losses)], read[len(self._losses) :]
        scores = np.concatenate(rows) if rows else np.zeros(0, dtype=np.float32)
        table = np.full((self._num_samples, num_columns), np.nan, dtype=np.float32)
        table[self._places] = scores.reshape(-1, num_columns)
        columns = [np.ascontiguousarray(table[:, k]) for k in range(len(TASKS) + 1)]
        return Scored(
            loss=sum(map(float, losses), 0.0),
            by_task=dict(zip(TASKS, columns, strict=False)),
            base=columns[-1],
            items=np.ascontiguousarray(table[:, len(TASKS) + 1 : end]),
            value=np.ascontiguousarray(table[:, end:]).reshape(-1),
        )
