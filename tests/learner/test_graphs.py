"""Recordings of functions by a recorder that runs them again: inputs, gradients, threads."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.accelerating.twin import Repeating
from learner.passes.graphs import Recording


class Product(nn.Module):
    """x W + b, beside a parameter that is not used."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(width, width, generator=draw))
        self.b = nn.Parameter(torch.randn(width, generator=draw))
        self.unused = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor, more: Tensor) -> Tensor:
        return torch.tanh(x @ self.w + self.b) * more


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(seed: int) -> list[Tensor]:
    return [drawn(seed, 4, 3), drawn(100 + seed, 4, 1)]


def recorded(run: Product, *, learns: bool = True) -> tuple[Recording, Repeating, list[Tensor]]:
    recorder, own = Repeating(), inputs(0)
    moving = list(run.parameters()) if learns else []
    return Recording(recorder, run, own, moving), recorder, own


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_each_replay_is_the_function_with_its_gradient(seeds: list[int]) -> None:
    run, twin = Product(), Product()
    recording, _, _ = recorded(run)
    for seed in seeds:
        both = []
        for module, call in ((run, recording), (twin, twin)):
            found = call(*inputs(seed))
            (found * drawn(seed, 4, 3)).sum().backward()
            assert module.unused.grad is None
            assert module.w.grad is not None
            assert module.b.grad is not None
            both.append([found.detach().clone(), module.w.grad.clone(), module.b.grad.clone()])
            module.zero_grad()
            with torch.no_grad():
                module.w.add_(0.1)  # in place, as an optimiser moves it
        for one, other in zip(*both, strict=True):
            torch.testing.assert_close(one, other)


def test_inputs_are_copied_to_where_the_recording_reads() -> None:
    recording, _, own = recorded(Product())
    places, given_now = [tensor.data_ptr() for tensor in own], inputs(1)
    recording(*given_now)
    assert [tensor.data_ptr() for tensor in own] == places
    for mine, new in zip(own, given_now, strict=True):
        assert torch.equal(mine, new)
        assert mine.data_ptr() != new.data_ptr()
    with pytest.raises(AssertionError, match="another size"):
        recording(drawn(1, 2, 3), drawn(1, 4, 1))  # which a copy would spread


def test_a_result_stays_and_a_gradient_is_lent_until_the_next_replay() -> None:
    run = Product()
    recording, recorder, _ = recorded(run)
    first = recording(*inputs(1))
    first.sum().backward()  # type: ignore[no-untyped-call]
    kept, gradient = first.detach().clone(), run.w.grad
    assert gradient is not None
    lent = {tensor.data_ptr() for made in recorder.made for tensor in made if tensor is not None}
    assert gradient.data_ptr() in lent
    assert first.data_ptr() not in lent
    run.zero_grad()
    recording(*inputs(2))
    assert torch.equal(first, kept)
    assert bool(gradient.isnan().all())


def test_a_pass_that_was_replayed_over_has_no_backward_pass() -> None:
    recording, _, _ = recorded(Product())
    first = recording(*inputs(1))
    second = recording(*inputs(2))
    with pytest.raises(RuntimeError, match="replayed again before its backward pass"):
        first.sum().backward()  # type: ignore[no-untyped-call]
    second.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="replayed again"):  # its activations are gone
        second.sum().backward()  # type: ignore[no-untyped-call]


def test_no_graph_of_the_recording_is_left() -> None:
    made: list[weakref.ref[Tensor]] = []
    own = Product()

    class Watched(nn.Module):
        def forward(self, x: Tensor, more: Tensor) -> Tensor:
            found: Tensor = own(x, more)
            made.append(weakref.ref(found))
            return found

    recording = Recording(Repeating(), Watched(), inputs(0), list(own.parameters()))
    assert len(made) == 2  # to warm up, and recorded
    assert all(ref() is None for ref in made)
    assert recording(*inputs(1)).requires_grad


def test_without_parameters_that_move_the_forward_pass_alone_is_recorded() -> None:
    run = Product()
    with torch.inference_mode():
        recording, recorder, _ = recorded(run, learns=False)
        found = recording(*inputs(3))
        assert torch.equal(found, run(*inputs(3)))
    assert len(recorder.made) == 1
    assert found.is_inference()


def test_threads_that_share_a_recording_take_turns() -> None:
    run = Product()
    with torch.inference_mode():
        recording, _, _ = recorded(run, learns=False)
        expected = [run(*inputs(seed)) for seed in range(200)]

    def replay(seed: int) -> bool:
        with torch.inference_mode():
            return torch.equal(recording(*inputs(seed)), expected[seed])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(replay, range(200)))


def test_nothing_is_replayed_while_another_recording_is_warmed_up() -> None:
    held: list[bool] = []

    class Noting(Repeating):
        def warm_up(self, run: Callable[[], object]) -> None:
            held.append(self.turn.locked())
            super().warm_up(run)

    recorder = Noting()
    Recording(recorder, Product(), inputs(0))
    assert held == [True]
    assert not recorder.turn.locked()


def test_torch_takes_the_arguments_that_it_is_given_on_a_gpu() -> None:
    inspect.signature(torch.cuda.graph).bind(
        object(), pool=(0, 1), stream=None, capture_error_mode="thread_local"
    )
    assert callable(torch.cuda.graph_pool_handle)
    assert callable(torch.cuda.CUDAGraph.replay)
