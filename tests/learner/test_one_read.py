"""A step on a device: everything is queued, then one read, and no other wait."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from benchmarks.accelerating.model import SMALL, bert
from benchmarks.accelerating.pretended import Pretended
from benchmarks.accelerating.twin import Repeating, on_device, tensors_of
from learner.encoder.encoder import Encoder
from learner.losses.task_weights import TaskWeights
from learner.passes.captures import Captures
from learner.passes.flat_passes import Flat
from learner.passes.varlen import Bounds
from learner.trainer import Trainer
from learner.training.budget import PrivacyConfig
from learner.training.rehearsal import RehearsalConfig
from tests.learner.training import batches, config, same, trainer, weights_of
from weighting.config import WeigherConfig
from weighting.sample import Sample
from weighting.tasks import PURCHASE
from weighting.weigher import Weigher

SETTINGS: dict[str, dict[str, Any]] = {
    "the plain loss": {},
    "listwise": {"loss": "listwise", "label_smoothing": 0.1},
    "pairwise": {"loss": "pairwise"},
    "squared error": {"loss": "squared_error", "compute_share": 0.5},
    "across lists": {"loss": "in_batch_softmax"},
    "purchases over all and values": {
        "task_weights": TaskWeights(purchase_over_all=0.5, value=1.0)
    },
    "micro-batches": {"max_step_tokens": 64},
    "dropout": {"dropout": 0.1},
    "cross-encoder": {"interaction": "cross_encoder"},
    "upper layers": {"tuning": "top:1"},
    "an adapter": {"tuning": "lora:2"},
    "nothing of the encoder": {"tuning": "frozen", "l2_sp_samples": 100.0},
    "adversarial": {"adversarial_steps": 2},
    "SGD": {"optimizer": "sgd", "lr": 0.05},
    "a pull to the start": {"l2_sp_samples": 100.0, "weight_decay": 0.1},
    "rehearsal": {"rehearsal": RehearsalConfig(size_bytes=1 << 20, share=0.5)},
    "bfloat16": {"precision": "bfloat16"},
}


def valued(samples: list[Sample]) -> list[Sample]:
    """What was bought has a price."""
    return [
        msgspec.structs.replace(s, value=5.0) if s.task == PURCHASE and s.label else s
        for s in samples
    ]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_reads_once_and_waits_for_nothing_else(name: str) -> None:
    own = trainer(WeigherConfig(exponent=0.0), **SETTINGS[name])
    with Pretended(on_device(own)) as gpu:
        for number, batch in enumerate(batches(4), 1):
            samples = [] if number == 3 else valued(batch)
            assert own.step(samples).result == "ok"
            assert (gpu.reads, gpu.waits) == (number, [])


def test_the_same_samples_again_are_one_read() -> None:
    own = trainer()
    with Pretended(on_device(own)) as gpu:
        report = own.step(batches(1)[0])
        assert own.repeat(report.weighted) is not None
    assert (gpu.reads, gpu.waits) == (2, [])


def test_noise_that_hides_the_gradient_is_one_read_more() -> None:
    private = config(privacy=PrivacyConfig(noise_multiplier=0.5))
    own = Trainer(private, Weigher(WeigherConfig()), secret=bytes)
    with Pretended(on_device(own)) as gpu:
        own.step(batches(1)[0])
    assert (gpu.reads, gpu.waits) == (2, [])


def test_a_number_asked_for_in_a_pass_is_seen() -> None:
    own = trainer()
    seen = []

    def ask(module: torch.nn.Module, given: Any, output: Any) -> None:
        seen.append(output.sum().item())

    own.ranker.encoder.model.embeddings.register_forward_hook(ask)
    with Pretended(on_device(own)) as gpu:
        own.step(batches(1)[0])
    assert seen
    assert any("item" in wait and "test_one_read" in wait for wait in gpu.waits)


def test_a_step_that_is_not_finite_reads_once_and_moves_nothing() -> None:
    own, (first, second) = trainer(), batches(2)
    with Pretended(on_device(own)) as gpu:
        own.step(first)
        with torch.no_grad():
            own.ranker.bias.fill_(float("nan"))
        before = weights_of(own)
        before.pop("bias")
        assert own.step(second).result == "nonfinite"
        assert (gpu.reads, gpu.waits) == (2, [])
    after = weights_of(own)
    after.pop("bias")
    assert same(before, after)


def within_texts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Bounds,
    *,
    causal: bool,
    scale: float | None,
    seen: Bounds,
) -> Tensor:
    """Attention of all texts by a mask, made where they are."""
    assert seen is bounds, "no prefixes"
    token = torch.arange(len(query), device=query.device)
    text = torch.searchsorted(bounds.offsets, token, right=True)
    own = text[:, None] == text[None, :]
    q, k, v = (states.transpose(0, 1)[None] for states in (query, key, value))
    found = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=own, scale=scale)
    return found[0].transpose(0, 1)


def test_flat_passes_and_their_captures_wait_for_nothing_once_they_are_made() -> None:
    model, twin = bert(SMALL, "cpu"), Repeating()
    encoder = Encoder(
        model, tuning="full", passes=Flat(model, within_texts, Captures(twin)), precision="float32"
    )
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(1_000, 30_000, (n,), generator=draw).numpy() for n in (7, 3, 30, 12)]
    with Pretended(tensors_of(model)) as gpu:
        for _ in range(2):
            gpu.waits.clear()  # a capture is compared when it is made
            encoder.zero_grad()
            encoder(texts).square().sum(0).amax().backward()
    assert twin.number > 2
    assert (gpu.reads, gpu.waits) == (0, [])
