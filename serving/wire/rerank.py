"""The rerank routes: documents in, best first out, in the shapes of Cohere, Jina and TEI."""

from __future__ import annotations

from functools import partial

import numpy as np
from msgspec import UNSET
from starlette.requests import Request

from learner.artifact import Document, ScoringInput
from serving.inference.batcher import Answer
from serving.service import Service, service_of
from serving.wire.http import JsonResponse, json_body, scored
from serving.wire.openapi import scoring_route
from serving.wire.ordering import order, relevance
from serving.wire.protocol import (
    AnsweredDocument,
    ApiVersion,
    RerankAnswer,
    RerankMeta,
    RerankRequest,
    Result,
    TeiRequest,
    TeiResult,
    decode,
    decode_rerank,
    document,
)

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


async def rerank_v2(request: Request) -> JsonResponse:
    """Rerank in Cohere's current shape."""
    asked = decode(await json_body(request), RerankRequest)
    return await _cohere(service_of(request), asked, version="2")


async def rerank_v1(request: Request) -> JsonResponse:
    """Rerank in the older shape, which Jina's clients also send."""
    asked = decode(await json_body(request), RerankRequest)
    return await _cohere(service_of(request), asked, version="1")


async def rerank(request: Request) -> JsonResponse:
    """Rerank in the shape that the body has: Cohere's or TEI's."""
    asked = decode_rerank(await json_body(request))
    if isinstance(asked, TeiRequest):
        return await _tei(service_of(request), asked)
    return await _cohere(service_of(request), asked, version="2")


async def _cohere(service: Service, asked: RerankRequest, *, version: str) -> JsonResponse:
    where = "$.documents[{}]"
    documents = tuple(document(raw, where, index) for index, raw in enumerate(asked.documents))
    inputs = (ScoringInput(query=asked.query, documents=documents),)
    answer = await service.scoring.score(asked.model or "champion", inputs, field="documents")
    query_id = asked.context.query_id if asked.context else None
    meta = RerankMeta(
        api_version=ApiVersion(version=version),
        model_event_time=answer.model.event_time,
        cached=False,
        ranker="model",
    )
    content = RerankAnswer(
        id=query_id or service.new_id(),
        model=answer.model.name,
        results=_results(asked, documents, answer),
        meta=meta,
    )
    return scored(content, answer)


def _results(asked: RerankRequest, documents: tuple[Document, ...], answer: Answer) -> list[Result]:
    values = relevance(answer.scores[0], asked.objective)

    def result(index: int) -> Result:
        shown = AnsweredDocument(text=documents[index].text) if asked.return_documents else UNSET
        return Result(
            index=index,
            relevance_score=float(values[index]),
            id=documents[index].id or UNSET,
            document=shown,
        )

    return [result(index) for index in order(values, asked.top_n)]


async def _tei(service: Service, asked: TeiRequest) -> JsonResponse:
    documents = tuple(Document(text=text) for text in asked.texts)
    inputs = (ScoringInput(query=asked.query, documents=documents),)
    answer = await service.scoring.score("champion", inputs, field="texts")
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
