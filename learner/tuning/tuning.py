"""Protocol of a fine-tuning method.

Legend: n texts, T tokens of one text, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from learner.passes.forward import Ids


class Tuning(Protocol):
    """An encoder, split into a prefix that never moves and the rest.

    Attributes:
        name: as written in `LearnerConfig.tuning` and in a version.
        keeps_prefix: whether prefixes are worth a cache.
    """

    name: str
    keeps_prefix: bool

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that training moves, in the encoder's order."""

    @property
    def entrance(self) -> nn.Module | None:
        """Return the module whose output goes into the lowest layer that moves.

        None where none moves.
        """

    def prefix(self, texts: Sequence[Ids]) -> list[Tensor]:
        """Return the frozen part's output for the n texts of a pass."""

    def finish(self, prefixes: Sequence[Tensor]) -> Tensor:
        """Return unit vectors (n, D) from prefixes.

        They carry a gradient where grad mode is on.
        """


def id_rows(texts: Sequence[Ids]) -> list[Tensor]:
    """Return each text's token ids (T,) as a tensor on the host."""
    return [torch.from_numpy(ids) for ids in texts]


def in_half_precision(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Round what is kept per text.

    Cached or not, so that a cache changes no result.
    """
    return [tensor.to(torch.float16) for tensor in tensors]


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Run without gradient, dropout or random numbers.

    What is kept must not depend on the step that computed it.
    """
    training = model.training
    if training:
        model.eval()
    with torch.no_grad():
        yield
    if training:
        model.train()
