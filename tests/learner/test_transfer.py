"""Copies between host and device: what arrives is what was sent."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.transfer import to_device, to_host

KINDS = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool, torch.uint8)
CPU = torch.device("cpu")
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@settings(deadline=None)
@given(st.lists(st.tuples(shapes, st.sampled_from(KINDS), st.booleans()), max_size=6))
def test_tensors_of_any_shapes_and_types_arrive_whole(
    given: list[tuple[tuple[int, ...], torch.dtype, bool]],
) -> None:
    draw = torch.Generator().manual_seed(0)
    sent = []
    for shape, kind, turned in given:
        own = torch.randint(0, 2, shape, generator=draw).to(kind)
        sent.append(own.transpose(0, -1) if turned and len(shape) > 1 else own)
    found = to_device(sent, CPU)
    assert len(found) == len(sent)
    for ours, theirs in zip(found, sent, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert torch.equal(ours, theirs)
        assert ours.is_contiguous()


def test_each_tensor_begins_where_one_of_its_own_would() -> None:
    """Kernels may round by address."""
    sent = to_device([torch.ones(3), torch.ones(1, dtype=torch.int64), torch.ones(5)], CPU)
    assert all(own.data_ptr() % 64 == 0 for own in sent)


@given(st.lists(shapes, min_size=1, max_size=6))
def test_what_is_read_has_shape_and_bits(given: list[tuple[int, ...]]) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=draw, requires_grad=True) for shape in given]
    found = to_host(tensors)
    assert len(found) == len(tensors)
    for ours, theirs in zip(found, tensors, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs.detach().numpy(), strict=True)
