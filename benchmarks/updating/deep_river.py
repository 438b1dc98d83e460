"""The update by deep-river, whose features are columns: every text has as many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.updating import plain
from benchmarks.updating.texts import MOST_TOKENS, Text


class _OfColumns(nn.Module):
    """The plain model over rows of token ids, 0 where a text has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = plain.PlainModel()

    def forward(self, rows: Tensor) -> Tensor:
        ids = rows.long()
        logits: Tensor = self.plain(ids, (ids != 0).long())
        return logits


class DeepRiver:
    """`learn_many` over a batch at a time; it takes no weights."""

    def __init__(self, threads: int) -> None:
        """Start at the pretrained encoder."""
        import pandas as pd
        from deep_river.classification import Classifier

        torch.set_num_threads(threads)
        self._frame: Any = pd.DataFrame
        self._series: Any = pd.Series
        self._learner = Classifier(
            module=_OfColumns(),
            loss_fn="cross_entropy",
            optimizer_fn=torch.optim.AdamW,
            lr=plain.LR,
            gradient_clip_value=plain.MAX_GRAD_NORM,
        )

    def round(self, batches: Sequence[Sequence[Text]], number: int) -> list[float]:
        """Take a step per batch; it tells no losses."""
        for batch in batches:
            rows = [[*text.ids.tolist(), *[0] * (MOST_TOKENS - len(text.ids))] for text in batch]
            columns = [f"token_{place:03d}" for place in range(MOST_TOKENS)]
            labels = self._series([text.label for text in batch])
            self._learner.learn_many(self._frame(rows, columns=columns), labels)
        return []
