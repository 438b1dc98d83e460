"""The update by the Trainer of transformers: padded to the longest, or grouped by length."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.updating import plain
from benchmarks.updating.texts import Text, texts


class _Rows(Dataset[dict[str, Any]]):
    def __init__(self, rows: Sequence[Text]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = self._rows[place]
        return {"input_ids": row.ids, "label": row.label, "weight": row.weight}


def _collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids = [torch.from_numpy(row["input_ids"]) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(own) for own in ids], batch_first=True),
        "labels": torch.tensor([row["label"] for row in rows]),
        "weights": torch.tensor([row["weight"] for row in rows]),
    }


class _Weighted(Trainer):
    """Trainer with the weighted loss; keeps what each step had."""

    losses: list[torch.Tensor]
    num_tokens = 0

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
        logits = model(inputs["input_ids"], inputs["attention_mask"])
        loss = plain.weighted_loss(logits, inputs["labels"], inputs["weights"])
        self.losses.append(loss.detach())
        self.num_tokens += int(inputs["attention_mask"].sum())
        return loss


class _Timing(TrainerCallback):
    def __init__(self, clock: Any) -> None:
        self._clock = clock

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._clock.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._clock.stop()


class HuggingFace:
    """The Trainer with its defaults: fused AdamW, clipping at 1.

    Grouped by length, its epoch has four rounds' texts, of which a round takes what its sampler
    sorts together: a quarter.
    """

    def __init__(self, batch_size: int, threads: int, clock: Any, *, grouped: bool) -> None:
        """Start at the pretrained encoder."""
        torch.set_num_threads(threads)
        self._batch_size = batch_size
        self._clock = clock
        self._grouped = grouped
        self._model = plain.PlainModel()
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=plain.LR, weight_decay=0.0, fused=True
        )
        self.num_tokens = 0

    def round(self, batches: Sequence[Sequence[Text]], number: int) -> list[float]:
        """Take a step per batch; return their losses."""
        rows = [text for batch in batches for text in batch]
        if self._grouped:
            rows = texts(4 * len(rows), seed=1_000 + number)
        schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: 1.0)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=self._batch_size,
                max_steps=len(batches),
                train_sampling_strategy="group_by_length" if self._grouped else "sequential",
                max_grad_norm=plain.MAX_GRAD_NORM,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                logging_strategy="no",
                remove_unused_columns=False,
                use_cpu=True,
                data_seed=number,
            )
            trainer = _Weighted(
                model=self._model,
                args=arguments,
                train_dataset=_Rows(rows),
                data_collator=_collate,
                optimizers=(self._optimizer, schedule),
                callbacks=[_Timing(self._clock)],
            )
            trainer.losses = []
            trainer.train()
        self.num_tokens = trainer.num_tokens
        return [float(loss) for loss in trainer.losses]
