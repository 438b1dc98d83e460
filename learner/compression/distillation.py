"""Distillation: a smaller encoder learns the vectors of a larger one, and its order of lists.

For texts with unit vectors u of the student and v of the teacher, and lists with softmax p of the
student's scaled cosines and q of the teacher's:

    loss = mean over texts |u - v|^2 + mean over lists KL(q || p)

Both encoders have one width, so their vectors are compared as they are. The parameters of the
layers move; embeddings stay the teacher's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from learner.compression import magnitude
from learner.compression.lists import (
    Columns,
    LabelledList,
    columns_of,
    cosines,
    encoded,
    log_shares,
)
from learner.compression.shape import layers_of
from learner.encoder.encoder import Encoder
from learner.encoder.tokens import Texts
from learner.training.adamw import AdamW, Group

_MAX_NORM = 1.0
_WARM_UP = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """How a student learns.

    Attributes:
        epochs: over the lists.
        lr: highest learning rate; it rises over the first tenth of the steps, then falls to 0.
        batch_size: least number of rows of a step.
        scale: of the cosine in a logit.
        seed: of the order.
        masks: weights that stay, where others are zero.
    """

    epochs: int
    lr: float
    batch_size: int
    scale: float
    seed: int
    masks: Mapping[Tensor, Tensor] = field(default_factory=dict)


def distil(
    student: Encoder,
    teacher: Encoder,
    tokens: Texts,
    lists: Sequence[LabelledList],
    how: Distillation,
    *,
    advance: Callable[[int], None] = lambda rows: None,
) -> list[float]:
    """Train the student; return the mean loss of each epoch.

    Args:
        student: moves.
        teacher: does not.
        tokens: of both.
        lists: texts to learn from; labels are not used.
        how: see `Distillation`.
        advance: called with numbers of rows learned.
    """
    texts = list(dict.fromkeys(t for own in lists for t in (own.query, *own.texts)))
    place = {text: number for number, text in enumerate(texts)}
    target = encoded(teacher, tokens, texts)
    layers = layers_of(student.model)
    student.model.requires_grad_(False)
    layers.requires_grad_(True)
    group = Group(parameters=list(layers.parameters()), lr=how.lr)
    optimizer = AdamW([group], how.batch_size)
    batches = _batches(lists, how.batch_size)
    num_steps, step, losses = how.epochs * len(batches), 0, []
    for epoch in range(how.epochs):
        total = 0.0
        draw = np.random.Generator(np.random.PCG64([how.seed, epoch]))
        for number in draw.permutation(len(batches)).tolist():
            group.lr = how.lr * _factor(step, num_steps)
            columns = columns_of(batches[number])
            own = target[[place[text] for text in columns.texts]]
            total += _step(student, tokens, columns, own, optimizer, how)
            step += 1
            advance(len(columns.label))
        losses.append(total / len(batches))
    student.model.requires_grad_(False)
    return losses


def _step(
    student: Encoder,
    tokens: Texts,
    columns: Columns,
    target: Tensor,
    optimizer: AdamW,
    how: Distillation,
) -> float:
    vectors = student([tokens.ids(text) for text in columns.texts])
    p = log_shares(how.scale * cosines(vectors, columns), columns)
    q = log_shares(how.scale * cosines(target, columns), columns)
    divergence = (q.exp() * (q - p)).sum() / columns.num_lists
    loss = (vectors - target).square().sum(-1).mean() + divergence
    optimizer.zero_grad()
    loss.backward()
    moving = [parameter for parameter in optimizer.parameters() if parameter.grad is not None]
    nn.utils.clip_grad_norm_(moving, _MAX_NORM)
    optimizer.step(len(columns.label))
    magnitude.apply(how.masks)
    return float(loss.detach())


def _factor(step: int, num_steps: int) -> float:
    """Return the share of the highest learning rate at a step, from 0."""
    warm_up = max(1.0, _WARM_UP * num_steps)
    return min((step + 1) / warm_up, (num_steps - step) / max(num_steps - warm_up, 1.0), 1.0)


def _batches(lists: Sequence[LabelledList], size: int) -> list[list[LabelledList]]:
    """Divide lists: a batch closes at the first list with `size` rows or more."""
    found: list[list[LabelledList]] = [[]]
    num_rows = 0
    for own in lists:
        if num_rows >= size:
            found.append([])
            num_rows = 0
        found[-1].append(own)
        num_rows += len(own.texts)
    return found
