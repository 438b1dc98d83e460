"""The score route: pairs in, probabilities with their priors out, in the order of the request."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from msgspec import UNSET
from starlette.requests import Request

from learner.artifact import Scores, ScoringInput
from serving.inference.scoring import Limits
from serving.service import service_of
from serving.wire.decoding import check_values, decode, document
from serving.wire.explanation import expected_value, explanation
from serving.wire.http import JsonResponse, parsed, scored, while_connected
from serving.wire.openapi import scoring_route
from serving.wire.protocol import (
    Instance,
    PerTask,
    Prediction,
    ScoreAnswer,
    ScoreRequest,
)
from serving.wire.unknown import check_query

EXAMPLE = {
    "instances": [
        {
            "query": "red running shoes",
            "document": {"id": "SKU-0007", "text": "trail running shoe, red"},
        }
    ]
}

_FIELDS = (*ScoreRequest.__struct_fields__, *Instance.__struct_fields__)


async def score(request: Request) -> JsonResponse:
    """Score each pair on its own."""
    service = service_of(request)
    check_query(request.query_params, _FIELDS)
    asked, pairs = await parsed(request, partial(_read, service.limits))
    async with while_connected(request):
        answer = await service.scoring.score(asked.model, pairs)
    predictions = [_prediction(scores, explain=asked.explain) for scores in answer.scores]
    return scored(ScoreAnswer(model=answer.model.name, predictions=predictions), answer)


def _read(limits: Limits, body: bytes) -> tuple[ScoreRequest, tuple[ScoringInput, ...]]:
    check_values(body, limits.max_values)
    asked = decode(body, ScoreRequest)
    limits.check_count(len(asked.instances), "instances")
    return asked, tuple(_pair(index, instance) for index, instance in enumerate(asked.instances))


def _pair(index: int, instance: Instance) -> ScoringInput:
    one = document(instance.document, "$.instances[{}].document", index)
    return ScoringInput(query=instance.query, documents=(one,))


def _prediction(scores: Scores, *, explain: bool) -> Prediction:
    tasks = PerTask.__struct_fields__
    p = {task: float(scores.probability[task][0]) for task in tasks}
    prior = {task: scores.prior[task] for task in tasks}
    weight = {task: p[task] / prior[task] for task in tasks}
    return Prediction(
        p=_per_task(p),
        prior=_per_task(prior),
        weight=_per_task(weight),
        expected_value=expected_value(scores, 0),
        explanation=explanation(scores, 0) if explain else UNSET,
    )


def _per_task(values: Mapping[str, float]) -> PerTask:
    return PerTask(**values)


ROUTES = (
    scoring_route(
        "/v1/score",
        score,
        "Score pairs",
        requests=(ScoreRequest,),
        answers=(ScoreAnswer,),
        examples={"one": EXAMPLE},
    ),
)
