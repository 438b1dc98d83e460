"""Bounds of settings: declared on annotated fields, checked when a config is made.

A field reads `lr: Annotated[Positive, Meta(lt=1, description="Learning rate.")] = 1e-5`.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]
NotNegativeInt = Annotated[int, Meta(ge=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Text = Annotated[str, Meta(min_length=1)]

_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    Path: "a path",
    types.NoneType: "null",
}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


class SettingError(ValueError):
    """Refused value: `learner.lr: got 2, expected a number > 0 and < 1`.

    Attributes:
        name: field that was refused.
        value: of that field.
        expected: description of what would do.
        bound: field whose value limits it, None if the limit is a constant.
        exit_code: of a process that ends with it.
    """

    exit_code = 2

    def __init__(
        self, section: str, name: str, value: Any, expected: str, bound: tuple[str, Any] | None
    ) -> None:
        """Compose the message."""
        limit = f" {bound[0]}={bound[1]!r}" if bound else ""
        super().__init__(f"{section}.{name}: got {value!r}, expected {expected}{limit}")
        self.name, self.value, self.expected, self.bound = name, value, expected, bound


def check(config: Any, section: str) -> None:
    """Check every field of a config against its annotation.

    Raises:
        SettingError: the first that does not hold; names key, value and expectation.
    """
    for name, annotation in field_types(config.__class__):
        value = getattr(config, name)
        if not is_dataclass(value) and not _holds(value, annotation):
            raise SettingError(section, name, value, expected(annotation), None)


def check_order(config: Any, section: str, low: str, high: str, *, strict: bool = False) -> None:
    """Check that one field is at most, or strictly below, another.

    Raises:
        SettingError: it is not.
    """
    least, most = getattr(config, low), getattr(config, high)
    if not (least < most if strict else least <= most):
        sign = "<" if strict else "<="
        raise SettingError(section, low, least, f"a number {sign}", (high, most))


@cache
def field_types(owner: type) -> tuple[tuple[str, Any], ...]:
    """Return the name and annotation of every field of a config."""
    hints = get_type_hints(owner, include_extras=True)
    return tuple((entry.name, hints[entry.name]) for entry in fields(owner))


def convert(raw: Any, annotation: Any) -> Any:
    """Return a parsed value as its field holds it; only paths are coerced.

    Raises:
        ValueError: the annotation does not hold; the message is the expectation.
    """
    try:
        value = msgspec.convert(raw, annotation, strict=True, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ValueError(expected(annotation)) from error
    if not _finite(value):
        raise ValueError(expected(annotation))
    return value


def expected(annotation: Any) -> str:
    """Describe the values that an annotation accepts.

    >>> expected(Annotated[float, Meta(gt=0, lt=1)])
    'a number > 0 and < 1'
    >>> expected(Literal["raw", "batch", "self"])
    'raw, batch or self'
    """
    kind, metas = _split(annotation)
    for meta in metas:
        if meta.extra:
            return str(meta.extra["expected"])
    if get_origin(kind) is Literal:
        return _listed([str(choice) for choice in get_args(kind)])
    if get_origin(kind) in (Union, types.UnionType):
        return _listed([expected(part) for part in get_args(kind)])
    if any(meta.min_length for meta in metas):
        return "a text that is not empty"
    bounds = " and ".join(f"{sign} {limit}" for sign, limit in _bounds(metas))
    return f"{_KINDS.get(kind, 'a mapping')} {bounds}".strip()


def description(annotation: Any) -> str:
    """Return the help text of an annotated field, empty if it has none."""
    _, metas = _split(annotation)
    return next((meta.description for meta in metas if meta.description), "")


def json_schema(annotation: Any) -> dict[str, Any]:
    """Return the JSON Schema of the values that an annotation accepts."""
    return msgspec.json.schema(
        annotation, schema_hook=lambda _: {"type": "string", "format": "path"}
    )


def _holds(value: Any, annotation: Any) -> bool:
    try:
        msgspec.convert(value, annotation, strict=True)
    except msgspec.ValidationError:
        return False
    return _finite(value)


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _decode(kind: type, raw: Any) -> Any:
    if kind is Path and isinstance(raw, str):
        return Path(raw)
    raise msgspec.ValidationError(f"Expected `{kind.__name__}`")


def _split(annotation: Any) -> tuple[Any, tuple[Meta, ...]]:
    if get_origin(annotation) is not Annotated:
        return annotation, ()
    kind, *metas = get_args(annotation)
    return kind, tuple(metas)


def _bounds(metas: tuple[Meta, ...]) -> Iterator[tuple[str, float]]:
    for meta in metas:
        for attribute, sign in _BOUNDS.items():
            limit = getattr(meta, attribute)
            if limit is not None:
                yield sign, limit


def _listed(words: list[str]) -> str:
    return " or ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)
