"""A loaded version that scores: requests in, probabilities out.

Invariant: the same request gives the same bits, on a CPU whatever it is batched with; see
`learner.encoder.encoder`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit

from learner import arithmetic
from learner import version_layout as layout
from learner.encoder.encoder import Encoder
from learner.encoder.head import Head
from learner.encoder.idle import IdleEncoders, Loan
from learner.encoder.load import load_saved
from learner.encoder.starting import StartingEncoder
from learner.encoder.token_types import mark_pairs
from learner.encoder.tokens import Texts, load_tokenizer
from learner.engines.registry import passes_of
from learner.finite import check_numbers, check_tensors
from learner.parts.part import Pairs, Vectors
from learner.parts.registry import make_parts
from learner.passes.device import check_device
from learner.passes.forward import Ids, Passes
from learner.ranker import PairLogits, Ranker
from learner.request import Scores, ScoringInput
from learner.residual import QueryResidual
from learner.served import Array, ServedScore, ranking_score
from learner.value_head import of_value
from weighting.config import WeigherConfig
from weighting.tasks import TASKS, TaskName, root
from weighting.weigher import Weigher

_BASE, _VALUE = "", "value"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FixedParts:
    """What training never moves, as it was loaded; the next version with the same files shares it.

    Attributes:
        encoders: that share their frozen parameters, what these made of texts, and their passes,
            which are found once, before weights are kept in another precision.
        starting: the encoder as it started, and its vectors of recent texts.
        texts: tokens, and those of recent texts.
        digest: of all of it.
    """

    encoders: IdleEncoders
    starting: StartingEncoder
    texts: Texts
    digest: str


@torch.inference_mode(False)  # in it parameters have no versions, which tell what is laid out
def load_scorer(
    path: Path,
    version: str,
    *,
    threads: int,
    device: str = "cpu",
    precision: str = "learned",
    engine: str = "torch",
    fixed: FixedParts | None = None,
) -> ModelScorer:
    """Load the scorer in a version's folder, whose digests the caller has checked.

    Args:
        path: the version's folder.
        version: its name.
        threads: of torch in this process, where no learner shares it; else the learner's.
        device: of the encoder and the heads.
        precision: of the encoder's products, ``learned`` or as of `Encoder`.
        engine: that runs the encoder; a key of `learner.engines.registry.ENGINES`.
        fixed: from a version with equal files (`version_layout.fixed_files`), loaded with the same
            arguments; of those only the settings are read again.

    Raises:
        Corrupt: a number of a file is NaN or infinite.
        DeviceMissing: `device` cannot be used here.
        ModelUnsupported: the encoder, the processor or the engine does not allow the precision.
    """
    check_device(device, setting="serving.device")
    arithmetic.use(threads, device)

    def read(name: str) -> bytes:
        return (path / name).read_bytes()

    state = layout.read_scoring(read)
    settings = state.settings
    model_files = layout.read_model_files(read, moving_only=fixed is not None)
    _check_finite(version, state, model_files)
    tensors, loan = layout.merged(model_files), Loan()
    with layout.reading(", ".join(model_files)):
        if fixed is None:
            if precision == "learned":
                precision = settings.precision or layout.FLOAT32
            passes = passes_of(engine, precision)
            encoder = _loaded(path, settings, tensors, device, precision, passes)
        else:
            encoder = fixed.encoders.take(tensors, loan)
    residual = QueryResidual(encoder.width)
    residual.load_vectors(state.queries, state.residuals)
    weigher = Weigher(WeigherConfig.from_disk(settings.weighting))
    weigher.restore(state.estimators)
    ranker = Ranker(
        encoder,
        fixed.texts if fixed else Texts(load_tokenizer(path), max_tokens=settings.max_tokens),
        residual,
        interaction=settings.interaction,
        logit_scale=settings.logit_scale,
        exponent=weigher.exponent,
        head=_head(settings, encoder.width),
        value=any(map(of_value, state.heads)),
        starting=fixed.starting if fixed else None,
    )
    with layout.reading(layout.HEADS):
        ranker.load_heads(state.heads)
    if fixed is None:
        start = layout.read_start(read)
        check_tensors(f"{version}/{layout.START}", start)
        with layout.reading(layout.START):
            ranker.starting.load(start)
    initial = weigher.config.initial()
    parts = make_parts(width=encoder.width, logit_scale=settings.logit_scale)
    served = ServedScore(weigher.invert, parts, initial)
    with layout.reading(f"{layout.STACKERS}, {layout.PARTS}"):
        served.restore(state.stackers, state.parts)
    if fixed is None:
        base = layout.base_file(settings.model_files)
        names = layout.merged({file: own for file, own in model_files.items() if file != base})
        fixed = _fixed_parts(ranker, loan, names)  # of the weights as they were learned
        encoder.round_weights()
        encoder.capture_ahead()
        ranker.starting.round_weights()
        ranker.starting.capture_ahead()
    return ModelScorer(version, ranker, weigher, served, fixed=fixed, loan=loan)


def _loaded(
    path: Path,
    settings: layout.ScoringSettings,
    tensors: Mapping[str, torch.Tensor],
    device: str,
    precision: str,
    passes: Passes | None,
) -> Encoder:
    model = load_saved(path, tensors, tuning=settings.tuning)
    if settings.head:
        mark_pairs(model, settings.head.separator)
    return Encoder(
        model.to(device),
        tuning=settings.tuning,
        pooling=settings.pooling,
        precision=precision,
        passes=passes,
    )


def _head(settings: layout.ScoringSettings, width: int) -> Head | None:
    """Return a head without values, None where the version has none."""
    if not settings.head:
        return None
    return Head(settings.head.kind, width, separator=settings.head.separator)


def _fixed_parts(ranker: Ranker, loan: Loan, names: Iterable[str]) -> FixedParts:
    """Return what training never moves; ask before the first text, which changes the tokenizer."""
    encoder, texts = ranker.encoder, ranker.texts
    parts = (
        encoder.prefix_digest(),
        ranker.starting.digest(),
        texts.tokenizer.backend_tokenizer.to_str(),
        texts.max_tokens,
        ranker.interaction,
        ranker.logit_scale,
    )
    return FixedParts(
        encoders=IdleEncoders(encoder, loan, names),
        starting=ranker.starting,
        texts=texts,
        digest=hashlib.sha256(repr(parts).encode()).hexdigest(),
    )


def _check_finite(
    version: str,
    state: layout.ScoringState,
    model_files: Mapping[str, Mapping[str, torch.Tensor]],
) -> None:
    for file, tensors in model_files.items():
        check_tensors(f"{version}/{file}", tensors)
    check_tensors(f"{version}/{layout.HEADS}", state.heads)
    check_tensors(f"{version}/{layout.RESIDUALS}", {"vectors": state.residuals})
    check_numbers(f"{version}/{layout.ESTIMATORS}", state.estimators)
    for task, stacker in state.stackers.items():
        check_numbers(f"{version}/{layout.STACKERS}: {task}", stacker)
    for name, part in state.parts.items():
        check_numbers(f"{version}/{layout.PARTS}: {name}", part)


class ModelScorer:
    """Encoder, memorisation model and served score of one version; confined to one thread."""

    def __init__(
        self,
        version: str,
        ranker: Ranker,
        weigher: Weigher,
        served: ServedScore,
        *,
        fixed: FixedParts | None = None,
        loan: Loan | None = None,
    ) -> None:
        """Take the parts; nothing is encoded yet. A `loan` of the encoder ends with the scorer."""
        self._version = version
        self._loan = loan
        self.fixed_parts = fixed
        self._ranker = ranker.eval()
        self._weigher = weigher
        self._served = served

    @property
    def version(self) -> str:
        """The name of the version."""
        return self._version

    @property
    def fixed(self) -> str:
        """Digest of all that training never moves, as it was loaded."""
        return self.fixed_parts.digest if self.fixed_parts else ""

    def kept(self) -> Sequence[Ids]:
        """Return token ids of the texts whose vectors are kept, newest first."""
        return self._ranker.kept()

    def keep(self, texts: Sequence[Ids]) -> None:
        """Encode texts of the same tokenizer ahead of the requests that will ask for them."""
        self._ranker.keep(texts)

    def known_queries(self, number: int) -> Sequence[str]:
        """Return the queries with the longest residuals, at most `number`."""
        residual = self._ranker.residual
        queries = residual.queries()
        vectors = residual.get_all(queries)
        longest = np.argsort(-np.linalg.norm(vectors, axis=1), kind="stable")
        return [queries[place] for place in longest[:number]]

    def score(self, requests: Sequence[ScoringInput]) -> list[Scores]:
        """Score each request's documents; each distinct text of the requests is encoded once."""
        queries = [request.query for request in requests for _ in request.documents]
        items = [document.text for request in requests for document in request.documents]
        with torch.inference_mode():
            encoder = _on_host(self._ranker(queries, items))
            query_vectors, item_vectors = map(self._ranker.starting_vectors, (queries, items))
        answers, start = [], 0
        for request in requests:
            here = slice(start, start := start + len(request.documents))
            own = {name: logits[here] for name, logits in encoder.items()}
            answers.append(self._answer(request, own, query_vectors[here], item_vectors[here]))
        return answers

    def _answer(
        self,
        request: ScoringInput,
        encoder: dict[str, Array],
        query_vectors: Vectors,
        item_vectors: Vectors,
    ) -> Scores:
        """Return the scores of one request, from its documents' logits (N,) and vectors (N, D)."""
        documents, weigher = request.documents, self._weigher
        prior = {task: weigher.prior(task) for task in TASKS}
        probability: dict[TaskName, Array] = {}
        said: dict[TaskName, Array] = {}
        for task in TASKS:
            given = self._served.given(
                task,
                encoder=encoder[task],
                base=encoder[_BASE],
                memory=weigher.pair_memory_logits(task, request.query, documents),
                memory_base=weigher.pair_memory_base(task),
                prior=prior,
            )
            pairs = Pairs(
                queries=[request.query] * len(documents),
                clients=[request.client] * len(documents),
                items=[d.id or d.text for d in documents],
                texts=[d.text for d in documents],
                attributes=[d.attributes for d in documents],
                query_vectors=query_vectors,
                item_vectors=item_vectors,
                given=given,
            )
            said[task] = self._served.ask(task, pairs, said.get(root()))
            probability[task] = expit(self._served.logit(task, said[task]))
        return Scores(
            probability=probability,
            score=ranking_score(probability),
            prior=prior,
            contributions=self._served.contributions(root(), said[root()]),
            value=self._expected(encoder),
        )

    def _expected(self, encoder: Mapping[str, Array]) -> Array | None:
        """Return expected values (N,), None before the first purchase or without a head."""
        head = self._ranker.value_head
        if head is None or not head.is_ready:
            return None
        return head.expected(encoder[_VALUE])


def _on_host(logits: PairLogits) -> dict[str, Array]:
    """Return the logits (N,) by task, without the residual as `_BASE`, and `_VALUE` if any."""
    columns = {**{task: logits.by_task[task] for task in TASKS}, _BASE: logits.base}
    if logits.value is not None:
        columns[_VALUE] = logits.value
    return {name: column.double().cpu().numpy() for name, column in columns.items()}
