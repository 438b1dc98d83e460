"""Texts of different lengths as one row of tokens, without padding.

Legend: n texts, t tokens of one text, T of all, H heads, d width of a head, D width.

All that a layer does token by token, which is all but its attention, sees one matrix of T rows.
Attention goes text by text, in one call for each run of texts of equal length.

Invariant: a text's attention sees that text alone, products have `_LEAST_TOKENS` rows or more, and
activations whole vectors of the processor. So on a CPU a text's vector does not depend on what is
packed with it (see `learner.arithmetic`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from learner.passes import aligned, first_tokens
from learner.passes.bert_layers import bert_layers, hidden_states
from learner.passes.device import moved
from learner.passes.forward import Block, Passes, pooled, texts_of
from learner.passes.key_value_prefixes import (
    KeyValuePrefix,
    before_each,
    prefix_of,
    without_prefixes,
)
from learner.passes.padding import Padded
from learner.passes.pooling import OF_FIRST, Pool
from learner.passes.varlen import Bounds

ATTENTION = "steelyard_packed"
"""Name of the attention, as transformers knows it."""
MAX_TOKENS = 2_048
"""Tokens of a pass, unless one text has more: what a layer makes of them stays in caches."""
_HOST = torch.device("cpu")
_LEAST_TOKENS = 8
_VECTOR = 32
"""Numbers that a kernel takes at once, at most; what is left it rounds in another way."""
_BITS = 6
"""Of a number of rows; the rest are zeros."""
_WIDTHS = ("intermediate_size", "hidden_dim", "n_inner")
"""Its names in configurations of transformers."""
_PROBE_LENGTHS = (2, 7, 7, 5)
_TOLERANCE, _COARSE = 1e-3, 1e-2
"""Of the probe's states, and on a device, whose products may be rounded more."""
_UNKNOWN = ("position_bias", "sliding_window", "softcap", "s_aux")
"""What models give to their attention that packed texts do not have."""


class CannotPack(Exception):
    """The model needs something of its attention that packed texts do not have."""


class Run(NamedTuple):
    """Texts of equal length, one after the other.

    Attributes:
        number: of texts.
        length: tokens of each.
    """

    number: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the n texts of a pass lie.

    Attributes:
        runs: of all texts, in order.
        first_rows: of the last layer's states, where it gives those of first tokens alone, with
            zeros behind them; None where it gives all.
    """

    runs: tuple[Run, ...]
    first_rows: int | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], *, first_rows: int | None = None) -> Layout:
        """Lay out texts of these lengths."""
        runs = tuple(Run(len(list(same)), length) for length, same in groupby(lengths))
        return cls(runs, first_rows)

    @property
    def num_texts(self) -> int:
        """Return the number of texts, n."""
        return sum(run.number for run in self.runs)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Return the number of tokens of each text, n of them."""
        return tuple(run.length for run in self.runs for _ in range(run.number))

    def first_of(self, states: Tensor) -> Tensor:
        """Return the states (`first_rows`, ...) of first tokens, of those (T, ...) of all."""
        lengths = torch.tensor(self.lengths)
        places = moved(lengths.cumsum(0) - lengths, states.device)
        return self.filled(states.index_select(0, places))

    def filled(self, first: Tensor) -> Tensor:
        """Return rows (n, ...) with zeros behind them, `first_rows` in all."""
        assert self.first_rows is not None
        missing = self.first_rows - len(first)
        return torch.cat([first, first.new_zeros(missing, *first.shape[1:])]) if missing else first

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        causal: bool,
        scale: float | None,
        dropout: float,
        prefix: KeyValuePrefix | None = None,
        first: bool = False,
    ) -> Tensor:
        """Return (T, H, d) of query (H, T, d); key and value may have fewer heads.

        With `first`, queries (H, n, d) are those of first tokens, and so is what returns.
        """
        lowered = query.dtype == torch.bfloat16 and query.device == _HOST
        if lowered and len(key) == len(query) and not (causal or dropout):
            q, k, v = (states.transpose(0, 1) for states in (query, key, value))
            factor = query.shape[-1] ** -0.5 if scale is None else scale
            return aligned.attend(q, k, v, self.lengths, scale=factor, first=first, prefix=prefix)
        asked = [Run(run.number, 1) for run in self.runs] if first else self.runs
        outputs = []
        keys, values = _by_run(key, self.runs), _by_run(value, self.runs)
        for q, k, v in zip(_by_run(query, asked), keys, values, strict=True):
            if prefix is not None:
                k = before_each(k, prefix.keys)
                v = before_each(v, prefix.values)
            own = scaled_dot_product_attention(
                q,
                k,
                v,
                dropout_p=dropout,
                is_causal=causal,
                scale=scale,
                enable_gqa=key.shape[0] != query.shape[0],
            )
            outputs.append(own.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)


class Packed:
    """Passes over texts of any lengths, of at most `MAX_TOKENS` tokens."""

    max_tokens = MAX_TOKENS
    first_alone = False
    """Whether the last layer, by BERT's formulas, gives the states of first tokens alone."""
    by_layers: bool
    """Whether the model's layers are of BERT's kind, and run one by one."""

    def __init__(self, model: Any) -> None:
        """Let a model's attention go text by text from here on."""
        model.config._attn_implementation = ATTENTION
        self._first_position = _first_position(model)
        self._width = _width(model.config)
        self.by_layers = bool(bert_layers(model))

    def divide(self, lengths: Sequence[int]) -> Iterable[list[int]]:
        """Yield the places of the texts of each pass, by length."""
        part: list[int] = []
        num_tokens = 0
        for place in sorted(range(len(lengths)), key=lengths.__getitem__):
            if part and num_tokens + lengths[place] > self.max_tokens:
                yield part
                part, num_tokens = [], 0
            part.append(place)
            num_tokens += lengths[place]
        if part:
            yield part

    def run(self, model: Any, rows: Sequence[Tensor], *, layer: int = -1) -> list[Block]:
        """Run a model over texts of any lengths; see `Passes`."""
        lengths = [len(row) for row in rows]
        hidden = self._hidden(model, rows, layer=layer)
        return gathered(hidden, lengths) if hidden.is_cuda else _by_length(hidden, lengths)

    def vectors(self, model: Any, rows: Sequence[Tensor], pool: Pool) -> Tensor:
        """Return unit vectors (n, D) of the texts of a pass; see `Passes`."""
        if not (self.first_alone and pool in OF_FIRST):
            return pooled(self.run(model, rows), pool)
        first = self.first_states(model, rows)[:, None]
        return pool(first, first.new_ones(first.shape[:2]))

    def first_states(self, model: Any, rows: Sequence[Tensor]) -> Tensor:
        """Return the states (n, D) of the first tokens of the texts of a pass."""
        return self._hidden(model, rows, first=True)[: len(rows)]

    def _hidden(
        self, model: Any, rows: Sequence[Tensor], *, layer: int = -1, first: bool = False
    ) -> Tensor:
        """Return the states (T, D) of all tokens, or of first ones; with others behind them."""
        device = next(model.parameters()).device
        lengths = [len(row) for row in rows]
        if missing := fitting(sum(lengths), self._width) - sum(lengths):
            rows = [*rows, rows[0].new_zeros(missing, *rows[0].shape[1:])]
        num_tokens = [len(row) for row in rows]
        first_rows = fitting(len(rows), self._width) if first else None
        positions = torch.cat([torch.arange(number) for number in num_tokens])
        return hidden_states(
            model,
            moved(torch.cat(list(rows)), device),
            moved(positions + self._first_position, device),
            Layout.of(num_tokens, first_rows=first_rows),
            layer=layer,
            by_layers=self.by_layers,
        )


def passes_for(model: Any) -> Passes:
    """Return packed passes where a model gives the same states under them, else padded ones."""
    padded = Padded()
    own = getattr(model.config, "_attn_implementation", None)
    if own not in ("sdpa", ATTENTION):
        return padded
    model.config._attn_implementation = "sdpa"
    ids = probes(model)
    with torch.no_grad(), without_prefixes(model):  # padded passes know of none
        alone = [states for row in ids for states in texts_of(padded.run(model, [row]))]
        packed = Packed(model)
        for by_layers in (True, False) if packed.by_layers else (False,):
            packed.by_layers = by_layers
            if _agree(packed, model, ids, alone):
                packed.first_alone = _gives_first_alone(packed, model, ids, alone)
                return packed
    model.config._attn_implementation = "sdpa"
    return padded


def _agree(packed: Packed, model: Any, ids: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Return whether texts have the states (t, D) that they have alone."""
    try:
        found = list(texts_of(packed.run(model, ids)))
    except (CannotPack, TypeError):  # an argument that it does not take
        return False
    return len(found) == len(expected) and all(map(agree, expected, found))


def _gives_first_alone(
    packed: Packed, model: Any, ids: Sequence[Tensor], expected: Sequence[Tensor]
) -> bool:
    """Return whether first tokens alone have the states that they have among all (t, D)."""
    if not first_tokens.prepare(model):
        return False
    first = torch.stack([states[0] for states in expected])
    try:
        return agree(first, packed.first_states(model, ids))
    except (AttributeError, RuntimeError, TypeError):  # parts of BERT's names, made otherwise
        return False


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: Layout | Bounds | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of each text to itself, as transformers calls it.

    Args:
        module: that asks; a decoder's says that it is causal, and it may have a prefix.
        query: (1, H, T, d); key and value may have fewer heads.
        key: as `query`.
        value: as `query`.
        attention_mask: none, as there is no padding.
        packed: where the texts lie.
        scaling: of the products; 1 / sqrt(d) by default.
        dropout: share of attention dropped.
        is_causal: whether a token sees only those before it; by default as `module` says.
        others: refused if they would change the result.

    Returns:
        (1, T, H, d), and no weights.
    """
    if packed is None or attention_mask is not None or any(others.get(n) for n in _UNKNOWN):
        raise CannotPack("attention of packed texts: where they lie was not given, or a mask was")
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    prefix = prefix_of(module)
    assert prefix is None or not causal
    found = packed.attend(
        query[0], key[0], value[0], causal=causal, scale=scaling, dropout=dropout, prefix=prefix
    )
    return found[None], None


AttentionInterface.register(ATTENTION, attention)


def _by_run(states: Tensor, runs: Sequence[Run]) -> Iterator[Tensor]:
    """Yield the states (n, H, t, d) of each run, of those (H, T, d) of all."""
    heads, _, width = states.shape
    parts = torch.split(states, [run.number * run.length for run in runs], dim=1)
    for run, own in zip(runs, parts, strict=True):
        yield own.reshape(heads, run.number, run.length, width).transpose(0, 1)


def _by_length(hidden: Tensor, lengths: Sequence[int]) -> list[Block]:
    """Return a view of the states (T, D) for each run of texts of equal length."""
    same = [list(own) for _, own in groupby(lengths)]
    sizes = [len(own) * own[0] for own in same]
    parts = torch.split(hidden, [*sizes, len(hidden) - sum(sizes)])
    blocks = []
    for own, part in zip(same, parts, strict=False):  # what is left stands for no text
        states = part.view(len(own), own[0], -1)
        mask = torch.ones(states.shape[:2], dtype=torch.long, device=hidden.device)
        blocks.append(Block(states, mask, own))
    return blocks


def gathered(hidden: Tensor, lengths: Sequence[int]) -> list[Block]:
    """Return one block of all texts, with padding: few kernels for many lengths."""
    device = hidden.device
    counts = torch.tensor(lengths)
    starts = counts.cumsum(0) - counts
    steps = torch.arange(max(lengths))[None, :]
    mask = steps < counts[:, None]
    places = moved((starts[:, None] + steps).where(mask, starts[:, None]), device)
    states = hidden.index_select(0, places.flatten()).view(*places.shape, -1)
    return [Block(states, moved(mask.long(), device), lengths)]


def fitting(num_tokens: int, width: int) -> int:
    """Return the rows of a pass, with those to add so that no thread leaves part of a vector.

    Activations such as SiLU round the last numbers of a thread's share as scalars, if they do not
    fill a vector. Without gradients it is one of few numbers, since oneDNN makes a kernel for each.

    Args:
        num_tokens: of the texts.
        width: of what the activations of the layers are applied to.
    """
    share = _VECTOR * torch.get_num_threads()
    step = share // math.gcd(share, width)
    if not torch.is_grad_enabled():
        step = math.lcm(step, 1 << max(0, num_tokens.bit_length() - _BITS))
    return -(-max(num_tokens, _LEAST_TOKENS) // step) * step


def _width(config: Any) -> int:
    """Return the width of what the activations of the layers are applied to; 1 if it is unknown."""
    known = (getattr(config, name, None) for name in _WIDTHS)
    return int(next((width for width in known if width), 1))


def _first_position(model: Any) -> int:
    """Return the position of a first token; RoBERTa counts from its padding on."""
    table: Any = getattr(model, "embeddings", None)
    counts_itself = hasattr(table, "create_position_ids_from_input_ids")
    return int(table.padding_idx) + 1 if counts_itself else 0


def probes(model: Any) -> list[Tensor]:
    """Return token ids of invented texts of different lengths, none of them padding."""
    vocabulary, padding = int(model.config.vocab_size), model.config.pad_token_id
    refused = -1 if padding is None else padding
    found = []
    for seed, length in enumerate(_PROBE_LENGTHS):
        ids = (torch.arange(length) * 37 + 11 + 101 * seed) % vocabulary
        found.append(torch.where(ids == refused, (ids + 1) % vocabulary, ids))
    return found


def agree(expected: Tensor, found: Tensor, tolerance: float | None = None) -> bool:
    """Return whether states agree, up to a share of the largest; by default that of float32."""
    if expected.shape != found.shape:
        return False
    if tolerance is None:
        tolerance = _COARSE if expected.is_cuda else _TOLERANCE
    return bool((expected - found).abs().max() <= tolerance * expected.abs().max())
