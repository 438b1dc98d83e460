"""Keys of the settings, one for each field of a config.

A field in microseconds, seconds or bytes loses that suffix in its key, and its value is written
with a unit: `grace_us` of `join` is `join.grace: 10m`.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.settings.units import UNITS, Unit
from deploy.settings.yaml import parse
from weighting import constraints

MASK = "***"
_SECRET = re.compile(r"password|secret|token|credential", re.IGNORECASE)
_PLAIN = re.compile(r"[\w./][\w./: -]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """Field that is no section.

    Attributes:
        section: names of the sections it lies in, outermost first.
        field: its name in the source.
        name: the same without its unit, as in a file.
        annotation: type and bounds.
        value: in the settings that it was taken from.
        unit: of a duration or a size, else None.
    """

    section: tuple[str, ...]
    field: str
    name: str
    annotation: Any
    value: Any
    unit: Unit | None

    @property
    def key(self) -> str:
        """Path of the field, with dots."""
        return ".".join((*self.section, self.name))

    @property
    def free(self) -> bool:
        """True for a mapping with any keys."""
        return isinstance(self.value, Mapping)

    @property
    def help(self) -> str:
        """Help text, empty if there is none."""
        return constraints.description(self.annotation)

    def convert(self, raw: Any) -> Any:
        """Return the value of what a file holds.

        Raises:
            ValueError: it has none; the message is the expectation.
        """
        if self.unit is None:
            return constraints.convert(raw, self.annotation)
        stored = self.unit.parse(raw) if isinstance(raw, str) else None
        if stored is None:
            raise ValueError(self.unit.expected)
        return constraints.convert(stored, self.annotation)

    def from_text(self, text: str) -> Any:
        """Return the file's form of a variable's or an option's text."""
        kinds = _kinds(self.annotation)
        if text == "null" and types.NoneType in kinds:
            return None
        if self.unit is not None or str in kinds or Path in kinds:
            return text
        return text_or_value(text)

    def write(self, value: Any) -> Any:
        """Return a value as a file would have it, without secrets."""
        if self.unit is not None:
            return self.unit.format(value)
        if isinstance(value, Mapping):
            return {name: MASK if is_secret(name) else part for name, part in value.items()}
        return str(value) if isinstance(value, Path | enum.Enum) else value

    def text(self, value: Any) -> str:
        """Return a value in one line of YAML."""
        written = self.write(value)
        if isinstance(written, str) and _is_plain(written):
            return written
        return json.dumps(written, ensure_ascii=False)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the value."""
        default = {"default": self.write(self.value)}
        if self.unit is None:
            return constraints.json_schema(self.annotation) | default
        schema = {"type": "string", "pattern": self.unit.pattern, "description": self.help}
        return schema | default


def leaves(config: Any, section: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Yield every leaf of a tree of configs, in its order."""
    for name, annotation in constraints.field_types(config.__class__):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, (*section, name))
        elif section:
            suffix = next((suffix for suffix in UNITS if name.endswith(suffix)), "")
            yield Leaf(
                section=section,
                field=name,
                name=name.removesuffix(suffix),
                annotation=annotation,
                value=value,
                unit=UNITS.get(suffix),
            )


def text_or_value(text: str) -> Any:
    """Return a text parsed as YAML, or unchanged if it is none."""
    value, problems = parse(text)
    return text if problems else value


def is_secret(name: str) -> bool:
    """Recognise names of values that must not be shown."""
    return _SECRET.search(name) is not None


def secrets_in(config: Any) -> list[str]:
    """Return the values of a tree of settings that must not be shown."""
    found: list[str] = []
    for leaf in leaves(config):
        held = leaf.value.items() if leaf.free else [(leaf.key, leaf.value)]
        found += [str(value) for name, value in held if is_secret(str(name)) and value]
    return found


def _kinds(annotation: Any) -> tuple[Any, ...]:
    kind = annotation
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


def _is_plain(text: str) -> bool:
    plain = _PLAIN.fullmatch(text) is not None and ": " not in text
    return plain and parse(text) == (text, [])
