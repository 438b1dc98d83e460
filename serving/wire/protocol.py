"""Wire types: the shapes of Cohere and Jina, of Text Embeddings Inference (TEI), and our own.

Docstrings and descriptions are part of the OpenAPI document. Unknown fields are errors, but at the
top level of rerank requests, where clients of other services send their own: there they are
ignored with a warning, unless they look like a misspelling (`serving.wire.unknown`). What may hold
numbers or nested values is `Raw`, and decoded in `serving.wire.decoding`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

Objective: TypeAlias = Literal["ctr", "cvr", "ctcvr", "value"]

#: A document is decoded on its own (`serving.wire.decoding`): text, or an object.
AnyDocument: TypeAlias = Annotated[
    Raw,
    Meta(
        extra_json_schema={
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "description": (
                        "`text`, an optional `id` that the answer repeats, and attributes: "
                        "text, numbers, true or false (others are ignored)."
                    ),
                    "required": ["text"],
                    "properties": {
                        "text": {"type": "string"},
                        "id": {"type": ["string", "integer", "null"]},
                    },
                },
            ]
        },
    ),
]
#: How many documents to answer with. JSON has one kind of number: 3.0 is an integer too.
TopN: TypeAlias = Annotated[
    Raw,
    Meta(
        extra_json_schema={
            "anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}],
            "default": None,
        },
    ),
]
ClientId: TypeAlias = Annotated[
    str,
    Meta(
        max_length=100,
        description="The visitor's id, as in the events: documents like those that it chose before "
        "rank higher. Of the id only a hash is kept.",
    ),
]
QueryId: TypeAlias = Annotated[
    str, Meta(max_length=100, description="The answer's `id`, when given.")
]
OrderBy: TypeAlias = Annotated[
    Objective,
    Meta(
        description="What to order by; left out, the model's own score. Under `value`, "
        "`relevance_score` is an expected amount of money."
    ),
]
ModelName: TypeAlias = Annotated[str, Meta(description="An alias or a version.")]
RankFields: TypeAlias = Annotated[
    list[str],
    Meta(
        description="Fields of the documents whose values, in this order, are read as one text; "
        "left out, `text`. Documents need no `text` then."
    ),
]
RawScores: TypeAlias = Annotated[bool, Meta(description="Log-odds instead of probabilities.")]
Explain: TypeAlias = Annotated[
    bool,
    Meta(description="Answer with what each part of the score contributed."),
]
Truncate: TypeAlias = Annotated[
    bool,
    Meta(description="Must be true: longer texts are cut.", extra_json_schema={"const": True}),
]
_NOT_EMPTY = Meta(extra_json_schema={"minItems": 1})


class Context(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The client, and the list that will be shown to it."""

    client_id: ClientId | None = None
    scenario: str | None = None
    query_id: QueryId | None = None


class RerankRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Order `documents` by how likely the shopper is to want them.

    Unknown fields are ignored and named in `meta.warnings`; one that looks like a misspelling of a
    known field is refused.
    """

    query: str
    documents: Annotated[list[AnyDocument], _NOT_EMPTY]
    model: ModelName | None = None
    top_n: TopN | UnsetType = UNSET
    rank_fields: RankFields | None = None
    return_documents: bool | None = None
    context: Context | None = None
    objective: OrderBy | None = None
    explain: Explain | None = None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What each part of the score adds to a logit; parts with nothing to say add 0.

    `logit` is the sum of the contributions: the log-odds of a click if the document is shown first.
    `expected_value` is what is paid if the document is bought, from versions that learn it.
    """

    logit: float
    contributions: dict[str, float]
    expected_value: float | UnsetType = UNSET


class AnsweredDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A document as it was asked about."""

    text: str


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One document's place; `index` refers to the request."""

    index: int
    relevance_score: float
    id: str | UnsetType = UNSET
    document: AnsweredDocument | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET


class ApiVersion(msgspec.Struct, frozen=True, kw_only=True):
    """The version of Cohere's API whose shape this is."""

    version: str


class RerankMeta(msgspec.Struct, frozen=True, kw_only=True):
    """Origin of the answer; `warnings` name what the request had and was ignored."""

    api_version: ApiVersion
    model_event_time: str | None
    cached: bool
    ranker: str
    warnings: list[str] | UnsetType = UNSET


class RerankAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Documents, best first; log `id` as the exposure's `query_id` to learn from the clicks."""

    id: str
    model: str
    results: list[Result]
    meta: RerankMeta


class TeiRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Order `texts`, in the shape of Text Embeddings Inference.

    Unknown fields are ignored; one that looks like a misspelling of a known field is refused.
    """

    query: str
    texts: Annotated[list[str], _NOT_EMPTY]
    raw_scores: RawScores = False
    return_text: bool = False
    truncate: Truncate = True


class TeiResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One text's place; `index` refers to the request."""

    index: int
    score: float
    text: str | UnsetType = UNSET


class Instance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One (query, document) pair."""

    query: str
    document: AnyDocument


class ScoreRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Score pairs without ordering them."""

    instances: Annotated[list[Instance], _NOT_EMPTY]
    model: str = "champion"
    explain: Explain = False


class PerTask(msgspec.Struct, frozen=True, kw_only=True):
    """A number for each task."""

    click: float
    purchase: float


class Prediction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Probabilities of one pair, the priors they stand against, and their ratio p / prior.

    `expected_value` is what is paid if the document is bought, from versions that learn it.
    """

    p: PerTask
    prior: PerTask
    weight: PerTask
    expected_value: float | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET


class ScoreAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction per instance, in the order of the request."""

    model: str
    predictions: list[Prediction]


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One published version; `state` is champion, previous, refused or available.

    `weighting` is the scheme of the sample weights in force, with its parameters. `reason` says why
    a version was refused, or rolled back from; else it is null.
    """

    version: str
    created: str
    event_time: str | None
    evaluation: dict[str, float]
    weighting: dict[str, Any]
    state: str
    reason: str | None


class ModelsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The movable names, and every version in the store."""

    aliases: dict[str, str | None]
    models: list[ModelEntry]


class HealthAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a healthy process."""

    status: str


class InfoAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The served version, its engine and the limits.

    `engine` and `precision` are those of the settings `serving.engine` and `serving.precision`.
    Freshness covers the newest versions that answered.
    """

    version: str | None
    event_time: str | None
    engine: str
    precision: str
    engine_version: str
    swaps: int
    refused: dict[str, str]
    freshness_p50_seconds: float | None
    freshness_p99_seconds: float | None
    max_documents: int
    max_body_bytes: int
    max_concurrent_requests: int
