"""The encoder's part of a score: one logit per task and pair.

Legend: N pairs, D width, K tasks.

Invariant: before any training the logit of the task without a parent orders items exactly as the
cosine of the encoder's own embeddings does, and where a fine-tuned cross-encoder brought its head
it is that head's logit. Everything added to it starts at zero: the query's residual, a new
cross-encoder's head. The position where an item was shown enters the loss only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learner.config import CROSS_ENCODER
from learner.encoder.encoder import Encoder
from learner.encoder.head import Head
from learner.encoder.prefix_cache import PrefixCache
from learner.encoder.starting import Queued, StartingEncoder
from learner.encoder.tokens import Texts
from learner.passes.forward import Ids
from learner.residual import QueryResidual
from learner.transfer import to_device
from learner.value_head import ValueHead, of_value
from weighting.tasks import TASKS, TaskName, root

_KEPT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairLogits:
    """Scores of N pairs, on the encoder's device; with a gradient where something moves.

    Attributes:
        by_task: task -> (N,) logit, as if the item were shown first.
        base: (N,) logit of the task without a parent, without the query's residual.
        items: (N, D) vectors of the items.
        queries: (N, D) whose products with the items are the logits of the task without a parent,
            less its bias. A cross-encoder's logits are none.
        value: (N,) of the value head, where there is one.
    """

    by_task: Mapping[TaskName, Tensor]
    base: Tensor
    items: Tensor
    queries: Tensor
    value: Tensor | None = None

    def across(self, rows: Tensor) -> Tensor:
        """Return logits (n, n) of each query with each item of n pairs, less the bias."""
        return self.queries.index_select(0, rows) @ self.items.index_select(0, rows).T


class Ranker(nn.Module):
    """Heads on a shared encoder, and the residuals of recurring queries.

    The task without a parent has the logit s u.v + (1 + b) r.v + bias, a child task s' u.v + bias'.
    u and v are unit vectors of query and item, r the query's residual (`QueryResidual`), s a fixed
    `logit_scale`, s' a parameter. b is the exponent of the weights: r is learned as p(y|x) is, and
    a logit trained under (p(y|x)/p(y))^b is 1 + b times as steep. A cross-encoder reads the pair
    together as well, and a head that starts at zero adds to all logits. One that brings a
    fine-tuned head has its logit z instead: z + (1 + b) r.v + bias, which starts at zero; a child
    task has s' z / s + bias', as z / s stands for the cosine.
    """

    def __init__(
        self,
        encoder: Encoder,
        texts: Texts,
        residual: QueryResidual,
        *,
        interaction: str,
        logit_scale: float,
        exponent: float = 0.0,
        head: Head | None = None,
        value: bool = False,
        starting: StartingEncoder | None = None,
    ) -> None:
        """Start as the encoder is, on the encoder's device, or as a cross-encoder's own head.

        With `value` there is a head that tells what is paid for an item. The encoder as it started
        is the encoder as it is now, unless it is given.
        """
        super().__init__()
        self.encoder = encoder
        self.starting = StartingEncoder(encoder) if starting is None else starting
        self.texts = texts
        self.residual = residual
        self.interaction = interaction
        self.logit_scale = logit_scale
        self.exponent = exponent
        self.forget()
        self.head = head
        bias = -1.9 - 0.35 * logit_scale if head is None else 0.0
        self.bias = nn.Parameter(torch.tensor(bias))
        self._children = [name for name in TASKS if name != root()]
        for name in self._children:
            self.register_parameter(f"{name}_scale", nn.Parameter(torch.tensor(2.0)))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.tensor(-2.0)))
        self.cross: nn.Linear | None = None
        if interaction == CROSS_ENCODER and head is None:
            self.cross = nn.Linear(encoder.width, len(TASKS))
            nn.init.zeros_(self.cross.weight)
            nn.init.zeros_(self.cross.bias)
        self.value_head = ValueHead(encoder.width) if value else None
        self.to(encoder.device)

    def heads(self) -> dict[str, nn.Parameter]:
        """Return every parameter that is not the encoder's, by name."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("encoder.")}

    def head_tensors(self) -> dict[str, Tensor]:
        """Return all that a version keeps of the heads, by name."""
        value = {} if self.value_head is None else self.value_head.tensors()
        return {**self.heads(), **value}

    def relevance(self) -> list[nn.Parameter]:
        """Return the parameters that tell items apart: all that move but scales and biases."""
        moving = self.pretrained()
        if self.head is not None:
            return [p for p in moving if p is not self.head.out.bias]
        return moving if self.cross is None else [*moving, self.get_parameter("cross.weight")]

    def pretrained(self) -> list[nn.Parameter]:
        """Return the parameters that were trained before: the encoder's that move, and a head's."""
        own = [] if self.head is None else list(self.head.parameters())
        return [*self.encoder.trainable_parameters(), *own]

    def load_heads(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy values into the heads.

        The version may lack a value head, or have one that is switched off here.

        Raises:
            ValueError: they are those of other heads.
        """
        own = {name: head for name, head in self.heads().items() if not of_value(name)}
        expected = {name: tuple(parameter.shape) for name, parameter in own.items()}
        found = {n: tuple(values.shape) for n, values in tensors.items() if not of_value(n)}
        if found != expected:
            raise ValueError(f"heads: got {found}, expected {expected}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])
        if self.value_head is not None:  # the version may be from before it was asked for
            self.value_head.load(tensors)

    def bias_of(self, task: TaskName) -> Tensor:
        """Return what is added to every logit of a task."""
        return self.bias if task == root() else self.get_parameter(f"{task}_bias")

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep child scales at least 0.

        A negative one would reverse the encoder's order under a query that was never seen.
        """
        for name in self._children:
            self.get_parameter(f"{name}_scale").clamp_(min=0.0)

    def forward(self, queries: Sequence[str], items: Sequence[str]) -> PairLogits:
        """Score N pairs of query and item; encode each distinct text once."""
        rows = {text: row for row, text in enumerate(dict.fromkeys([*queries, *items]))}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._reads_pairs):
            vectors = self._encode(list(rows))
        of_query, of_item, residuals, of_residual = self._places(rows, queries, items)
        u, v = vectors.index_select(0, of_query), vectors.index_select(0, of_item)
        if self.head is None:
            cosine = (u * v).sum(-1)
            base = self.logit_scale * cosine + self.bias
        else:
            logit = self.head(self.encoder.first_states(self._pairs(queries, items)))
            cosine = logit / self.logit_scale
            base = logit + self.bias
        by_task = {root(): base}
        for name in self._children:
            scale, bias = (self.get_parameter(f"{name}_{part}") for part in ("scale", "bias"))
            by_task[name] = scale * cosine + bias
        if self.cross is not None:
            added = self._read_together(self.cross, queries, items)
            by_task = {name: by_task[name] + added[:, k] for k, name in enumerate(TASKS)}
            base = by_task[root()]
        residual = residuals.index_select(0, of_residual)
        by_task[root()] = base + (1 + self.exponent) * (residual * v).sum(-1)
        whole = self.logit_scale * u + (1 + self.exponent) * residual
        value = None if self.value_head is None else self.value_head(v)
        return PairLogits(by_task=by_task, base=base, items=v, queries=whole, value=value)

    def starting_vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors (N, D) of texts by the starting encoder, on the host."""
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        distinct = self.starting.vectors([self.texts.ids(text) for text in rows])
        return distinct[[rows[text] for text in texts]]

    def queue_starting(self, texts: Sequence[str]) -> Queued:
        """Begin what `starting_vectors` does, of distinct texts; see `StartingEncoder.queue`."""
        return self.starting.queue([self.texts.ids(text) for text in texts])

    def tokenise(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Keep the token ids that scoring these pairs will ask for; from any thread."""
        for text in dict.fromkeys(text for pair in pairs for text in pair):
            self.texts.ids(text)
        if self.cross is not None:
            for query, item in pairs:
                self.texts.ids(query, item)

    def encode_ahead(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Keep what no training changes of all texts that these pairs ask for; from any thread."""
        texts = [self.texts.ids(text) for text in dict.fromkeys(t for pair in pairs for t in pair)]
        read = [self.texts.ids(*pair) for pair in dict.fromkeys(pairs)] if self._reads_pairs else []
        self.starting.encode_ahead(texts, read)

    def num_tokens(self, query: str, item: str) -> dict[str, int]:
        """Return each text that a pair needs with its number of tokens; a pair is one text more."""
        ids = self.texts.ids
        texts = {query: len(ids(query)), item: len(ids(item))}
        if self._reads_pairs:
            texts[f"{query}\0{item}"] = len(ids(query, item))
        return texts

    def forget(self) -> None:
        """Drop the vectors kept for scoring: the encoder has moved since."""
        self._kept = PrefixCache(max_bytes=_KEPT_BYTES)

    def kept(self) -> list[Ids]:
        """Return the texts whose vectors are kept for scoring, newest first."""
        return self._kept.texts()

    def keep(self, texts: Sequence[Ids]) -> None:
        """Encode texts ahead of the requests that will ask for them."""
        with torch.inference_mode():
            self._kept.through(texts, self.encoder)

    def _places(
        self, rows: Mapping[str, int], queries: Sequence[str], items: Sequence[str]
    ) -> list[Tensor]:
        """Send what N pairs are gathered by to the device, in one copy.

        Args:
            rows: of the texts among the encoded ones.
            queries: of the pairs.
            items: of the pairs.

        Returns:
            Rows (N,) of queries and items; residuals (Q, D) of the Q distinct queries, and which of
            them (N,) is each pair's.
        """
        distinct = {query: row for row, query in enumerate(dict.fromkeys(queries))}
        numbers = (
            [rows[text] for text in queries],
            [rows[text] for text in items],
            [distinct[query] for query in queries],
        )
        of_query, of_item, of_residual = (torch.tensor(own, dtype=torch.long) for own in numbers)
        residuals = torch.from_numpy(self.residual.get_all(list(distinct)))
        return to_device([of_query, of_item, residuals, of_residual], self.encoder.device)

    def _encode(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors (n, D) of texts.

        In inference mode, where nothing may learn from them, they are kept per text.
        """
        ids = [self.texts.ids(text) for text in texts]
        if not ids or not torch.is_inference_mode_enabled():
            encoded: Tensor = self.encoder(ids)
            return encoded
        return torch.stack(self._kept.through(ids, self.encoder))

    def _read_together(
        self, head: nn.Linear, queries: Sequence[str], items: Sequence[str]
    ) -> Tensor:
        """Return what the cross-encoder's head adds to the logits, (N, K)."""
        pairs = self.encoder(self._pairs(queries, items))
        # Row by row: the order in which a matrix product adds up depends on the number of rows
        added: Tensor = (pairs[:, None, :] * head.weight).sum(-1) + head.bias
        return added

    def _pairs(self, queries: Sequence[str], items: Sequence[str]) -> list[Ids]:
        return [self.texts.ids(q, i) for q, i in zip(queries, items, strict=True)]

    @property
    def _reads_pairs(self) -> bool:
        return self.interaction == CROSS_ENCODER
