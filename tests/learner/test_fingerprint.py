"""The fingerprint tells apart what gives other bits: kernels, and the passes of an encoder."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from learner import arithmetic
from learner.fingerprint import fingerprint
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.training import adamw_formula
from tests.learner.saving import cut, files, owner

PRECISIONS = ("float32", "bfloat16")


def rounded(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Tensor | None = None
) -> Tensor:
    """Attention by products of another build: a softmax that is rounded before it."""
    scores = (query @ key.transpose(-1, -2)) * scale
    return (scores if mask is None else scores + mask.to(scores.dtype)).softmax(-1) @ value


def plain(query: Tensor, key: Tensor, value: Tensor, *, scale: float, **others: object) -> Tensor:
    """The attention of a build without torch's kernel."""
    assert not any(others.values())
    return ((query @ key.transpose(-1, -2)) * scale).softmax(-1) @ value


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("threads", [1, 2])
def test_it_is_the_same_each_time_whatever_the_caller_does(precision: str, threads: int) -> None:
    arithmetic.use(threads)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = fingerprint(precision)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    with torch.inference_mode():
        assert fingerprint(precision) == first
    with torch.no_grad():
        assert fingerprint(precision) == first
    found = []

    def elsewhere() -> None:
        arithmetic.use(threads)
        found.append(fingerprint(precision))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [first]


def test_another_attention_under_bfloat16_is_another_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arithmetic.use(1)
    known = {precision: fingerprint(precision) for precision in PRECISIONS}
    monkeypatch.setattr("learner.passes.aligned.by_products", rounded)
    other = fingerprint("bfloat16")
    assert other.pop("encoder") != known["bfloat16"].pop("encoder")
    assert other == known["bfloat16"]
    assert fingerprint() == known["float32"]


def test_another_attention_under_float32_is_another_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arithmetic.use(1)
    known = fingerprint()
    monkeypatch.setattr("learner.passes.packing.scaled_dot_product_attention", plain)
    assert fingerprint()["encoder"] != known["encoder"]


def test_another_step_of_the_optimizer_is_another_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arithmetic.use(1)
    known = fingerprint()
    monkeypatch.setattr("learner.training.adamw_formula._move_fused", adamw_formula._move)
    other = fingerprint()
    assert other.pop("optimizer") != known.pop("optimizer")
    assert other == known


@pytest.mark.parametrize("digest", ["encoder", "optimizer"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_store_of_a_build_without_one_of_the_digests_is_not_bit_exact_from_here_on(
    precision: str, digest: str, tmp_path: Path
) -> None:
    now = fingerprint(precision)
    before = {name: value for name, value in now.items() if name != digest}
    for number, (written, exact) in enumerate([(before, False), (now, True)]):
        root = tmp_path / str(number)
        owner(root).save(files(1), cut(1, fingerprint=dict(written)))
        point = Checkpointer(root, Disk(), lambda: 0.0).look(initial=cut(0, fingerprint=dict(now)))
        assert point.run_state.bit_exact is exact
