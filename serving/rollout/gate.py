"""Checks of a new version: sound scores, and nothing that the serving version contradicts.

1. Shapes and finite numbers of the scores of probes; numbers of the files are checked by the load.
2. What training never moves is what it was, under unchanged settings.
3. The manifest's evaluation is not significantly worse.
4. Recent requests, requests of known queries and golden requests, scored again, agree in order and
   distribution with the serving version, as far as both have learned the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from learner.artifact import Document, Inspectable, Scorer, Scores, ScoringInput, Version
from serving.errors import Refused
from serving.inference.slot import LoadedModel
from serving.rollout.comparison import (
    Replayed,
    Tolerance,
    check_agreement,
    check_distribution,
    news,
)
from serving.rollout.evaluation import Margins, check_evaluation
from weighting.constraints import NotNegative, NotNegativeInt, Positive, check

_WORDS = (
    "trail running shoe, red",
    "ceramic mug, blue",
    "garden hose 20 m",
    "wireless headphones with noise cancelling",
    "leather wallet for men",
    "waterproof rain jacket",
    "LED desk lamp, dimmable",
    "organic green tea, 100 g",
)
_DOCUMENTS = tuple(Document(text=text) for text in _WORDS)
_QUERIES = ("red running shoes", "lamp", "gift for a tea drinker", "jacket", "hose", "music")

#: Few and small. Ordinary searches, and odd ones on purpose: no query at all, no text at all, other
#: scripts, and a text that must be truncated.
GOLDEN: tuple[ScoringInput, ...] = (
    *(ScoringInput(query=query, documents=_DOCUMENTS) for query in _QUERIES),
    ScoringInput(query="", documents=(Document(text="garden hose 20 m"), Document(text=""))),
    ScoringInput(query="téléphone 电话", documents=(Document(text="téléphone sans fil " * 100),)),
)
Check = Callable[[str], AbstractContextManager[None]]
"""Name of a check -> context that counts it; an error inside becomes a refusal by that name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """Comparison of a new version with the one that serves."""

    min_agreement: Annotated[
        float,
        Meta(
            ge=-1,
            le=1,
            description="Least correlation of the scores inside requests, between versions that "
            "have learned the same; -1 allows any. What is new in a version lowers it.",
        ),
    ] = 0.5
    max_logit_shift: Annotated[
        Positive,
        Meta(
            description="Largest change of the mean logit of a probability, between versions that "
            "have learned the same. What is new in a version raises it, up to fivefold."
        ),
    ] = 1.5
    max_auc_drop: Annotated[
        NotNegative,
        Meta(
            description="AUC (within lists; without lists, pooled) in the manifest below that "
            "in use, beyond three standard errors."
        ),
    ] = 0.1
    max_entropy_rise: Annotated[
        NotNegative,
        Meta(
            description="Entropy relative to the position above that in use, beyond three standard "
            "errors."
        ),
    ] = 0.2
    max_calibration_shift: Annotated[
        NotNegative,
        Meta(
            description="Logarithm of predicted to observed positives, further from 0 than that in "
            "use, beyond three standard errors."
        ),
    ] = 0.7
    replay_documents: Annotated[
        NotNegativeInt,
        Meta(description="Documents of recent requests that a new version scores again."),
    ] = 256
    known_queries: Annotated[
        NotNegativeInt, Meta(description="Recurring queries that a version is compared on.")
    ] = 8

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "gate")


class Gate:
    """Judge of new versions; used by the loader thread."""

    def __init__(self, config: GateConfig, golden: Sequence[ScoringInput] = GOLDEN) -> None:
        """Keep the settings, and the requests that every version answers before it is used."""
        self._config, self._golden = config, golden

    def probe(self, scorer: Scorer, check: Check) -> list[Replayed]:
        """Score the golden requests, and some of queries that the version knows.

        Raises:
            Refused: it cannot, or the scores are not sound.
        """
        requests = list(self._golden)
        if isinstance(scorer, Inspectable):
            known = scorer.known_queries(self._config.known_queries)
            requests += [ScoringInput(query=query, documents=_DOCUMENTS) for query in known]
        return self._score(scorer, requests, check)

    def compare(
        self,
        version: Version,
        scorer: Scorer,
        served: LoadedModel,
        recent: Sequence[Replayed],
        check: Check,
    ) -> None:
        """Compare a version with the one in use.

        Args:
            version: the new one.
            scorer: of it.
            served: the version in use.
            recent: newest requests that it answered, oldest first, with its scores.
            check: counts.

        Raises:
            Refused: names the check and the reason.
        """
        with check("fixed"):
            check_fixed(version, scorer, served)
        config = self._config
        with check("evaluation"):
            margins = Margins(
                auc=config.max_auc_drop,
                entropy=config.max_entropy_rise,
                calibration=config.max_calibration_shift,
            )
            check_evaluation(version.evaluation, served.version.evaluation, margins)
        tolerance = Tolerance(
            min_agreement=config.min_agreement,
            max_logit_shift=config.max_logit_shift,
            news=news(version, served.version),
        )
        num_golden = len(self._golden)
        groups = {
            "recent": self._newest(recent),
            "known": served.probes[num_golden:],
            "golden": served.probes[:num_golden],
        }
        for kind, replayed in groups.items():
            scores = [
                one.scores for one in self._score(scorer, [old.request for old in replayed], check)
            ]
            with check("agreement"):
                check_agreement(kind, replayed, scores, tolerance)
            with check("distribution"):
                check_distribution(kind, replayed, scores, tolerance)

    def _score(
        self, scorer: Scorer, requests: Sequence[ScoringInput], check: Check
    ) -> list[Replayed]:
        if not requests:
            return []
        with check("warm"):
            scores = scorer.score(requests)
        with check("shape"):
            check_shape(requests, scores)
        with check("finite"):
            check_finite(scores)
        return [
            Replayed(request=request, scores=own)
            for request, own in zip(requests, scores, strict=True)
        ]

    def _newest(self, recent: Sequence[Replayed]) -> list[Replayed]:
        """Return the newest requests, of at most `replay_documents` documents together."""
        left, found = self._config.replay_documents, []
        for one in reversed(recent):
            left -= len(one.request.documents)
            if left < 0:
                break
            found.append(one)
        return found


def check_fixed(version: Version, scorer: Scorer, served: LoadedModel) -> None:
    """Refuse a version in which something moved that training never moves.

    Versions under other settings, or of a learner with other libraries, are not compared.

    Raises:
        Refused: tokenizer, frozen layers or the way of scoring are others.
    """
    before = served.version.manifest
    same = all(
        version.manifest.get(key) == before.get(key) for key in ("config_sha256", "fingerprint")
    )
    if not same or not isinstance(scorer, Inspectable):
        return
    if isinstance(served.scorer, Inspectable) and scorer.fixed != served.scorer.fixed:
        reason = "frozen layers, tokenizer or scoring are not those of the version in use"
        raise Refused("fixed", f"{reason}, though the settings are")


def check_shape(requests: Sequence[ScoringInput], scores: Sequence[Scores]) -> None:
    """Refuse `scores` unless there is one per request, with one number per document.

    Raises:
        Refused: names the first request that differs.
    """
    if len(scores) != len(requests):
        raise Refused("shape", f"{len(scores)} answers to {len(requests)} requests")
    for index, (request, answer) in enumerate(zip(requests, scores, strict=True)):
        expected = (len(request.documents),)
        for name, values in _columns(answer):
            if values.shape != expected:
                found = f"{name} has shape {values.shape}, expected {expected}"
                raise Refused("shape", f"request {index}: {found}")


def check_finite(scores: Sequence[Scores]) -> None:
    """Refuse NaN and infinities.

    Raises:
        Refused: names the first request that has one.
    """
    for index, answer in enumerate(scores):
        for name, values in _columns(answer):
            if not np.isfinite(values).all():
                raise Refused("finite", f"request {index}: {name} has a number that is not finite")


def _columns(scores: Scores) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield each array by its name: the probability of each task, contributions, the score."""
    yield from scores.probability.items()
    yield from scores.contributions.items()
    yield "score", scores.score
