"""Epochs of a tagger over texts, until dev is no better; the best epoch is the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deploy.errors import DeployError
from deploy.tagging.texts import TaggedText
from learner.config import LearnerConfig
from learner.tagging.entities import TagFigures, figures
from learner.tagging.tagger import Tagger
from learner.tagging.training import TaggedTokens, TagTraining


@dataclass(frozen=True, slots=True, kw_only=True)
class TagPlan:
    """How to learn.

    Attributes:
        epochs: at most.
        patience: epochs without a rise on dev, after which learning ends.
        seed: of the order of texts, and of dropout.
        batch_size: texts of a step.
        tuning: what of the encoder moves.
        prefixes: whether tags have prefixes.
    """

    epochs: int
    patience: int
    seed: int
    batch_size: int
    tuning: str
    prefixes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Texts of a part as the encoder reads them, and the words that it does not see.

    Attributes:
        texts: in the order of the part; the target of a tag that is not learned is -1.
        truth: tags of all words of each text.
        words_cut: beyond the longest text; in the rows `rows_cut`.
        words_dropped: of characters that the tokenizer drops; in the rows `rows_dropped`.
    """

    texts: Sequence[TaggedTokens]
    truth: Sequence[Sequence[str]]
    words_cut: int
    words_dropped: int
    rows_cut: Sequence[int]
    rows_dropped: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One epoch.

    Attributes:
        number: from 1.
        loss: mean of its texts.
        refused: steps not taken, as loss or gradient were not finite.
        dev: figures; None without a part for it.
    """

    number: int
    loss: float
    refused: int
    dev: TagFigures | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """Result of learning.

    Attributes:
        files: of the folder.
        epochs: those taken.
        best: the one whose parameters it has.
        test: figures; None without a part for it.
        parts: train, dev and test as they were read.
    """

    files: Mapping[str, bytes]
    epochs: Sequence[Epoch]
    best: Epoch
    test: TagFigures | None
    parts: Mapping[str, Part]


def train(
    config: LearnerConfig,
    tags: Sequence[str],
    parts: Mapping[str, Sequence[TaggedText]],
    plan: TagPlan,
    *,
    advance: Callable[[int], None] = lambda texts: None,
    each: Callable[[Epoch], None] = lambda epoch: None,
    tokenised: Callable[[str, Part], None] = lambda name, part: None,
) -> Trained:
    """Learn; see the module.

    Args:
        config: of encoder and optimiser.
        tags: to learn.
        parts: `train`, `dev` and `test`.
        plan: how.
        advance: called with numbers of texts learned.
        each: called after each epoch.
        tokenised: called with each part before the first.

    Raises:
        DeployError: more than half of the steps of an epoch were not finite.
        LearnerError: of the model.
    """
    tagger = Tagger(config, tags, tuning=plan.tuning)
    read = {name: _part(tagger, own) for name, own in parts.items()}
    for name, part in read.items():
        tokenised(name, part)
    training = TagTraining(tagger, config, batch_size=plan.batch_size, seed=plan.seed)
    epochs: list[Epoch] = []
    best: Epoch | None = None
    state = tagger.moving()
    for number in range(1, plan.epochs + 1):
        result = training.epoch(read["train"].texts, number, advance=advance)
        if result.refused > result.steps:
            raise DeployError(
                f"epoch {number}: the loss or gradient of {result.refused} of "
                f"{result.refused + result.steps} steps was not finite. Lower learner.lr (it is "
                f"{config.lr:g})."
            )
        dev = _judged(tagger, read["dev"], plan)
        found = Epoch(number=number, loss=result.loss, refused=result.refused, dev=dev)
        epochs.append(found)
        each(found)
        if best is None or dev is None or _measure(dev) > _measure(best.dev):
            best, state = found, tagger.moving()
        if number - best.number >= plan.patience:
            break
    assert best is not None
    tagger.restore(state)
    return Trained(
        files=tagger.files(),
        epochs=epochs,
        best=best,
        test=_judged(tagger, read["test"], plan),
        parts=read,
    )


def _part(tagger: Tagger, texts: Sequence[TaggedText]) -> Part:
    number_of = {tag: number for number, tag in enumerate(tagger.tags)}
    found = []
    cut: dict[int, int] = {}
    dropped: dict[int, int] = {}
    for text in texts:
        tokens = tagger.tokens(text.words)
        targets = [number_of.get(text.tags[word], -1) for word in tokens.words.tolist()]
        found.append(
            TaggedTokens(
                tokens=tokens, targets=np.asarray(targets, dtype=np.int64), weight=text.weight
            )
        )
        if tokens.num_cut:
            cut[text.row] = tokens.num_cut
        if missing := tokens.num_words - len(tokens.words) - tokens.num_cut:
            dropped[text.row] = missing
    return Part(
        texts=found,
        truth=[text.tags for text in texts],
        words_cut=sum(cut.values()),
        words_dropped=sum(dropped.values()),
        rows_cut=list(cut),
        rows_dropped=list(dropped),
    )


def _judged(tagger: Tagger, part: Part, plan: TagPlan) -> TagFigures | None:
    if not part.texts:
        return None
    predicted = tagger.predict([text.tokens for text in part.texts])
    return figures(part.truth, predicted, prefixes=plan.prefixes)


def _measure(dev: TagFigures | None) -> tuple[float, float]:
    """Return what decides which epoch is best: F1, then accuracy, as where nothing is found yet."""
    return (-1.0, -1.0) if dev is None else (dev.entities.f1, dev.accuracy)
