"""A loaded version that scores: lists in, arrays out; the same numbers whatever a request is batched with.

A served logit is the stacker's a encoder + b memory + c, both parts as if the item were shown first; what ranking sorts by is the
probability that an item is clicked and then bought.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from learner.encoder.model import Encoder, PrefixCache, load_saved
from learner.encoder.tokens import Texts, load_tokenizer
from learner.ranker import INTERACTIONS_ON_DISK, Ranker
from learner.request import Scores, ScoringInput
from learner.residual import QueryResidual
from learner.store import blobs
from weighting.estimators.stacker import Stacker
from weighting.tasks import CLICK, PURCHASE, TASKS, TaskName
from weighting.weigher import Weigher, WeigherConfig

Array = NDArray[np.float64]


def load_scorer(
    path: Path, version: str, *, threads: int, caches: MutableMapping[str, Any] | None = None
) -> ModelScorer:
    """The scorer in a version's folder, whose digests the caller has checked.

    Args:
        path: the version's folder.
        version: its name.
        threads: of the forward pass.
        caches: what frozen layers made of texts, by the digest of those layers; versions that share them share it.
    """
    torch.set_num_threads(threads)
    heads: dict[str, Any] = msgspec.json.decode((path / "heads.json").read_bytes())
    model = load_saved(path, blobs.tensors_from_bytes((path / "model.safetensors").read_bytes()))
    cache = (caches if caches is not None else {}).setdefault(heads["prefix"], PrefixCache())
    encoder = Encoder(model, tuning=heads["tuning"], pooling=heads["pooling"], cache=cache)
    residual = QueryResidual(encoder.width)
    vectors = blobs.arrays_from_bytes((path / "residual.safetensors").read_bytes())["vectors"]
    residual.load_vectors(msgspec.json.decode((path / "residual.json").read_bytes()), vectors)
    texts = Texts(load_tokenizer(path), max_tokens=heads["max_tokens"])
    weigher = Weigher(WeigherConfig.from_disk(heads["weighting"]))
    weigher.restore((path / "estimator.msgpack").read_bytes())
    interactions = {written: name for name, written in INTERACTIONS_ON_DISK.items()}
    ranker = Ranker(
        encoder,
        texts,
        residual,
        interaction=interactions[heads["interaction"]],
        scale=heads["scale"],
        exponent=weigher.scheme.exponent,
    )
    tensors = blobs.tensors_from_bytes((path / "heads.safetensors").read_bytes())
    with torch.no_grad():
        for name, parameter in ranker.heads().items():
            parameter.copy_(tensors[name])
    stackers = {task: Stacker() for task in TASKS}
    kept: dict[str, bytes] = msgspec.msgpack.decode((path / "stackers.msgpack").read_bytes())
    for task, stacker in stackers.items():
        stacker.restore(kept[task])
    return ModelScorer(version, ranker, weigher, stackers)


class ModelScorer:
    """Encoder, memory and stacker of one version; confined to the thread that uses it."""

    def __init__(
        self, version: str, ranker: Ranker, weigher: Weigher, stackers: dict[TaskName, Stacker]
    ) -> None:
        """Take the parts; nothing is encoded yet."""
        self._version = version
        self._ranker = ranker.eval()
        self._weigher = weigher
        self._stackers = stackers

    @property
    def version(self) -> str:
        """The name of the version."""
        return self._version

    def score(self, requests: Sequence[ScoringInput]) -> list[Scores]:
        """Score each request's documents; their texts are encoded together, each distinct one once."""
        queries = [request.query for request in requests for _ in request.documents]
        items = [document.text for request in requests for document in request.documents]
        with torch.inference_mode():
            logits = self._ranker(queries, items)
        encoder = {
            CLICK: logits.click.double().numpy(),
            PURCHASE: logits.purchase.double().numpy(),
        }
        prior = {task: self._weigher.prior(task) for task in TASKS}
        answers, start = [], 0
        for request in requests:
            here = slice(start, start := start + len(request.documents))
            p = {
                task: 1 / (1 + np.exp(-self._served(task, request, encoder[task][here])))
                for task in TASKS
            }
            answers.append(
                Scores(
                    click=p[CLICK],
                    purchase=p[PURCHASE],
                    score=p[CLICK] * p[PURCHASE],
                    prior=prior,
                )
            )
        return answers

    def _served(self, task: TaskName, request: ScoringInput, encoder: Array) -> Array:
        """Stacked logits (N,) of one request's documents."""
        memory = self._weigher.pair_memory_logits(task, request.query, request.documents)
        encoder = self._weigher.scheme.invert(encoder, self._weigher.prior(task))
        return self._stackers[task].get(encoder, memory)
