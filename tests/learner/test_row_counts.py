"""Products in bfloat16 give a row the same bits beside any others, whatever kernels oneDNN has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from learner import arithmetic, row_counts
from learner.passes import served_layers
from learner.row_counts import MANY, RowCounts

SHAPES = [(1536, 384), (384, 1536), (384, 384), (768, 2304), (3072, 768), (7, 3)]


def lowered(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The product as training takes it."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return arithmetic.linear(rows.float(), weight.float(), bias)


def laid_out(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The product as a server takes it."""
    assert bias is not None
    return served_layers._laid_out(weight, bias)(rows)


@pytest.mark.parametrize("call", [lowered, arithmetic.linear, laid_out])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_row_of_a_product_in_bfloat16_has_the_same_bits_among_any_others(
    call: Callable[..., torch.Tensor], threads: int, inputs: int, outputs: int
) -> None:
    arithmetic.use(threads)
    rows, weight, bias = row_counts.probe(outputs, inputs)
    with torch.inference_mode():
        together = functional.linear(rows.repeat(MANY // len(rows), 1), weight, bias)
        for number in (*range(1, 36, 3), 33, 64, 368, 500, 1_040, MANY, 2_100):
            given_rows = rows.repeat(-(-number // len(rows)), 1)[:number]
            expected = together[: len(rows)].repeat(-(-number // len(rows)), 1)[:number]
            assert torch.equal(call(given_rows, weight, bias), expected), number


@settings(deadline=None, max_examples=60)
@given(st.sets(st.sampled_from(range(1, MANY)), max_size=40), st.integers(1, 3 * MANY))
def test_numbers_of_rows_with_other_bits_are_never_multiplied_at_once(
    odd: set[int], number: int
) -> None:
    asked = []

    def product(rows: torch.Tensor) -> torch.Tensor:
        asked.append(len(rows))
        return 2 * rows + (len(rows) in odd)

    rows, _, _ = row_counts.probe(3, 4)
    counts = RowCounts(product, rows, row_counts.expected(product, rows))
    given_rows = torch.arange(4.0 * number).view(number, 4)
    counts.parts(number)
    asked.clear()
    torch.testing.assert_close(counts.through(product, given_rows), 2 * given_rows)
    assert not odd.intersection(asked)
    asked.clear()
    counts.through(product, given_rows)
    assert asked == [part.filled for part in counts.parts(number)]


def test_a_number_that_is_few_of_any_is_filled_up_and_one_among_many_is_divided() -> None:
    def product(rows: torch.Tensor) -> torch.Tensor:
        return rows + (len(rows) not in (32, 448, MANY))

    rows, _, _ = row_counts.probe(3, 4)
    counts = RowCounts(product, rows, row_counts.expected(product, rows))
    assert counts.parts(300) == ((300, 448),)
    assert counts.parts(20) == ((20, 32),)
    assert counts.parts(0) == ()
    assert counts.through(product, rows[:0]).shape == (0, 4)
    assert counts.parts(70) == ((32, 32), (32, 32), (6, 32))


@pytest.mark.parametrize("with_bias", [False, True])
def test_parts_have_the_gradient_of_the_whole(
    with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    arithmetic.use(1)
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(2, 35, 384, generator=draw)
    gradients = []
    for parts in (((70, 70),), ((32, 32), (32, 32), (6, 8))):
        named = tuple(row_counts.Part(*part) for part in parts)
        monkeypatch.setattr(RowCounts, "parts", lambda _self, _number, own=named: own)
        rows = states.clone().requires_grad_()
        weight = torch.linspace(-1, 1, 96 * 384).view(96, 384).sin().requires_grad_()
        bias = torch.linspace(-1, 1, 96).requires_grad_() if with_bias else None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = arithmetic.linear(rows, weight, bias)
        assert found.shape == (2, 35, 96)
        found.float().sin().sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([rows.grad, weight.grad, *([] if bias is None else [bias.grad])])
    for whole, divided in zip(*gradients, strict=True):
        assert whole is not None
        torch.testing.assert_close(divided, whole, rtol=0.02, atol=0.3)


@pytest.mark.parametrize("alike", [False, True])
def test_maps_that_another_product_would_add_up_otherwise_are_not_joined(
    alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    arithmetic.use(1)
    monkeypatch.setattr(served_layers, "is_joined_alike", lambda *_: alike)
    maps = [torch.nn.Linear(48, 48).bfloat16() for _ in range(3)]
    rows = torch.randn(9, 48)
    with torch.inference_mode():
        found = served_layers._joined(maps)(rows)
        expected = torch.cat([own(rows.bfloat16()) for own in maps], dim=1)
    assert torch.equal(found, expected)
