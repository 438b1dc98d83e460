"""Small passes of a GPU, captured as CUDA graphs: one launch instead of some hundred.

Legend: T tokens and S texts of a size, D width.

A capture has memory of its own, and what it makes holds only until it is replayed: activations for
its backward pass, gradients, vectors. So it is used when nothing else can be waiting for what is in
there (`Captures.allowed`), and the pass goes the usual way else. At its first use a capture is
compared with that way on random texts of different lengths; if they disagree, nothing is captured
from then on.
"""

from __future__ import annotations

import copy
import logging
import math
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from learner.encoder.flat import FlatPass, Size, fits, laid_out

log = logging.getLogger("steelyard.learner")

SIZES = tuple(Size(tokens, tokens // 8, 128) for tokens in (512, 1_024, 2_048, 4_096))
_TOLERANCE = 2e-2
"""Of the largest number: bfloat16 has 8 bits, and gradients are added up in any order."""
_TINY = 1e-3
_HOOKS = ("transformers.", "learner.encoder.token_types")
_ROUNDS = 2

Inputs: TypeAlias = tuple[Tensor, Tensor]
Capture: TypeAlias = Callable[[nn.Module, Inputs], Callable[..., Tensor]]
"""A module, and inputs of the size to come -> the same function, forward and backward captured."""


def cuda_graphs(module: nn.Module, inputs: Inputs) -> Callable[..., Tensor]:
    """Capture a module's forward and backward pass; see `Capture`."""
    own = copy.copy(module)  # torch replaces its `forward`
    with torch.cuda.stream(torch.cuda.current_stream(inputs[0].device)):  # a failure leaves another
        made: Any = torch.cuda.make_graphed_callables(own, inputs, allow_unused_input=True)
    return cast(Callable[..., Tensor], made)


class Captures:
    """Captures of a model's passes, one per size, made when a pass first needs it.

    Attributes:
        trusted: false once a capture has failed or disagreed.
    """

    def __init__(self, capture: Capture = cuda_graphs, sizes: Sequence[Size] = SIZES) -> None:
        """Take what captures, and the sizes, the smallest first."""
        self._capture = capture
        self._sizes = sizes
        self._made: dict[tuple[int, Size], tuple[Callable[..., Tensor], tuple[int, ...]]] = {}
        self._models: list[Any] = []  # kept, so that their ids stay theirs
        self._waiting: weakref.ref[Any] | None = None
        self.trusted = True

    def size_of(self, lengths: Sequence[int]) -> Size | None:
        """Return the smallest size that has room for texts of these lengths, None if none has."""
        return next((size for size in self._sizes if fits(lengths, size)), None)

    def allowed(self, model: Any) -> bool:
        """Return whether a pass may be captured, or replayed, now.

        Not while a backward pass is still to come; not where gradients are kept already, which may
        lie in a capture's memory; not without a gradient, nor where somebody watches the layers.
        """
        if not (self.trusted and torch.is_grad_enabled()):
            return False
        if self._waiting is not None and self._waiting() is not None:
            return False
        moving = [p for p in model.parameters() if p.requires_grad]
        return (
            bool(moving)
            and all(p.grad is None for p in moving)
            and not any(map(_is_watched, model.modules()))
        )

    def run(self, flat: FlatPass, size: Size, inputs: Inputs) -> Tensor:
        """Return the vectors (S, D) of a pass, of memory of their own."""
        key, places = (id(flat.model), size), _addresses(flat.model)
        if key not in self._made or self._made[key][1] != places:
            made = self._checked(flat, size, inputs)
            if made is None:
                self.trusted = False
                self._made.clear()
                found: Tensor = flat(*inputs)
                return found
            self._models.append(flat.model)
            self._made[key] = made, places
        replayed = self._made[key][0]
        vectors: Tensor = _Own.apply(replayed(*inputs))  # type: ignore[no-untyped-call]
        self._waiting = weakref.ref(vectors.grad_fn)
        return vectors

    def _checked(self, flat: FlatPass, size: Size, inputs: Inputs) -> Callable[..., Tensor] | None:
        """Capture a pass, and compare it with what it stands for; None if they disagree."""
        device, shape = inputs[0].device, inputs[0].shape
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            examples = [self._example(flat, size, inputs, seed) for seed in range(_ROUNDS)]
            expected = [_gradients(flat, flat, *example) for example in examples]
            try:
                made = self._capture(flat, (inputs[0].clone(), inputs[1].clone()))
                found = [_gradients(flat, made, *example) for example in examples]
            except RuntimeError as error:  # torch's, of any kind
                log.warning("no CUDA graphs: a capture failed", extra={"error": str(error)})
                return None
        largest = max(map(difference, found, expected))
        if not largest <= _TOLERANCE:
            facts = {"difference": largest, "tokens": shape[0]}
            log.warning("no CUDA graphs: a captured pass gave something else", extra=facts)
            return None
        return made

    def _example(self, flat: FlatPass, size: Size, like: Inputs, seed: int) -> Inputs:
        """Return random texts of different lengths that fit a size."""
        draw = torch.Generator().manual_seed(seed)
        lengths: list[int] = []
        longest = max(1, min(size.longest, size.tokens // 4))
        while True:
            more = int(torch.randint(1, longest + 1, (1,), generator=draw))
            if not fits([*lengths, more], size):
                break
            lengths.append(more)
        tokens, device = like[0], like[0].device
        if tokens.is_floating_point():
            own = torch.randn(tokens.shape, generator=draw).to(tokens)
        else:
            most = int(flat.model.config.vocab_size)
            own = torch.randint(0, most, tokens.shape, generator=draw).to(device)
        places = laid_out(lengths or [1], size, flat.first_position)
        return own, places.to(device)


class _Own(torch.autograd.Function):
    """A copy, so that the next replay does not change it; its node lives until it is used."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        return vectors.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _gradients(flat: FlatPass, run: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Return vectors and the gradients of a sum over them; the parameters keep none."""
    vectors = run(*inputs)
    weight = torch.linspace(-1, 1, vectors.numel(), device=vectors.device).view_as(vectors)
    moving = [p for p in flat.model.parameters() if p.requires_grad]
    found = torch.autograd.grad((vectors * weight).sum(), moving, allow_unused=True)
    return [vectors.detach().clone(), *(g.clone() for g in found if g is not None)]


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference, as a share of the largest number of its tensor.

    What is tiny beside the others, as the gradient of the biases of keys, is rounding alone.
    """
    if len(found) != len(expected):
        return math.inf
    largest = [float(tensor.abs().max()) for tensor in expected]
    least = _TINY * max(largest[1:], default=0.0)
    return max(
        float((a - b).abs().max()) / max(own, least, sys.float_info.min)
        for a, b, own in zip(found, expected, largest, strict=True)
    )


def _is_watched(module: nn.Module) -> bool:
    """Return whether somebody has a hook who must be called each time.

    Those of transformers wait for a call, and those that give token types calculate on the device.
    """
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(not str(hook.__module__).startswith(_HOOKS) for hook in hooks)


def _addresses(model: Any) -> tuple[int, ...]:
    """Return where the parameters lie: a capture goes on reading them there."""
    return tuple(p.data_ptr() for p in model.parameters())
