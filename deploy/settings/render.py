"""Settings written out: as entries, as a starter file, as a JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.settings.leaf import leaves
from deploy.settings.tree import Settings

DEFAULT = "default"
_HEADER = """\
# Every key with its default. Durations and sizes have units: 500ms, 30s, 15m, 7d, P7D; 64KB, 2MB.
# STEELYARD_<SECTION>__<KEY> wins over this file, the command line over both.
"""

#: Windows of seconds, so that the first events make samples within a minute.
TRIAL: Mapping[str, str] = {
    "join.click_window": "10s",
    "join.observation_window": "20s",
    "join.attribution_window": "1h",
    "join.grace": "5s",
    "join.idle_timeout": "5s",
    "learner.publish_every": "10s",
    "store.root": "steelyard-store",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Key with its value as a file would have it; secrets are masked."""

    key: str
    value: Any
    origin: str


def describe(settings: Settings) -> list[Entry]:
    """Return every key with its value and where it came from."""
    values: dict[str, Any] = {}
    for leaf in leaves(settings):
        written = leaf.write(leaf.value)
        if leaf.free and written:
            values |= {f"{leaf.key}.{name}": value for name, value in written.items()}
        else:
            values[leaf.key] = written
    return [
        Entry(key=key, value=value, origin=settings.origins.get(key, DEFAULT))
        for key, value in values.items()
    ]


def starter(values: Mapping[str, str] = {}) -> str:
    """Return a file with every key at its default, commented out, but for those in `values`."""
    lines = []
    section: tuple[str, ...] = ()
    for leaf in leaves(Settings()):
        for depth, name in enumerate(leaf.section):
            if leaf.section[: depth + 1] != section[: depth + 1]:
                lines.append(f"{'  ' * depth}{name}:")
        section = leaf.section
        comment = f"  # {leaf.help}" if leaf.help else ""
        given = values.get(leaf.key)
        line = (
            f"# {leaf.name}: {leaf.text(leaf.value)}" if given is None else f"{leaf.name}: {given}"
        )
        lines.append(f"{'  ' * len(section)}{line}{comment}")
    return _HEADER + "\n".join(lines) + "\n"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a settings file, for editors."""
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Steelyard settings",
        **_section("object"),
    }
    for leaf in leaves(Settings()):
        node = schema
        for name in leaf.section:
            node = node["properties"].setdefault(name, _section(["object", "null"]))
        node["properties"][leaf.name] = leaf.schema()
    return schema


def _section(kind: str | list[str]) -> dict[str, Any]:
    return {"type": kind, "additionalProperties": False, "properties": {}}
