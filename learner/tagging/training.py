"""Steps of a tagger over tagged texts.

Legend: N texts of a step, W_i words of text i that have a token, w_i its weight.

    L = 1/N sum_i w_i 1/W_i sum_t -log p(tag of word t)

so a text counts by its weight, however long it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from learner import arithmetic
from learner.config import LearnerConfig
from learner.passes.forward import Ids
from learner.tagging.tagger import Tagger, Tokens
from learner.training.adamw import AdamW, Group


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaggedTokens:
    """A text to learn from.

    Attributes:
        tokens: of the text.
        targets: (W,) number of the tag of each word that has a token.
        weight: w_i.
    """

    tokens: Tokens
    targets: Ids
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochResult:
    """What an epoch came to.

    Attributes:
        loss: mean L of its texts; NaN if no step was taken.
        steps: taken.
        refused: steps not taken, as loss or gradient were not finite.
    """

    loss: float
    steps: int
    refused: int


class TagTraining:
    """Owner of the optimiser of a tagger: AdamW, with clipped gradients."""

    def __init__(
        self, tagger: Tagger, config: LearnerConfig, *, batch_size: int, seed: int
    ) -> None:
        """Start at the parameters as they are.

        Args:
            tagger: what is trained.
            config: of it learning rates, weight decay, largest gradient norm, precision, dropout
                and threads are taken; rates are meant for a step of `batch_size` texts.
            batch_size: texts of a step.
            seed: of the order of texts, and of dropout.
        """
        self._tagger = tagger
        self._config = config
        self._batch_size = batch_size
        self._seed = seed
        self._num_steps = 0
        encoder = Group(
            parameters=tagger.encoder_parameters, lr=config.lr, weight_decay=config.weight_decay
        )
        head = Group(parameters=tagger.head_parameters, lr=config.head_lr)
        self._optimizer = AdamW((encoder, head), batch_size)

    def epoch(
        self,
        texts: Sequence[TaggedTokens],
        number: int,
        *,
        advance: Callable[[int], None] = lambda texts: None,
    ) -> EpochResult:
        """Take one pass over the texts, in an order drawn by the seed and the epoch's number."""
        arithmetic.use(self._config.threads)
        draw = np.random.Generator(np.random.PCG64([self._seed, number]))
        order = draw.permutation(len(texts)).tolist()
        total, num_learned, steps, refused = 0.0, 0, 0, 0
        for start in range(0, len(order), self._batch_size):
            batch = [texts[place] for place in order[start : start + self._batch_size]]
            loss = self.step(batch)
            if math.isfinite(loss):
                total += loss * len(batch)
                num_learned += len(batch)
                steps += 1
            else:
                refused += 1
            advance(len(batch))
        mean = total / num_learned if num_learned else math.nan
        return EpochResult(loss=mean, steps=steps, refused=refused)

    def step(self, batch: Sequence[TaggedTokens]) -> float:
        """Take one step; return L before it.

        It is NaN where loss or gradient are not finite: then nothing moves.
        """
        config = self._config
        if config.dropout:
            torch.manual_seed(self._seed + self._num_steps)
        self._num_steps += 1
        self._tagger.model.train(config.dropout > 0)
        self._optimizer.zero_grad()
        loss = self._backward(batch)
        moving = [p for p in self._optimizer.parameters() if p.grad is not None]
        noise = math.sqrt(self._batch_size / len(batch))  # as of `training.optimizer`
        norm = float(torch.nn.utils.clip_grad_norm_(moving, config.max_grad_norm * noise))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return math.nan
        self._optimizer.step(len(batch))
        return loss

    def _backward(self, batch: Sequence[TaggedTokens]) -> float:
        """Add up the gradient of L pass by pass, so that one pass is in memory at a time."""
        loss = 0.0
        lower = self._config.precision == "bfloat16"
        device = torch.device(self._config.device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=lower):
            for part, logits in self._tagger.logits([text.tokens for text in batch]):
                own = tag_loss(logits.float(), [batch[place] for place in part], len(batch))
                own.backward()  # type: ignore[no-untyped-call]
                loss += float(own.detach())
        return loss


def tag_loss(logits: Tensor, texts: Sequence[TaggedTokens], num_texts: int) -> Tensor:
    """Return the part of L that some texts of a step have.

    Args:
        logits: (sum W, K), of the words of these texts, one text after the other.
        texts: these.
        num_texts: N of the step.
    """
    targets = np.concatenate([text.targets for text in texts])
    shares = [
        np.full(len(text.targets), text.weight / (len(text.targets) * num_texts))
        for text in texts
        if len(text.targets)
    ]
    share = torch.from_numpy(np.concatenate([np.zeros(0), *shares])).to(logits)
    each = cross_entropy(logits, torch.from_numpy(targets).to(logits.device), reduction="none")
    return (share * each).sum()
