"""Compression of a version's encoder: prune, then distil; and the figures of each stage."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from learner import arithmetic
from learner.compression import magnitude, shape
from learner.compression.calibration import Array
from learner.compression.distillation import Distillation, distil
from learner.compression.importance import head_importance, most_important, unit_importance
from learner.compression.lists import LabelledList, columns_of, cosines, encoded
from learner.encoder import kept_heads
from learner.encoder.encoder import Encoder
from learner.encoder.tokens import Texts, load_tokenizer
from learner.engines.registry import TORCH, passes_of
from learner.export import VersionEncoder, encoder_files, weights_file
from learner.passes.packing import ATTENTION

_MOST_LISTS = 256
"""Lists that the importance of units is a mean over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """How small, and how the rest learns.

    Attributes:
        layers: that stay; None: all.
        prune_ffn: share of the feed-forward units of each layer that go.
        prune_heads: share of the attention heads of each layer that go.
        magnitude: share of the weights of each matrix that become zero.
        epochs: of distillation.
        lr: highest learning rate of it.
        batch_size: least number of rows of a step.
        seed: of orders and draws.
    """

    layers: int | None = None
    prune_ffn: float = 0.0
    prune_heads: float = 0.0
    magnitude: float = 0.0
    epochs: int = 3
    lr: float = 5e-4
    batch_size: int = 320
    seed: int = 0


class CosineRanker:
    """An encoder whose cosines rank texts."""

    def __init__(
        self, encoder: VersionEncoder, precision: str = "float32", engine: str = TORCH
    ) -> None:
        """Take the encoder of a version, or one made of it; precision and engine as served."""
        self.source = encoder
        self.tokens = Texts(
            load_tokenizer(encoder.version.path), max_tokens=encoder.settings.max_tokens
        )
        pooling = encoder.settings.pooling
        self.encoder = Encoder(
            encoder.model,
            tuning="full",
            pooling=pooling,
            passes=passes_of(engine, precision),
            precision=precision,
        )
        encoder.model.requires_grad_(False)

    def cosines(self, lists: Sequence[LabelledList]) -> Array:
        """Return the cosine (N,) of each row of lists."""
        columns = columns_of(lists)
        vectors = encoded(self.encoder, self.tokens, columns.texts)
        found: Array = cosines(vectors, columns).double().numpy()
        return found

    def encode(self, texts: Sequence[str]) -> None:
        """Encode texts, for the time that it takes."""
        encoded(self.encoder, self.tokens, texts)

    def size(self) -> dict[str, int]:
        """Return numbers of layers, units and heads, parameters, those not 0, and bytes of a file.

        Units and heads are those of a layer.
        """
        model = self.encoder.model
        parameters = list(model.parameters())
        return {
            "layers": len(shape.layers_of(model)),
            "units": int(model.config.intermediate_size),
            "heads": round(kept_heads.mean_number(model)),
            "parameters": sum(p.numel() for p in parameters),
            "not_zero": sum(int(p.count_nonzero()) for p in parameters),
            "bytes": len(weights_file(model)),
        }

    def files(self, notes: Sequence[str]) -> dict[str, bytes]:
        """Return a folder of sentence-transformers; `notes` are lines of its card."""
        return encoder_files(self.source, notes=notes)


def teacher(encoder: VersionEncoder, *, threads: int) -> CosineRanker:
    """Return the ranker of a version's encoder, with so many threads from here on.

    Raises:
        ModelUnsupported: its layers are not those of BERT's family.
    """
    arithmetic.use(threads)
    shape.layers_of(encoder.model)
    return CosineRanker(encoder)


def served(own: CosineRanker, *, precision: str, engine: str = TORCH) -> CosineRanker:
    """Return a copy as a server with this precision and engine runs it.

    Raises:
        ModelUnsupported: processor, engine or model do not allow it.
    """
    model = copy.deepcopy(own.encoder.model)
    if model.config._attn_implementation == ATTENTION:
        model.config._attn_implementation = "sdpa"
    found = CosineRanker(replace(own.source, model=model), precision, engine)
    found.encoder.round_weights()
    return found


def pruned(
    own: CosineRanker, lists: Sequence[LabelledList], how: Compression
) -> tuple[CosineRanker, Any]:
    """Return a smaller copy that has learned nothing yet, and the masks of its weights.

    Args:
        own: stays as it is.
        lists: of which those with right and wrong items say what a unit or a head is worth.
        how: see `Compression`.

    Raises:
        ModelUnsupported: heads are to go, and its attention is not that of BERT's family.
        ValueError: there are no such lists, and units or heads are to go.
    """
    model, number = own.encoder.model, len(shape.layers_of(own.encoder.model))
    units, heads = _staying(own, lists, how)
    layers = shape.spaced(number, how.layers or number)
    smaller = shape.reduced(model, layers=layers, units=units, heads=heads)
    masks = magnitude.masks(smaller, how.magnitude) if how.magnitude else {}
    magnitude.apply(masks)
    config = smaller.config.to_json_string().encode()
    source = replace(own.source, model=smaller, files={**own.source.files, "config.json": config})
    return CosineRanker(source), masks


def _staying(
    own: CosineRanker, lists: Sequence[LabelledList], how: Compression
) -> tuple[list[Tensor] | None, list[Tensor] | None]:
    """Return the places of units and of heads that stay, by layer; None: all."""
    units, heads = None, None
    if not how.prune_ffn and not how.prune_heads:
        return units, heads
    chosen = _drawn([each for each in lists if each.compares], how.seed)
    if not chosen:
        raise ValueError("no list with right and wrong items: nothing says what counts most")
    scale = own.source.settings.logit_scale
    if how.prune_ffn:
        found = unit_importance(own.encoder, own.tokens, chosen, scale=scale)
        keep = shape.num_units(len(found[0]), how.prune_ffn)
        units = [most_important(each, keep) for each in found]
    if how.prune_heads:
        found = head_importance(own.encoder, own.tokens, chosen, scale=scale)
        heads = [
            most_important(each, shape.num_heads(len(each), how.prune_heads)) for each in found
        ]
    return units, heads


def distilled(
    student: CosineRanker,
    own: CosineRanker,
    lists: Sequence[LabelledList],
    how: Compression,
    masks: Any,
    *,
    advance: Callable[[int], None] = lambda rows: None,
) -> list[float]:
    """Let the student learn from the teacher; return the mean loss of each epoch."""
    recipe = Distillation(
        epochs=how.epochs,
        lr=how.lr,
        batch_size=how.batch_size,
        scale=own.source.settings.logit_scale,
        seed=how.seed,
        masks=masks,
    )
    return distil(student.encoder, own.encoder, own.tokens, lists, recipe, advance=advance)


def _drawn(lists: Sequence[LabelledList], seed: int) -> list[LabelledList]:
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(lists))
    return [lists[place] for place in order[:_MOST_LISTS].tolist()]
