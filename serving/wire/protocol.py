"""Wire types: the shapes of Cohere and Jina, of Text Embeddings Inference (TEI), and our own.

Docstrings and descriptions are part of the OpenAPI document. Unknown fields are ignored in rerank
requests, because clients of other services send their own, and are errors elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType

from learner.artifact import Document
from serving.errors import Invalid, TooLarge

Objective: TypeAlias = Literal["ctr", "cvr", "ctcvr"]

DocumentObject: TypeAlias = Annotated[
    dict[str, Any],
    Meta(
        description=(
            "`text`, an optional `id` that the answer repeats, and attributes: "
            "text, numbers, true or false (others are ignored)."
        ),
        extra_json_schema={
            "required": ["text"],
            "properties": {
                "text": {"type": "string"},
                "id": {"type": ["string", "integer", "null"]},
            },
        },
    ),
]
AnyDocument: TypeAlias = str | DocumentObject


class TopN(int):
    """How many documents to answer with.

    JSON has one kind of number: 3.0 is an integer too, in JSON Schema as here.
    """


ClientId: TypeAlias = Annotated[str, Meta(max_length=100)]
QueryId: TypeAlias = Annotated[
    str, Meta(max_length=100, description="The answer's `id`, when given.")
]
OrderBy: TypeAlias = Annotated[
    Objective, Meta(description="What to order by; left out, the model's own score.")
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
Truncate: TypeAlias = Annotated[
    bool,
    Meta(description="Must be true: longer texts are cut.", extra_json_schema={"const": True}),
]
_NOT_EMPTY = Meta(extra_json_schema={"minItems": 1})


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """The client, and the list that will be shown to it."""

    client_id: ClientId | None = None
    scenario: str | None = None
    query_id: QueryId | None = None


class RerankRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Order `documents` by how likely the shopper is to want them."""

    query: str
    documents: Annotated[list[AnyDocument], _NOT_EMPTY]
    model: ModelName | None = None
    top_n: TopN | None = None
    rank_fields: RankFields | None = None
    return_documents: bool | None = None
    context: Context | None = None
    objective: OrderBy | None = None


class AnsweredDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A document as it was asked about."""

    text: str


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One document's place; `index` refers to the request."""

    index: int
    relevance_score: float
    id: str | UnsetType = UNSET
    document: AnsweredDocument | UnsetType = UNSET


class ApiVersion(msgspec.Struct, frozen=True, kw_only=True):
    """The version of Cohere's API whose shape this is."""

    version: str


class RerankMeta(msgspec.Struct, frozen=True, kw_only=True):
    """Origin of the answer."""

    api_version: ApiVersion
    model_event_time: str | None
    cached: bool
    ranker: str


class RerankAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Documents, best first; log `id` as the exposure's `query_id` to learn from the clicks."""

    id: str
    model: str
    results: list[Result]
    meta: RerankMeta


class TeiRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Order `texts`, in the shape of Text Embeddings Inference."""

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


class PerTask(msgspec.Struct, frozen=True, kw_only=True):
    """A number for each task."""

    click: float
    purchase: float


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """Probabilities of one pair, the priors they stand against, and their ratio p / prior."""

    p: PerTask
    prior: PerTask
    weight: PerTask


class ScoreAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction per instance, in the order of the request."""

    model: str
    predictions: list[Prediction]


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One published version; `state` is champion, previous, refused or available.

    `reason` says why a version was refused, or rolled back from; else it is null.
    """

    version: str
    created: str
    event_time: str | None
    evaluation: dict[str, float]
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
    """The served version and the limits; freshness covers the newest versions that answered."""

    version: str | None
    event_time: str | None
    swaps: int
    refused: dict[str, str]
    freshness_p50_seconds: float | None
    freshness_p99_seconds: float | None
    max_documents: int
    max_body_bytes: int
    max_concurrent_requests: int


class _Shape(msgspec.Struct):
    """The fields that distinguish the two shapes of `/rerank`."""

    documents: msgspec.Raw | UnsetType = UNSET
    texts: msgspec.Raw | UnsetType = UNSET


T = TypeVar("T")


def check_values(body: bytes, most: int) -> None:
    """Refuse a body with more values than `most`, before any of them is built.

    Raises:
        TooLarge: it has more.
    """
    if body.count(b",") >= most and (values := num_values(body)) > most:
        raise TooLarge("", values, most)


def num_values(body: bytes) -> int:
    r"""Return an upper bound of the values in JSON: commas outside of strings, and one.

    Runs in numpy, which lets other threads run meanwhile.

    >>> num_values(b'{"a": [1, 2, "x, \\", 3], "b": "\", 4"}')
    5
    """
    characters = np.frombuffer(body, np.uint8)
    quotes = characters == ord('"')
    escapes = characters == ord("\\")
    if (escapes[:-1] & quotes[1:]).any():
        # a quote behind an odd number of backslashes is part of a string
        places = np.arange(len(characters), dtype=np.int32)
        last_other = np.maximum.accumulate(np.where(escapes, np.int32(-1), places))
        num_before = places[1:] - 1 - last_other[:-1]
        quotes[1:] &= num_before % 2 == 0
    outside = ~np.logical_xor.accumulate(quotes)
    return int(np.count_nonzero((characters == ord(",")) & outside)) + 1


def decode(body: bytes, kind: type[T]) -> T:
    """Return `body` as a `kind`.

    Raises:
        Invalid: not JSON, or not of that shape; names the path.
    """
    try:
        return msgspec.json.decode(body, type=kind, dec_hook=_decode_hook)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Invalid(str(error)) from error
    except RecursionError as error:
        raise Invalid("JSON is nested too deeply") from error


def schema_hook(kind: type) -> dict[str, Any]:
    """Return the JSON Schema of a type that is not msgspec's."""
    if kind is TopN:
        return {"type": "integer", "minimum": 1}
    raise NotImplementedError


def _decode_hook(kind: type, value: Any) -> Any:
    if kind is not TopN:
        raise NotImplementedError
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"Expected `int`, got `{_KINDS.get(type(value), 'object')}`")
    if value < 1:
        raise ValueError("Expected `int` >= 1")
    return TopN(value)


_KINDS = {float: "float", str: "str", bool: "bool", list: "array"}


def decode_rerank(body: bytes) -> RerankRequest | TeiRequest:
    """Return the body of `/rerank` in the shape that its fields announce.

    `documents` means Cohere or Jina, `texts` means TEI.

    Raises:
        Invalid: neither, both, or not of the announced shape.
    """
    shape = decode(body, _Shape)
    if (shape.documents is UNSET) == (shape.texts is UNSET):
        raise Invalid("Expected either `documents` (Cohere, Jina) or `texts` (TEI) - at `$`")
    if shape.texts is UNSET:
        return decode(body, RerankRequest)
    request = decode(body, TeiRequest)
    if not request.truncate:
        reason = "texts longer than the model reads are always cut"
        raise Invalid(f"Expected `true`, got `false`: {reason} - at `$.truncate`")
    return request


def document(
    raw: AnyDocument, where: str, index: int, fields: Sequence[str] | None = None
) -> Document:
    """Return one document of a request as the scorer takes it.

    Args:
        raw: text, or an object with `text`, maybe `id`, and attributes.
        where: its path in the request, with ``{}`` for `index`: only an error writes it out.
        index: its place in the request.
        fields: whose values make its text, instead of `text`.

    Raises:
        Invalid: there is no text, or `id` is neither string nor integer.
    """
    if isinstance(raw, str):
        return Document(text=raw)
    text, name = raw.get("text"), raw.get("id")
    if fields:
        text = _joined(raw, fields, where.format(index))
    if not isinstance(text, str):
        advice = " (or name the fields to read in `rank_fields`)" if text is None else ""
        raise Invalid(f"Expected `str` - at `{where.format(index)}.text`{advice}")
    if isinstance(name, float) and name.is_integer():
        name = int(name)
    if name is None:
        name = ""
    elif isinstance(name, bool) or not isinstance(name, str | int):
        raise Invalid(f"Expected `str | int` - at `{where.format(index)}.id`")
    if len(raw) <= 1 + ("id" in raw):
        return Document(text=text, id=str(name))
    attributes = {
        key: feature
        for key, value in raw.items()
        if key not in ("text", "id") and (feature := _feature(value)) is not None
    }
    return Document(text=text, id=str(name), attributes=attributes)


def _joined(raw: Mapping[str, Any], fields: Sequence[str], where: str) -> str:
    values = [raw[name] for name in fields if isinstance(raw.get(name), str | int | float)]
    if not values:
        raise Invalid(f"Expected one of `rank_fields` ({', '.join(fields)[:200]}) - at `{where}`")
    return " ".join(map(str, values))


def _feature(value: Any) -> Any:
    """Return an attribute: a scalar, or the texts of a list; None of what is neither."""
    if isinstance(value, list):
        return [str(each) for each in value if isinstance(each, str) or type(each) is int]
    return value if isinstance(value, str | int | float) else None
