"""Fingerprint of arithmetic: what bits of learning depend on, beside versions and settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from learner import arithmetic
from learner.encoder.encoder import Encoder
from learner.encoder.load import load_pretrained
from learner.training.adamw import AdamW, Group

_MODEL = "random:1x64"
_LENGTHS = (3, 9, 9, 40, 130, 260)
"""Tokens of the invented texts: some for each way that attention takes."""
_FIRST_ID, _NUM_IDS = 5, 37


def fingerprint(precision: str = "float32") -> dict[str, str | int]:
    """Return what the calling thread's results depend on, beside versions and settings.

    Keys: ``threads``; ``cpu``, the instruction set of torch's kernels; ``arithmetic``, a digest of
    what a few kernels give: another library or processor adds up in another order. Under
    ``bfloat16``, ``arithmetic_bfloat16`` as well. ``encoder``, a digest of what a small encoder
    gives and of its gradients in this precision, and ``optimizer``, one of what AdamW makes of
    gradients: another build of ours may calculate in another way, attention above all.
    """
    found: dict[str, str | int] = {
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "arithmetic": _digest_of_kernels(),
    }
    if precision == "bfloat16":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found["arithmetic_bfloat16"] = _digest_of_kernels()
    found["encoder"] = _digest_of_encoder(precision)
    found["optimizer"] = _digest_of_optimizer()
    return found


def _digest_of_kernels() -> str:
    """Return a digest of products of many rows and of few, and of other functions of them."""
    rows = torch.linspace(-3, 3, 64 * 384).reshape(64, 384)
    weight = torch.linspace(-1, 1, 384 * 384).reshape(384, 384).sin()
    products = arithmetic.linear(rows, weight)
    return _digest(
        (
            products,
            arithmetic.linear(rows[:8], weight),
            functional.gelu(rows),
            functional.layer_norm(products, (384,)),
            functional.softmax(products, dim=-1),
        )
    )


@torch.inference_mode(False)  # the caller may be in it, and there are no gradients then
def _digest_of_encoder(precision: str) -> str:
    """Return a digest of vectors, states of first tokens, and gradients of all parameters."""
    encoder = Encoder(load_pretrained(_MODEL).model, tuning="full", precision=precision)
    texts = [np.arange(length) % _NUM_IDS + _FIRST_ID for length in _LENGTHS]
    found = []
    for learns in (False, True):
        with torch.set_grad_enabled(learns):
            found += [encoder(texts), encoder.first_states(texts)]
    weight = torch.linspace(-1, 1, encoder.width)
    moving = encoder.trainable_parameters()
    loss = sum((weight * states).sum() for states in found[2:])
    assert isinstance(loss, Tensor)
    gradients = torch.autograd.grad(loss, moving, allow_unused=True)
    return _digest([*found, *(own for own in gradients if own is not None)])


def _digest_of_optimizer() -> str:
    """Return a digest of a parameter after steps of the reference size and of others."""
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 1_000).sin())
    group = Group(parameters=[parameter], lr=0.01, weight_decay=0.1)
    optimizer = AdamW([group], reference_batch_size=64)
    for number in (64, 17, 640, 64):
        parameter.grad = torch.linspace(-1, 1, 1_000) / number
        optimizer.step(number)
    return _digest([parameter])


def _digest(tensors: Iterable[Tensor]) -> str:
    """Return BLAKE2b-64."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(tensor.detach().float().numpy().tobytes())
    return digest.hexdigest()
