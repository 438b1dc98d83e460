"""The rerank routes: each a translation in, one call, a translation out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from litestar import Request as HttpRequest
from litestar import Response, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.params import RawBody
from msgspec import UNSET

from learner.artifact import Document, ScoringInput
from serving.access import expect_json
from serving.inference.batcher import Answer
from serving.inference.scoring import Scoring, headers
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


def rerank_routes(scoring: Scoring, *, new_id: Callable[[], str]) -> list[HTTPRouteHandler]:
    """Return `/v2/rerank`, `/v1/rerank` and `/rerank`; `new_id` names answers whose caller gave no `query_id`."""

    async def cohere(request: RerankRequest, version: str) -> Response[RerankAnswer]:
        documents = tuple(
            document(raw, "$.documents[{}]", index) for index, raw in enumerate(request.documents)
        )
        asked = ScoringInput(query=request.query, documents=documents)
        answer = await scoring.score(request.model or "champion", (asked,), field="documents")
        name = request.context.query_id if request.context else None
        return Response(
            _cohere_answer(request, documents, answer, version, name or new_id()),
            headers=headers(answer),
        )

    async def tei(request: TeiRequest) -> Response[list[TeiResult]]:
        asked = ScoringInput(
            query=request.query, documents=tuple(Document(text=text) for text in request.texts)
        )
        answer = await scoring.score("champion", (asked,), field="texts")
        return Response(_tei_answer(request, answer), headers=headers(answer))

    @post("/v2/rerank", status_code=200)
    async def rerank_v2(
        request: HttpRequest[None, None, State], body: RawBody
    ) -> Response[RerankAnswer]:
        expect_json(request)
        return await cohere(decode(body, RerankRequest), "2")

    @post("/v1/rerank", status_code=200)
    async def rerank_v1(
        request: HttpRequest[None, None, State], body: RawBody
    ) -> Response[RerankAnswer]:
        expect_json(request)
        return await cohere(decode(body, RerankRequest), "1")

    @post("/rerank", status_code=200)
    async def rerank(
        request: HttpRequest[None, None, State], body: RawBody
    ) -> Response[RerankAnswer] | Response[list[TeiResult]]:
        expect_json(request)
        asked = decode_rerank(body)
        return await (tei(asked) if isinstance(asked, TeiRequest) else cohere(asked, "2"))

    return [rerank_v2, rerank_v1, rerank]


def _cohere_answer(
    request: RerankRequest, documents: tuple[Document, ...], answer: Answer, version: str, name: str
) -> RerankAnswer:
    values = relevance(answer.scores[0], request.objective)
    results = [
        Result(
            index=index,
            relevance_score=float(values[index]),
            id=documents[index].id or UNSET,
            document=AnsweredDocument(text=documents[index].text)
            if request.return_documents
            else UNSET,
        )
        for index in order(values, request.top_n)
    ]
    meta = RerankMeta(
        api_version=ApiVersion(version=version),
        model_event_time=answer.serving.event_time,
        cached=False,
        ranker="model",
    )
    return RerankAnswer(id=name, model=answer.serving.name, results=results, meta=meta)


def _tei_answer(request: TeiRequest, answer: Answer) -> list[TeiResult]:
    values = answer.scores[0].score
    if request.raw_scores:
        p = np.clip(values, 1e-12, 1 - 1e-12)
        values = np.log(p) - np.log1p(-p)
    return [
        TeiResult(
            index=index,
            score=float(values[index]),
            text=request.texts[index] if request.return_text else UNSET,
        )
        for index in order(values)
    ]
