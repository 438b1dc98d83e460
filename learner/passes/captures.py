"""Small passes of a GPU, captured as CUDA graphs: one launch instead of some hundred.

Legend: T tokens and S texts of a size, D width.

All captures share memory, and what they make holds only until the next replay: activations for a
backward pass, gradients. So they are used when nothing else can be waiting for what is in there
(`Captures.allowed`), and the pass goes the usual way else. Passes that learn have their backward
pass captured; those of inference mode, by which a server answers, have none. At its first use a
capture is compared with the usual way on random texts of different lengths; if they disagree,
nothing is captured from then on.
"""

from __future__ import annotations

import logging
import math
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from learner.passes.flat import FlatPass, Size, fits, laid_out
from learner.passes.graphs import CudaGraphs, Recorder, Recording

log = logging.getLogger("steelyard.learner")

LONGEST = 128
"""Tokens of a text."""
SIZES = tuple(Size(n, n // 8, LONGEST) for n in (128, 256, 512, 1_024, 2_048, 4_096))
_TOLERANCE = 2e-2
"""Of the largest number: bfloat16 has 8 bits, and gradients are added up in any order."""
_TINY = 1e-3
_ROUNDS = 2

Inputs: TypeAlias = tuple[Tensor, Tensor]


class OnDevice:
    """A hook that does the same each time, on the device alone, so that a capture may hold it."""


class _Key(NamedTuple):
    """A pass that is captured by itself."""

    model: int
    size: Size
    learns: bool


class _Kept(NamedTuple):
    """A capture.

    Attributes:
        recording: of the pass.
        places: where the parameters lay.
        model: kept, so that its id stays its own.
    """

    recording: Recording
    places: tuple[int, ...]
    model: Any


class Captures:
    """Captures of passes, one per model and size, made when a pass first needs it.

    Threads may use them together where nothing learns.

    Attributes:
        sizes: the smallest first.
        trusted: false once a capture has failed or disagreed.
    """

    def __init__(self, recorder: Recorder | None = None, sizes: Sequence[Size] = SIZES) -> None:
        """Take what records, CUDA graphs by default, and the sizes, the smallest first."""
        self._recorder = CudaGraphs() if recorder is None else recorder
        self.sizes = sizes
        self._made: dict[_Key, _Kept] = {}
        self._waiting: weakref.ref[Any] | None = None
        self.trusted = True

    def __len__(self) -> int:
        """Return the number of captures made."""
        return len(self._made)

    def size_of(self, lengths: Sequence[int]) -> Size | None:
        """Return the smallest size that has room for texts of these lengths, None if none has."""
        return next((size for size in self.sizes if fits(lengths, size)), None)

    def allowed(self, model: Any) -> bool:
        """Return whether a pass may be captured, or replayed, now.

        Not while a backward pass is still to come; not where gradients are kept already, which may
        lie in a capture's memory; not where somebody watches the layers, and without a gradient in
        inference mode alone.
        """
        if not self.trusted:
            return False
        if self._waiting is not None and self._waiting() is not None:
            return False
        moving = _moving(model)
        if not (moving if _learns() else torch.is_inference_mode_enabled()):
            return False
        return all(p.grad is None for p in moving) and not any(map(_is_watched, model.modules()))

    def run(self, flat: FlatPass, size: Size, inputs: Inputs) -> Tensor:
        """Return the vectors (S, D) of a pass, of memory of their own."""
        key, places = _Key(id(flat.model), size, _learns()), _addresses(flat.model)
        kept = self._made.get(key)
        if kept is None or kept.places != places:
            kept = self._captured(key, flat, places, inputs)
        if kept is None:
            found: Tensor = flat(*inputs)
            return found
        vectors = kept.recording(*inputs)
        if key.learns:
            self._waiting = weakref.ref(vectors.grad_fn)
        return vectors

    def _captured(
        self, key: _Key, flat: FlatPass, places: tuple[int, ...], inputs: Inputs
    ) -> _Kept | None:
        """Capture a pass, unless another thread has; None if captures cannot be trusted."""
        with self._recorder.alone(inputs[0].device):
            kept = self._made.get(key)
            if kept is not None and kept.places == places:
                return kept
            recording = self._checked(flat, key, inputs) if self.trusted else None
            if recording is None:
                self.trusted = False
                self._made.clear()
                return None
            self._made[key] = kept = _Kept(recording, places, flat.model)
            return kept

    def _checked(self, flat: FlatPass, key: _Key, inputs: Inputs) -> Recording | None:
        """Capture a pass, and compare it with what it stands for; None if they disagree."""
        moving = _moving(flat.model) if key.learns else []
        examples = [self._example(flat, key.size, inputs, seed) for seed in range(_ROUNDS)]
        expected = [_results(flat, moving, *example) for example in examples]
        try:
            own = [tensor.clone() for tensor in inputs]
            recording = Recording(self._recorder, flat, own, moving)
            found = [_results(recording, moving, *example) for example in examples]
        except RuntimeError as error:  # torch's, of any kind
            log.warning("no CUDA graphs: a capture failed", extra={"error": str(error)})
            return None
        largest = max(map(difference, found, expected))
        if not largest <= _TOLERANCE:
            facts = {"difference": largest, "tokens": key.size.tokens}
            log.warning("no CUDA graphs: a captured pass gave something else", extra=facts)
            return None
        return recording

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


def _learns() -> bool:
    return torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def _moving(model: Any) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _results(
    run: Callable[..., Tensor], moving: Sequence[nn.Parameter], *inputs: Tensor
) -> list[Tensor]:
    """Return vectors and the gradients of a sum over them; the parameters keep none."""
    vectors = run(*inputs)
    if not moving:
        return [vectors.clone()]
    weight = torch.linspace(-1, 1, vectors.numel(), device=vectors.device).view_as(vectors)
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

    Those of transformers wait for a call.
    """
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return not all(
        isinstance(hook, OnDevice) or str(hook.__module__).startswith("transformers.")
        for hook in hooks
    )


def _addresses(model: Any) -> tuple[int, ...]:
    """Return where the parameters lie: a capture goes on reading them there."""
    return tuple(p.data_ptr() for p in model.parameters())
