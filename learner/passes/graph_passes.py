"""Passes through graphs that an engine other than torch runs on a CPU.

A template is the encoder as a graph without weights. All copies of an encoder share it; their own
graphs are the template with the weights that they have at that moment, so one that gets other
weights needs other graphs (`GraphPasses.renew`).

Legend: n texts, T tokens, D width.

Invariant: an engine's states of a text depend on its padded row alone, and that on the text alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from learner.errors import ModelUnsupported
from learner.passes.forward import Block, Ids, hidden_of, pooled
from learner.passes.padding import Padded, arguments, pad
from learner.passes.pooling import Pool
from learner.passes.products import use_plain

LENGTH_STEP = 4
"""Texts are padded to a multiple of this."""
LEAST_COSINE = 0.95
"""Of a text's states, averaged, in a graph and in torch."""
_LEAST_EXACT = 0.9999
_SPECIAL_POSITIONS = 4
"""RoBERTa counts positions from its padding on."""
_EXAMPLES = (1, 2, 5, 8, 13, 21, 30, 40)

Run: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Rows (n, T) or (n, T, D) and their mask (n, T) -> hidden states (n, T, D). From any thread."""
Forward: TypeAlias = Callable[[Tensor, Tensor, Sequence[Tensor]], Tensor]
"""Rows, mask and the parameters of a module -> hidden states."""


class Template(Protocol):
    """A graph without weights.

    Attributes:
        used: places of the parameters that states depend on.
    """

    used: Sequence[int]

    def compiled(self, parameters: Sequence[Tensor]) -> Run:
        """Return the graph with the values that parameters have now."""


class Engine(Protocol):
    """A library that runs graphs.

    Attributes:
        name: as in `serving.engine`.
        exact: whether its products are of float32.
    """

    name: str
    exact: bool

    def template(self, forward: Forward, example: Sequence[Any]) -> Template:
        """Convert a function, given an example of its three arguments.

        Raises:
            Exception: of any kind, if it cannot be expressed.
        """


class _Kind(NamedTuple):
    """What tells the graphs of an encoder apart: what goes in, and the states that come out."""

    from_states: bool
    layer: int


class _Graph:
    """A compiled template, and the parameters that it was compiled of."""

    def __init__(self, run: Run, parameters: Sequence[nn.Parameter]) -> None:
        self.run = run
        self._made_of = [(p, p._version) for p in parameters]

    @property
    def is_stale(self) -> bool:
        """Whether a parameter has changed since."""
        return any(p._version != version for p, version in self._made_of)


class GraphPasses:
    """Passes over texts that pad to one length, through an engine's graphs."""

    def __init__(self, engine: Engine) -> None:
        """Take the engine; nothing is converted before the first pass."""
        self._engine = engine
        self._padded = Padded(step=LENGTH_STEP)
        self._templates: dict[_Kind, Template] = {}
        self._graphs: WeakKeyDictionary[nn.Module, dict[_Kind, _Graph]] = WeakKeyDictionary()
        # Copies of a model whose parameters are the same ones have one graph
        self._shared: WeakValueDictionary[tuple[Any, ...], _Graph] = WeakValueDictionary()

    def divide(self, lengths: Sequence[int]) -> Iterable[list[int]]:
        """Yield the places of texts that pad to one length; see `Padded`."""
        return self._padded.divide(lengths)

    def run(self, model: Any, rows: Sequence[Tensor], *, layer: int = -1) -> list[Block]:
        """Run a graph of a model; see `Passes`.

        Raises:
            ModelUnsupported: the engine cannot express the model, or gives other states.
        """
        kind = _Kind(rows[0].is_floating_point(), layer)
        padding = 0 if kind.from_states else int(model.config.pad_token_id or 0)
        given, mask = pad(rows, value=padding, step=LENGTH_STEP)
        graph = self._graphs.get(model, {}).get(kind)
        if graph is None:
            graph = self._made(model, kind, given, mask)
        return [Block(graph.run(given, mask), mask, [len(row) for row in rows])]

    def vectors(self, model: Any, rows: Sequence[Tensor], pool: Pool) -> Tensor:
        """Return unit vectors (n, D) of the texts of a pass; see `Passes`."""
        return pooled(self.run(model, rows), pool)

    def renew(self) -> None:
        """Drop graphs whose parameters have changed; the next pass makes others."""
        for graphs in list(self._graphs.values()):
            for kind in [kind for kind, graph in graphs.items() if graph.is_stale]:
                del graphs[kind]

    def examples(self) -> list[Ids]:
        """Return invented texts of different lengths, of tokens that any vocabulary has."""
        return [np.arange(length, dtype=np.int64) % 23 + 5 for length in _EXAMPLES]

    def _made(self, model: Any, kind: _Kind, given: Tensor, mask: Tensor) -> _Graph:
        """Make the graph of a model, and compare it with torch on the rows at hand."""
        is_new = kind not in self._templates
        with torch.autocast("cpu", enabled=False), torch.inference_mode(False), torch.no_grad():
            rows = (given.clone(), mask.clone())
            # A trace of a model may hold for the shape that it was made of alone
            shapes = [rows, *(_other_shapes(model, *rows) if is_new else ())]
            expected = [_in_torch(model, kind, *own) for own in shapes]
            try:
                graph = self._compiled(model, kind, rows)
                found = [graph.run(*own) for own in shapes]
                masks = [mask for _, mask in shapes]
                cosines = list(map(_least_cosine, found, expected, masks))
            # Libraries declare no common error for a model that they cannot express
            except Exception as error:
                self._forget(kind, is_new)
                reason = " ".join(str(error).split())[:300]
                raise ModelUnsupported(
                    f"serving.engine: {self._engine.name} cannot run {type(model).__name__}: "
                    f"{reason}. Use torch."
                ) from error
        cosine = float(np.min(cosines))  # NaN if one is
        least = _LEAST_EXACT if self._engine.exact else LEAST_COSINE
        if not cosine >= least:
            self._forget(kind, is_new)
            raise ModelUnsupported(
                f"serving.engine: {self._engine.name} gives other vectors of "
                f"{type(model).__name__} than torch in float32, a cosine of {cosine:.4f}; expected "
                f"at least {least}. Use torch."
            )
        self._graphs.setdefault(model, {})[kind] = graph
        return graph

    def _forget(self, kind: _Kind, is_new: bool) -> None:
        """Forget a template that came to nothing."""
        if is_new:
            self._templates.pop(kind, None)

    def _compiled(
        self,
        model: Any,
        kind: _Kind,
        rows: tuple[Tensor, Tensor],
    ) -> _Graph:
        parameters = list(model.parameters())
        template = self._templates.get(kind)
        if template is None:
            forward = _forward(model, kind)
            template = self._engine.template(forward, (*rows, [p.detach() for p in parameters]))
            self._templates[kind] = template
        used = [parameters[place] for place in template.used]
        key = (kind, tuple((id(p), p._version) for p in used))
        graph = self._shared.get(key)
        if graph is None:
            graph = _Graph(template.compiled([p.detach() for p in parameters]), used)
            self._shared[key] = graph
        return graph


def _in_torch(model: Any, kind: _Kind, given: Tensor, mask: Tensor) -> Tensor:
    own = arguments(model, given, mask, from_states=kind.from_states)
    return hidden_of(model(**own, output_hidden_states=kind.layer != -1), kind.layer)


def _other_shapes(model: Any, given: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return fewer and shorter rows, and a longer one where the model has room for it."""
    fewer = slice(0, -(-len(given) // 2))
    shorter = max(LENGTH_STEP, given.shape[1] // 3)
    found = [(given[fewer, :shorter].contiguous(), mask[fewer, :shorter].contiguous())]
    room = getattr(model.config, "max_position_embeddings", None)
    if room is None or room >= 2 * given.shape[1] + _SPECIAL_POSITIONS:
        found.append((torch.cat([given[-1:]] * 2, dim=1), torch.cat([mask[-1:]] * 2, dim=1)))
    return found


def _least_cosine(found: Tensor, expected: Tensor, mask: Tensor) -> float:
    """Return the least cosine of a text's states, averaged, in one and the other (n, T, D)."""
    padding = mask[:, :, None] == 0  # whose states may be anything
    one, other = (states.masked_fill(padding, 0).sum(1) for states in (found, expected))
    return float(functional.cosine_similarity(one, other).min())


def _forward(model: Any, kind: _Kind) -> Forward:
    """Return a model's pass as a function of its parameters.

    It is that of a twin, so other threads can use the model meanwhile.
    """
    twin = _twin(model)
    places = {id(p): place for place, p in enumerate(model.parameters())}
    slots = [
        (module, name, places[id(p)])
        for module in twin.modules()
        for name, p in module._parameters.items()
        if p is not None
    ]

    def forward(given: Tensor, mask: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        for module, name, place in slots:
            module._parameters[name] = parameters[place]
        return _in_torch(twin, kind, given, mask)

    return forward


def _twin(model: Any) -> Any:
    """Return a copy of a module that shares its tensors."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    use_plain(twin)
    return twin
