"""The score route: pairs in, probabilities with their priors out, in the order of the request."""

from __future__ import annotations

from litestar import Request as HttpRequest
from litestar import Response, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.params import RawBody

from learner.artifact import Scores, ScoringInput
from serving.access import expect_json
from serving.inference.scoring import Scoring, headers
from serving.wire.protocol import PerTask, Prediction, ScoreAnswer, ScoreRequest, decode, document


def score_route(scoring: Scoring) -> HTTPRouteHandler:
    """Return `/v1/score`."""

    @post("/v1/score", status_code=200)
    async def score(
        request: HttpRequest[None, None, State], body: RawBody
    ) -> Response[ScoreAnswer]:
        expect_json(request)
        asked = decode(body, ScoreRequest)
        requests = tuple(
            ScoringInput(
                query=instance.query,
                documents=(document(instance.document, "$.instances[{}].document", index),),
            )
            for index, instance in enumerate(asked.instances)
        )
        answer = await scoring.score(asked.model, requests, field="instances")
        predictions = [_prediction(scores) for scores in answer.scores]
        return Response(
            ScoreAnswer(model=answer.serving.name, predictions=predictions), headers=headers(answer)
        )

    return score


def _prediction(scores: Scores) -> Prediction:
    p = PerTask(click=float(scores.click[0]), purchase=float(scores.purchase[0]))
    prior = PerTask(click=scores.prior["click"], purchase=scores.prior["purchase"])
    return Prediction(
        p=p,
        prior=prior,
        weight=PerTask(click=p.click / prior.click, purchase=p.purchase / prior.purchase),
    )
