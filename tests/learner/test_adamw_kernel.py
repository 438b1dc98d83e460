"""AdamW in one kernel: as Triton's interpreter runs it, and compiled for a GPU that is not here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.accelerating.twin import interpreted_adamw
from learner.training import adamw_formula
from learner.training.adamw import AdamW, Group, fastest
from learner.training.adamw_formula import Factors, Tensors, factors

pytest.importorskip("triton", reason="Triton comes with torch for CUDA")

from learner.training import adamw_kernel
from learner.training.adamw_kernel import PIECE, Fused

CPU = torch.device("cpu")


def fused() -> Fused:
    return Fused(interpreted_adamw())


def drawn(shapes: Sequence[tuple[int, ...]], seed: int = 0) -> list[Tensors]:
    """Parameters, gradients and moments."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for shape in shapes:
        p, g, m, v = torch.randn(4, *shape, generator=draw)
        found.append((0.1 * p, g, m, v.square()))
    return found


def moved(tensors: Sequence[Tensors], given: Factors, *, by: Any) -> list[torch.Tensor]:
    own = [(p.clone(), g.clone(), m.clone(), v.clone()) for p, g, m, v in tensors]
    by(own, given)
    return [tensor for tensors in own for tensor in tensors]


@settings(deadline=None, max_examples=25)
@given(
    st.one_of(st.just(1.0), st.floats(0.01, 20)),
    st.floats(0, 500),
    st.sampled_from([0.0, 0.1]),
    st.lists(st.sampled_from([(), (1,), (3,), (7, 9), (64, 32)]), min_size=1, max_size=4),
)
def test_the_kernel_moves_as_the_lists_of_torch_do(
    k: float, before: float, decay: float, shapes: list[tuple[int, ...]]
) -> None:
    tensors, step = drawn(shapes), factors(k, before + k, lr=0.01, decay=decay)
    found = moved(tensors, step, by=fused())
    expected = moved(tensors, step, by=adamw_formula.move)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * step.rate)


@pytest.mark.parametrize("shape", [(2 * PIECE + 5,), (3, PIECE)])
def test_a_parameter_of_many_pieces_moves_whole(shape: tuple[int, ...]) -> None:
    tensors, step = drawn([(5,), shape, (2, 2)]), factors(0.5, 3.0, lr=0.01, decay=0.1)
    found = moved(tensors, step, by=fused())
    expected = moved(tensors, step, by=adamw_formula.move)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_what_does_not_lie_in_a_row_is_moved_too() -> None:
    whole, step = drawn([(6, 4)])[0], factors(1.0, 1.0, lr=0.01, decay=0.0)
    turned = (whole[0].t().contiguous().t(), *whole[1:])
    expected = moved([whole], step, by=adamw_formula.move)
    fused()([turned], step)
    torch.testing.assert_close(turned[0], expected[0])


class _NoSignal:
    """A kernel that takes all of a gradient for noise."""

    def __getitem__(self, grid: tuple[int]) -> Any:
        def run(addresses: Any, pieces: Any, *given: float, **options: Any) -> None:
            without = Factors(*given)._replace(apart=0.0)
            interpreted_adamw()[grid](addresses, pieces, *without, **options)

        return run


def test_a_kernel_that_moves_otherwise_is_seen() -> None:
    assert Fused(interpreted_adamw()).difference(CPU) < 1e-3
    assert Fused(_NoSignal()).difference(CPU) > 1e-2


@pytest.mark.parametrize("reference", [8, 16, 64])
def test_a_stream_of_steps_teaches_the_same(reference: int) -> None:
    """Steps below, at and above the reference size; a parameter that comes later; a restart."""
    starts = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    gradients = torch.randn(8, 2, 40, generator=torch.Generator().manual_seed(1))
    ends = []
    for move in (None, fused()):
        moving = [torch.nn.Parameter(start.clone()) for start in starts]
        group = Group(parameters=moving, lr=0.01, weight_decay=0.1)
        own = AdamW([group], reference, move=move)
        for number, both in enumerate(gradients):
            own.zero_grad()
            moving[0].grad = both[0].clone()
            if number > 2:
                moving[1].grad = both[1].clone()
            own.step((16, 3, 200)[number % 3])
            if number == 4:
                state, own = own.state(), AdamW([group], reference, move=move)
                own.restore(state)
        ends.append(torch.stack([p.detach() for p in moving]))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ends[0], starts, atol=1e-3)


@pytest.mark.parametrize("aligned", [True, False])
def test_it_compiles_for_a_gpu_and_reads_four_numbers_at_once_where_they_are_aligned(
    aligned: bool,
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = Factors._fields
    source = ASTSource(
        fn=adamw_kernel.move,
        signature={
            "addresses": "*i64",
            "pieces": "*i64",
            **dict.fromkeys(names, "fp32"),
            **dict.fromkeys(("PIECE", "BLOCK", "ALIGNED"), "constexpr"),
        },
        constexprs={"PIECE": PIECE, "BLOCK": adamw_kernel._BLOCK, "ALIGNED": aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert len(compiled.asm["cubin"]) > 0
    assert ("ld.global.v4" in compiled.asm["ptx"]) == aligned


def test_a_cpu_keeps_its_formula() -> None:
    assert fastest(CPU) is adamw_formula.move


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_its_kernel_a_gpu_has_the_lists_of_torch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "steelyard.learner"):
        assert fastest(torch.device("cuda")) is adamw_formula.move
    assert "no AdamW in one kernel" in caplog.text
