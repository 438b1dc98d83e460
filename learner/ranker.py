"""The encoder's side of a score: two towers or a pair read together, with what recurring queries have learned, as one logit per task.

Legend: N (query, item) pairs, M distinct texts, D width.

Invariant: before any training the click logit orders items exactly as the cosine of the encoder's own embeddings does. Everything added to
it starts at zero: the query's residual, the cross-encoder's head. What position an item was shown at enters the loss only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from learner.encoder.model import Encoder, PrefixCache
from learner.encoder.tokens import Texts
from learner.residual import QueryResidual

_KEPT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairLogits:
    """N pairs scored; tensors carry a gradient where something moves.

    Attributes:
        click: (N,) logit of a click, as if shown first.
        base: (N,) the same without the query's residual.
        purchase: (N,) logit of a purchase after a click.
        items: (N, D) the items' vectors.
    """

    click: Tensor
    base: Tensor
    purchase: Tensor
    items: Tensor


#: Values of `learner.interaction` -> their names in heads.json.
INTERACTIONS_ON_DISK = {"bi_encoder": "towers", "cross_encoder": "cross"}


class Ranker(nn.Module):
    """Logit of a click on what was looked at = s u.v + (1 + b) r.v + bias; of a purchase = s' u.v + bias'.

    u and v are unit vectors of query and item, r the query's residual (`QueryResidual`), s a fixed scale. b is the exponent of the weights:
    r is learned as p(y|x) is, and a logit trained under (p(y|x)/p(y))^b is 1 + b times as steep. Under ``cross_encoder`` the pair is read together
    and a head that starts at zero adds to both logits.
    """

    def __init__(
        self,
        encoder: Encoder,
        texts: Texts,
        residual: QueryResidual,
        *,
        interaction: str,
        scale: float,
        exponent: float = 0.0,
    ) -> None:
        """Start where the encoder is."""
        super().__init__()
        self.encoder = encoder
        self.texts = texts
        self.residual = residual
        self.interaction = interaction
        self.scale = scale
        self.exponent = exponent
        self.forget()
        self.bias = nn.Parameter(torch.tensor(-1.9 - 0.35 * scale))
        self.purchase_scale = nn.Parameter(torch.tensor(2.0))
        self.purchase_bias = nn.Parameter(torch.tensor(-2.0))
        self.cross = nn.Linear(encoder.width, 2) if interaction == "cross_encoder" else None
        if self.cross is not None:
            nn.init.zeros_(self.cross.weight)
            nn.init.zeros_(self.cross.bias)

    def heads(self) -> dict[str, nn.Parameter]:
        """Every parameter that is ours, by name."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("encoder.")}

    def forward(self, queries: Sequence[str], items: Sequence[str]) -> PairLogits:
        """Score N pairs of query text and item text; each distinct text is encoded once."""
        distinct = {text: place for place, text in enumerate(dict.fromkeys([*queries, *items]))}
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.cross is None):
            vectors = self._encode(list(distinct))
        u, v = vectors[[distinct[q] for q in queries]], vectors[[distinct[i] for i in items]]
        cosine = (u * v).sum(-1)
        base = self.scale * cosine + self.bias
        purchase = self.purchase_scale * cosine + self.purchase_bias
        if self.cross is not None:
            pairs = self.encoder(
                [self.texts.ids(q, i) for q, i in zip(queries, items, strict=True)]
            ).cpu()
            # row by row: a matrix product sums in an order that depends on how many rows there are
            added = (pairs[:, None, :] * self.cross.weight).sum(-1) + self.cross.bias
            base, purchase = base + added[:, 0], purchase + added[:, 1]
        return PairLogits(
            click=base + (1 + self.exponent) * (self._residuals(queries) * v).sum(-1),
            base=base,
            purchase=purchase,
            items=v,
        )

    def forget(self) -> None:
        """Drop the vectors kept for scoring: the encoder has moved since."""
        self._kept = PrefixCache(max_bytes=_KEPT_BYTES)

    def _encode(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (n, D) of texts; kept per text where nothing may learn from them."""
        ids = [self.texts.ids(text) for text in texts]
        if not ids or not torch.is_inference_mode_enabled():
            encoded: Tensor = self.encoder(ids)
            return encoded.cpu()
        found = [self._kept.get(row) for row in ids]
        missing = [i for i, vector in enumerate(found) if vector is None]
        for i, vector in zip(
            missing, self.encoder([ids[i] for i in missing]).cpu().numpy(), strict=True
        ):
            self._kept.put(ids[i], vector)
            found[i] = vector
        return torch.from_numpy(np.stack([vector for vector in found if vector is not None]))

    def _residuals(self, queries: Sequence[str]) -> Tensor:
        rows = {q: self.residual.get(q) for q in dict.fromkeys(queries)}
        return torch.from_numpy(
            np.stack([rows[q] for q in queries])
            if queries
            else np.zeros((0, self.encoder.width), np.float32)
        )

    def description(self) -> dict[str, Any]:
        """What, beside the tensors, a version needs to score as this ranker does."""
        return {
            "interaction": INTERACTIONS_ON_DISK[self.interaction],
            "max_tokens": self.texts.max_tokens,
            "pooling": self.encoder.pooling,
            "prefix": self.encoder.prefix_digest(),
            "scale": self.scale,
            "tuning": self.encoder.tuning,
        }
