"""Products in bfloat16 on a CPU that give a row the same bits beside any other rows.

oneDNN chooses a kernel by the number of rows. Most kernels add up in one order, but on processors
with AMX some divide long sums: of 1,536 inputs and 384 outputs, 33 to 368 rows have other bits than
fewer or more rows have. So each number of rows is tried once, and rows are added or taken in parts
where a product of so many gives other bits than one of `MANY`.

Legend: n rows, K inputs, N outputs of a product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Product: TypeAlias = Callable[[Tensor], Tensor]
"""Maps rows (n, K) in bfloat16 to (n, N)."""

MANY = 2_048
"""Rows whose product says which bits a row has to have."""
_DISTINCT = 16
"""Rows of a probe; they are repeated."""
_SIZES = (*range(8, 64, 8), *(size << k for k in range(5) for size in range(64, 128, 8)), MANY)
"""Numbers of rows that others are filled up to, or taken in parts of."""
_MOST_FILLED = 2
"""Rows of a call over those given; beyond it they are taken in parts."""


class Part(NamedTuple):
    """Rows of one call: so many of those given, filled up to so many."""

    number: int
    filled: int


class RowCounts:
    """The numbers of rows that one kind of product may have at once.

    Attributes:
        expected: what a row of the probe has to give, (`_DISTINCT`, N).
    """

    def __init__(self, product: Product, rows: Tensor, expected: Tensor) -> None:
        """Try nothing yet.

        Args:
            product: with the weight of a probe.
            rows: of the probe (`_DISTINCT`, K).
            expected: what a row has to give, (`_DISTINCT`, N).
        """
        self.expected = expected
        self._product = product
        self._rows = rows
        self._known: dict[int, bool] = {}
        self._parts: dict[int, tuple[Part, ...]] = {}

    def through(self, product: Product, rows: Tensor) -> Tensor:
        """Return the product (n, N) of rows (n, K), in as many calls as it takes."""
        parts = self.parts(len(rows))
        if len(parts) <= 1 and all(number == filled for number, filled in parts):
            return product(rows)
        found, start = [], 0
        for number, filled in parts:
            own = rows[start : start + number]
            start += number
            if filled > number:
                own = torch.cat([own, own.new_zeros(filled - number, own.shape[1])])
            found.append(product(own)[:number])
        return torch.cat(found)

    def parts(self, number: int) -> tuple[Part, ...]:
        """Return how so many rows are to be multiplied."""
        found = self._parts.get(number)
        if found is None:
            found = self._parts[number] = tuple(self._divided(number))
        return found

    def _divided(self, number: int) -> Iterator[Part]:
        while number and not self.is_steady(number):
            larger = [n for n in _SIZES if n > number]
            slightly = [n for n in larger if n <= _MOST_FILLED * number]
            smaller = [n for n in reversed(_SIZES) if n < number]
            size = next(filter(self.is_steady, (*slightly, *smaller, *larger)))
            yield Part(min(number, size), size)
            number -= min(number, size)
        if number:
            yield Part(number, number)

    def is_steady(self, number: int) -> bool:
        """Return whether rows have the expected bits among so many."""
        known = self._known.get(number)
        if known is None:
            times = -(-number // len(self._rows))
            found = self._product(self._rows.repeat(times, 1)[:number])
            known = torch.equal(found, self.expected.repeat(times, 1)[:number])
            self._known[number] = known
        return known


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return rows (..., K) times a weight (N, K) transposed, plus a bias (N,), in bfloat16.

    It carries a gradient where one is asked for.
    """
    number = rows.shape[:-1].numel()
    counts = of_linear(*weight.shape, bias is not None, torch.get_num_threads())
    if counts.parts(number) == (Part(number, number),):  # autocast rounds what it is given
        return functional.linear(rows, weight, bias)
    weight, bias = weight.bfloat16(), None if bias is None else bias.bfloat16()
    product = partial(functional.linear, weight=weight, bias=bias)
    found = counts.through(product, rows.reshape(number, -1).bfloat16())
    return found.view(*rows.shape[:-1], -1)


@lru_cache(maxsize=256)
def of_linear(outputs: int, inputs: int, with_bias: bool, threads: int) -> RowCounts:
    """Return the numbers of rows for torch's own product, in a thread with so many threads."""
    assert threads == torch.get_num_threads()
    rows, weight, bias = probe(outputs, inputs)
    product = partial(functional.linear, weight=weight, bias=bias if with_bias else None)
    return RowCounts(product, rows, expected(product, rows))


def expected(product: Product, rows: Tensor) -> Tensor:
    """Return what rows have to give, (`_DISTINCT`, N): what they give among `MANY`."""
    return product(rows.repeat(MANY // len(rows), 1))[: len(rows)]


@lru_cache(maxsize=64)
def is_joined_alike(number: int, outputs: int, inputs: int, threads: int) -> bool:
    """Return whether one product gives what so many products of the same rows do, (n, N) each."""
    assert threads == torch.get_num_threads()
    rows, weight, bias = probe(number * outputs, inputs)
    together = expected(partial(functional.linear, weight=weight, bias=bias), rows)
    alone = [
        expected(partial(functional.linear, weight=own, bias=bias[:outputs]), rows)
        for own in weight.chunk(number)
    ]
    return torch.equal(together, torch.cat(alone, dim=1))


def probe(outputs: int, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows (`_DISTINCT`, K), a weight (N, K) and a bias (N,) in bfloat16.

    Terms of a sum cancel out, the first against the last, so that rounding errors are all that is
    left of it, and tell in which order it was added up.
    """
    draw = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(n, inputs, generator=draw) for n in (_DISTINCT, outputs))
    half = inputs // 2
    rows[:, inputs - half :] = rows[:, :half].flip(1)
    weight[:, inputs - half :] = -weight[:, :half].flip(1)
    return rows.bfloat16(), weight.bfloat16(), torch.zeros(outputs, dtype=torch.bfloat16)
