"""The rerank routes: documents in, best first out, in the shapes of Cohere, Jina and TEI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from msgspec import UNSET
from starlette.requests import Request

from learner.artifact import Document, ScoringInput, client_hash
from serving.inference.delivery import Answer
from serving.inference.scoring import Limits
from serving.service import service_of
from serving.wire.decoding import (
    check_values,
    decode_open,
    decode_rerank,
    document,
    top_n,
)
from serving.wire.explanation import explanation
from serving.wire.http import JsonResponse, parsed, scored, while_connected
from serving.wire.openapi import scoring_route
from serving.wire.ordering import order, relevance
from serving.wire.protocol import (
    AnsweredDocument,
    ApiVersion,
    Context,
    RerankAnswer,
    RerankMeta,
    RerankRequest,
    Result,
    TeiRequest,
    TeiResult,
)
from serving.wire.unknown import check_query, warnings_of

T = TypeVar("T")

COHERE_EXAMPLE = {
    "query": "red running shoes",
    "documents": [
        "ceramic mug, blue",
        {"id": "SKU-0007", "text": "trail running shoe, red", "price": 59.9},
    ],
    "top_n": 10,
}
TEI_EXAMPLE = {
    "query": "red running shoes",
    "texts": ["ceramic mug, blue", "trail running shoe, red"],
}
_FIELDS = (*RerankRequest.__struct_fields__, *TeiRequest.__struct_fields__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohere:
    """A request in the shape of Cohere and Jina.

    Attributes:
        asked: as it was sent.
        documents: what it has to order.
        most: how many of them to answer with; None for all.
        ignored: names of its unknown fields.
    """

    asked: RerankRequest
    documents: tuple[Document, ...]
    most: int | None
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tei:
    """A request in TEI's shape; `ignored` are the names of its unknown fields."""

    asked: TeiRequest
    documents: tuple[Document, ...]
    ignored: tuple[str, ...]


async def rerank_v2(request: Request) -> JsonResponse:
    """Rerank in Cohere's current shape."""
    return await _cohere(request, await parsed(request, _reader(request, _read_cohere)), "2")


async def rerank_v1(request: Request) -> JsonResponse:
    """Rerank in the older shape, which Jina's clients also send."""
    return await _cohere(request, await parsed(request, _reader(request, _read_cohere)), "1")


async def rerank(request: Request) -> JsonResponse:
    """Rerank in the shape that the body has: Cohere's or TEI's."""
    read = await parsed(request, _reader(request, _read_either))
    return await (_tei(request, read) if isinstance(read, Tei) else _cohere(request, read, "2"))


def _reader(request: Request, read: Callable[[Limits, bytes], T]) -> Callable[[bytes], T]:
    check_query(request.query_params, _FIELDS)
    return partial(read, service_of(request).limits)


def _read_cohere(limits: Limits, body: bytes) -> Cohere:
    check_values(body, limits.max_values)
    return _with_documents(limits, *decode_open(body, RerankRequest))


def _read_either(limits: Limits, body: bytes) -> Cohere | Tei:
    check_values(body, limits.max_values)
    asked, unknown = decode_rerank(body)
    if isinstance(asked, RerankRequest):
        return _with_documents(limits, asked, unknown)
    limits.check_count(len(asked.texts), "texts")
    documents = tuple(Document(text=text) for text in asked.texts)
    return Tei(asked=asked, documents=documents, ignored=unknown)


def _with_documents(limits: Limits, asked: RerankRequest, unknown: tuple[str, ...]) -> Cohere:
    limits.check_count(len(asked.documents), "documents")
    where, fields = "$.documents[{}]", asked.rank_fields
    documents = (document(raw, where, index, fields) for index, raw in enumerate(asked.documents))
    return Cohere(asked=asked, documents=tuple(documents), most=top_n(asked), ignored=unknown)


async def _scores(
    request: Request, query: str, documents: tuple[Document, ...], model: str, client: int = 0
) -> Answer:
    inputs = (ScoringInput(query=query, documents=documents, client=client),)
    async with while_connected(request):
        return await service_of(request).scoring.score(model, inputs)


async def _cohere(request: Request, read: Cohere, version: str) -> JsonResponse:
    asked, documents, service = read.asked, read.documents, service_of(request)
    service.telemetry.ignored_fields.inc(len(read.ignored))
    context = asked.context or Context()
    client = client_hash(context.client_id or "")
    answer = await _scores(request, asked.query, documents, asked.model or "champion", client)
    meta = RerankMeta(
        api_version=ApiVersion(version=version),
        model_event_time=answer.model.event_time,
        cached=False,
        ranker="model",
        warnings=warnings_of(read.ignored) or UNSET,
    )
    content = RerankAnswer(
        id=context.query_id or service.new_id(),
        model=answer.model.name,
        results=_results(asked, documents, read.most, answer),
        meta=meta,
    )
    return scored(content, answer)


def _results(
    asked: RerankRequest, documents: tuple[Document, ...], most: int | None, answer: Answer
) -> list[Result]:
    scores = answer.scores[0]
    values = relevance(scores, asked.objective)

    def result(index: int) -> Result:
        shown = AnsweredDocument(text=documents[index].text) if asked.return_documents else UNSET
        return Result(
            index=index,
            relevance_score=float(values[index]),
            id=documents[index].id or UNSET,
            document=shown,
            explanation=explanation(scores, index) if asked.explain else UNSET,
        )

    return [result(index) for index in order(values, most)]


async def _tei(request: Request, read: Tei) -> JsonResponse:
    asked, documents = read.asked, read.documents
    service_of(request).telemetry.ignored_fields.inc(len(read.ignored))
    answer = await _scores(request, asked.query, documents, "champion")
    values = answer.scores[0].score
    if asked.raw_scores:
        p = np.clip(values, 1e-12, 1 - 1e-12)
        values = np.log(p) - np.log1p(-p)

    def result(index: int) -> TeiResult:
        text = asked.texts[index] if asked.return_text else UNSET
        return TeiResult(index=index, score=float(values[index]), text=text)

    return scored([result(index) for index in order(values)], answer)


_cohere_route = partial(
    scoring_route,
    summary="Order documents",
    requests=(RerankRequest,),
    answers=(RerankAnswer,),
    examples={"cohere": COHERE_EXAMPLE},
)
ROUTES = (
    _cohere_route("/v2/rerank", rerank_v2),
    _cohere_route("/v1/rerank", rerank_v1),
    scoring_route(
        "/rerank",
        rerank,
        "Order documents or texts",
        requests=(RerankRequest, TeiRequest),
        answers=(RerankAnswer, list[TeiResult]),
        examples={"cohere": COHERE_EXAMPLE, "tei": TEI_EXAMPLE},
    ),
)
