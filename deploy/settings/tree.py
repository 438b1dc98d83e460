"""The tree of all settings: defaults beside their owners, then a YAML file, then `STEELYARD_*`, then the command line; all errors at once.

A key is the path of a field; a field in microseconds, seconds or bytes loses that suffix and is written with its unit (`join.grace: 10m`).
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from consumers.joining.join import JoinConfig
from consumers.kafka.options import GUARDED
from deploy.errors import SettingsError
from deploy.process.observability import ObservabilityConfig
from deploy.settings.config import LogConfig, ServingConfig
from deploy.settings.units import UNITS, Unit
from deploy.settings.yaml import parse
from learner.config import LearnerConfig, StoreConfig
from weighting.weigher import WeigherConfig

ENVIRONMENT = "STEELYARD_"
COMMAND_LINE = "command line"
DEFAULT = "default"
NAME = "steelyard.yaml"
_SECRET = re.compile(r"password|secret|token|credential", re.IGNORECASE)
_MASK = "***"
_SERVICE_LINK = re.compile(
    r"(_[A-Z0-9]+)*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9]+)*|PORT_[0-9]+_[A-Z]+(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_PORT = re.compile(r"(_[A-Z0-9]+)*_PORT")

Node = TypeVar("Node")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of all roles, and where each came from."""

    kafka: LogConfig = field(default_factory=LogConfig)
    join: JoinConfig = field(default_factory=JoinConfig)
    weighting: WeigherConfig = field(default_factory=WeigherConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    serving: ServingConfig = field(default_factory=ServingConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    observability: ObservabilityConfig = field(default_factory=ObservabilityConfig)
    origins: Mapping[str, str] = field(
        default_factory=dict, repr=False, compare=False
    )  #: key -> file, variable or command line


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One key as a file would have it; secrets are masked."""

    key: str
    value: Any
    origin: str


def load(
    path: Path | None, env: Mapping[str, str], overrides: Mapping[str, str] | None = None
) -> Settings:
    """Return the settings; a later layer wins: default, file, environment, overrides.

    Args:
        path: a YAML file; None for none.
        env: variables; only those named `STEELYARD_*` are looked at, and each of them must be a key.
        overrides: key -> text, from the command line.

    Raises:
        SettingsError: everything that is wrong in any of them.
    """
    reader = _Reader()
    if path is not None:
        reader.read_file(path)
    reader.read_environment(env)
    reader.read_overrides(overrides or {})
    settings = reader.build(Settings(), ())
    if reader.problems:
        raise SettingsError(reader.problems)
    return dataclasses.replace(settings, origins=dict(reader.origins))


def describe(settings: Settings) -> list[Entry]:
    """Return every key with its value as a file would have it, and where it came from."""
    entries = []
    for leaf in _leaves(settings):
        written = leaf.write(leaf.default)
        if leaf.free and written:
            parts = {f"{leaf.key}.{name}": value for name, value in written.items()}
        else:
            parts = {leaf.key: written}
        entries += [
            Entry(key=key, value=value, origin=settings.origins.get(key, DEFAULT))
            for key, value in parts.items()
        ]
    return entries


def starter() -> str:
    """Return a file with every key at its default, commented out, and what it means."""
    lines = [
        "# Every key with its default. Durations and sizes carry units: 500ms, 30s, 15m, 7d, P7D; 64KB, 2MB."
    ]
    lines.append("# STEELYARD_<SECTION>__<KEY> wins over this file, the command line over both.")
    section: tuple[str, ...] = ()
    for leaf in _leaves(Settings()):
        for depth, name in enumerate(leaf.section):
            if leaf.section[: depth + 1] != section[: depth + 1]:
                lines.append(f"{'  ' * depth}{name}:")
        section = leaf.section
        comment = f"  # {leaf.meaning}" if leaf.meaning else ""
        lines.append(
            f"{'  ' * len(section)}# {leaf.name}: {_yaml(leaf.write(leaf.default))}{comment}"
        )
    return "\n".join(lines) + "\n"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a settings file, for editors."""
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Steelyard settings",
    }
    schema |= {"type": "object", "additionalProperties": False, "properties": {}}
    for leaf in _leaves(Settings()):
        node = schema
        for name in leaf.section:
            node = node["properties"].setdefault(
                name, {"type": ["object", "null"], "additionalProperties": False, "properties": {}}
            )
        node["properties"][leaf.name] = leaf.schema()
    return schema


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaf:
    """One field that is no section."""

    section: tuple[str, ...]
    attribute: str  #: the field's own name
    name: str  #: the same without its unit
    annotation: Any
    default: Any
    unit: Unit | None
    meaning: str

    @property
    def key(self) -> str:
        return ".".join((*self.section, self.name))

    @property
    def free(self) -> bool:
        """Whether it is a mapping whose keys are not ours."""
        return typing.get_origin(self.annotation) is not None and isinstance(self.default, Mapping)

    @property
    def _choices(self) -> tuple[Any, ...]:
        union = typing.get_origin(self.annotation) in (typing.Union, types.UnionType)
        return typing.get_args(self.annotation) if union else (self.annotation,)

    def convert(self, raw: Any) -> Any:
        """Return the value of what was written; ValueError(place, got, expected) where it is none."""
        if self.unit is not None and not (raw is None and types.NoneType in self._choices):
            stored = self.unit.parse(raw) if isinstance(raw, str) else None
            if stored is None:
                raise ValueError("", raw, self.unit.expected)
            raw = stored
        try:
            return TypeAdapter(self.annotation).validate_json(
                json.dumps(raw, default=str), strict=True
            )
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
            raise ValueError(
                place, first["input"], first["msg"].removeprefix("Input should be ")
            ) from error

    def from_text(self, text: str) -> Any:
        """Return what a file would hold for the text of a variable or an option."""
        if self.unit is not None or any(
            choice is str or choice is Path for choice in self._choices
        ):
            return None if text == "null" and types.NoneType in self._choices else text
        value, problems = parse(text)
        return text if problems else value

    def write(self, value: Any) -> Any:
        """Return the value as a file would have it."""
        if self.unit is not None and value is not None:
            return self.unit.format(value)
        if isinstance(value, Mapping):
            return {name: _MASK if _SECRET.search(name) else part for name, part in value.items()}
        if isinstance(value, tuple):
            return list(value)
        return str(value) if isinstance(value, Path | enum.Enum) else value

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the value."""
        schema: dict[str, Any] = (
            TypeAdapter(self.annotation).json_schema()
            if self.unit is None
            else {"type": "string", "pattern": self.unit.pattern}
        )
        if self.unit is not None and types.NoneType in self._choices:
            schema["type"] = ["string", "null"]
        described = {"description": self.meaning} if self.meaning else {}
        return {**schema, **described, "default": self.write(self.default)}


class _Reader:
    """Collects what the layers say, and what is wrong with it."""

    def __init__(self) -> None:
        self._leaves = {leaf.key: leaf for leaf in _leaves(Settings())}
        self._sections = {
            ".".join(leaf.section[:depth])
            for leaf in self._leaves.values()
            for depth in range(1, len(leaf.section) + 1)
        }
        self._values: dict[str, Any] = {}
        self._written: dict[str, Any] = {}
        self._broken: set[tuple[str, ...]] = set()
        self.origins: dict[str, str] = {}
        self.problems: list[str] = []

    def read_file(self, path: Path) -> None:
        """Read a YAML file."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            cause = getattr(error, "strerror", None) or error
            self.problems.append(
                f"{path}: cannot be read: {cause}. `steelyard config init` writes one."
            )
            return
        value, problems = parse(text)
        self.problems += [f"{path}: {problem}." for problem in problems]
        self._read_node(value, "", str(path))

    def read_environment(self, env: Mapping[str, str]) -> None:
        """Read every variable that begins with our name."""
        for variable in sorted(name for name in env if name.startswith(ENVIRONMENT)):
            key = variable.removeprefix(ENVIRONMENT).replace("__", ".").lower()
            if not _is_service_link(variable, env[variable]):
                self._read_text(key, env[variable], variable, variables=True)

    def read_overrides(self, overrides: Mapping[str, str]) -> None:
        """Read what the command line sets."""
        for key, text in overrides.items():
            self._read_text(key, text, COMMAND_LINE)

    def build(self, node: Node, section: tuple[str, ...]) -> Node:
        """Return `node` with everything that was read below it."""
        changes: dict[str, Any] = {}
        for entry in dataclasses.fields(node):  # type: ignore[arg-type]
            value = getattr(node, entry.name)
            if dataclasses.is_dataclass(value):
                built = self.build(value, (*section, entry.name))
                if built is not value:
                    changes[entry.name] = built
        leaves = [leaf for leaf in self._leaves.values() if leaf.section == section]
        changes |= {
            leaf.attribute: self._values[leaf.key] for leaf in leaves if leaf.key in self._values
        }
        if not changes or section in self._broken:
            return node
        try:
            return dataclasses.replace(node, **changes)  # type: ignore[type-var]
        except ValueError as error:
            self.problems.append(self._refused(str(error), section, leaves))
            return node

    def _read_node(self, value: Any, key: str, where: str) -> None:
        if value is None:
            return
        if not isinstance(value, dict):
            self.problems.append(
                f"{where}: {key or 'the file'}: got {value!r}, expected a section with keys."
            )
            return
        for name, part in value.items():
            below = f"{key}.{name}" if key else str(name)
            leaf = self._leaves.get(below)
            if below in self._sections:
                self._read_node(part, below, where)
            elif leaf is None:
                self._unknown(below, where)
            elif leaf.free and isinstance(part, dict):
                for option, given in part.items():
                    self._give(leaf, f"{below}.{option}", given, where)
            else:
                self._give(leaf, below, part, where)

    def _read_text(self, key: str, text: str, where: str, *, variables: bool = False) -> None:
        leaf = self._leaves.get(key) or next(
            (
                leaf
                for leaf in self._leaves.values()
                if leaf.free and key.startswith(f"{leaf.key}.")
            ),
            None,
        )
        if leaf is None and key in self._sections:
            self.problems.append(
                f"{where}: {key} is a section. Set its keys one by one, such as {self._first(key, variables)}."
            )
        elif leaf is None:
            self._unknown(key, where, variables=variables)
        elif leaf.free and key != leaf.key:
            value, problems = parse(text)
            self._give(leaf, key, text if problems else value, where)
        else:
            self._give(leaf, key, leaf.from_text(text), where)

    def _give(self, leaf: _Leaf, key: str, raw: Any, where: str) -> None:
        if leaf.key == "kafka.bootstrap_servers" and isinstance(raw, list):
            raw = ",".join(
                map(str, raw)
            )  # a list reads better in a file; the client library wants one text
        option = key.removeprefix(leaf.key).removeprefix(".")
        if leaf.key == "kafka.options" and option in GUARDED:
            self.problems.append(
                f"{where}: {key}: this option is set by Steelyard and cannot be overridden. Remove it."
            )
            return
        try:
            value = leaf.convert({option: raw} if option else raw)
        except ValueError as error:
            place, got, expected = error.args
            shown = _MASK if _SECRET.search(key) else repr(got)
            self.problems.append(f"{where}: {key}{place}: got {shown}, expected {expected}.")
            self._broken.add(leaf.section)
            return
        if option:
            value = {**self._values.get(leaf.key, leaf.default), **value}
        self._values[leaf.key], self._written[leaf.key], self.origins[key] = value, raw, where

    def _unknown(self, key: str, where: str, *, variables: bool = False) -> None:
        nearest = self._nearest(key, variables)
        if variables:
            self.problems.append(f"{where}: no setting has this variable. Did you mean {nearest}?")
        else:
            self.problems.append(f"{where}: {key}: unknown key. Did you mean {nearest}?")

    def _nearest(self, key: str, variable: bool) -> str:
        known = self._leaves if variable else [*self._leaves, *self._sections]
        nearest = max(known, key=lambda one: difflib.SequenceMatcher(a=one, b=key).ratio())
        return _variable(nearest) if variable else nearest

    def _first(self, section: str, variable: bool) -> str:
        key = next(key for key in self._leaves if key.startswith(f"{section}."))
        return _variable(key) if variable else key

    def _refused(self, message: str, section: tuple[str, ...], leaves: Sequence[_Leaf]) -> str:
        """Say what a config refused in the words of the file: its key, what was written there, and units."""
        for leaf in leaves:
            if leaf.unit is not None:
                message = _in_units(message, leaf, leaf.unit)
        match = re.fullmatch(r"(?:[\w.]+\.)?(\w+): got (.*), expected (.*?)\.?", message, re.DOTALL)
        named = next(
            (leaf for leaf in leaves if match and match[1] in (leaf.name, leaf.attribute)), None
        )
        given = [self.origins[leaf.key] for leaf in leaves if leaf.key in self.origins]
        if match is None or named is None:
            said = re.sub(r"^[\w.]+: ", "", message).removesuffix(".")
            return f"{given[0] if given else DEFAULT}: {'.'.join(section)}: {said}."
        where = self.origins.get(named.key) or (given[0] if given else DEFAULT)
        got = (
            repr(self._written[named.key])
            if named.key in self._written
            else _yaml(named.write(named.default))
        )
        return f"{where}: {named.key}: got {got}, expected {match[3]}."


def _variable(key: str) -> str:
    return f"{ENVIRONMENT}{key.replace('.', '__').upper()}"


def _is_service_link(variable: str, text: str) -> bool:
    """Whether Kubernetes set it, as it does in every container of a namespace that has a service of our name."""
    rest = variable.removeprefix(ENVIRONMENT.removesuffix("_"))
    return bool(_SERVICE_LINK.fullmatch(rest) or (_SERVICE_PORT.fullmatch(rest) and "://" in text))


def _in_units(message: str, leaf: _Leaf, unit: Unit) -> str:
    def written(match: re.Match[str]) -> str:
        return leaf.name + (f"={unit.format(float(match[1]))}" if match[1] else "")

    return re.sub(rf"\b{leaf.attribute}\b(?:=([0-9.]+))?", written, message)


def _leaves(node: Any, section: tuple[str, ...] = ()) -> Iterator[_Leaf]:
    hints, meanings = typing.get_type_hints(type(node)), _meanings(type(node))
    for entry in dataclasses.fields(node):
        value = getattr(node, entry.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, (*section, entry.name))
        elif section:
            suffix = next((suffix for suffix in UNITS if entry.name.endswith(suffix)), "")
            yield _Leaf(
                section=section,
                attribute=entry.name,
                name=entry.name.removesuffix(suffix),
                annotation=hints[entry.name],
                default=value,
                unit=UNITS.get(suffix),
                meaning=meanings.get(entry.name, ""),
            )


def _meanings(owner: type) -> dict[str, str]:
    """Return what the owner's docstring and `#:` comments say about its fields."""
    meanings: dict[str, str] = {}
    for part in filter(dataclasses.is_dataclass, owner.__mro__):
        comments = re.findall(r"^    (\w+):.*?#: *(.*)$", inspect.getsource(part), re.MULTILINE)
        _, _, attributes = (inspect.getdoc(part) or "").partition("Attributes:\n")
        meanings = {
            **dict(re.findall(r"^    (\w+): (.*)$", attributes, re.MULTILINE)),
            **dict(comments),
            **meanings,
        }
    return meanings


def _yaml(value: Any) -> str:
    """Return a value in one line of YAML."""
    if (
        isinstance(value, str)
        and re.fullmatch(r"[\w./][\w./: -]*", value)
        and ": " not in value
        and parse(value) == (value, [])
    ):
        return value
    return json.dumps(value, ensure_ascii=False)
