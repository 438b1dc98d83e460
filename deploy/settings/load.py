"""Settings from defaults, a YAML file, the environment and the command line.

A later layer wins. All errors are reported at once.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from consumers.kafka.options import GUARDED
from deploy.errors import SettingsError
from deploy.settings.environment import CONFIG, settings_in, variable
from deploy.settings.leaf import MASK, Leaf, is_secret, leaves, text_or_value
from deploy.settings.renamed import NOTES, present_key, present_value
from deploy.settings.render import DEFAULT
from deploy.settings.tree import Settings
from deploy.settings.yaml import parse
from weighting.constraints import SettingError

COMMAND_LINE = "command line"

#: The file of settings of a folder, read where none is named.
FILE = Path("steelyard.yaml")

Node = TypeVar("Node")


def settings_file(given: Path | None, env: Mapping[str, str]) -> Path | None:
    """Return the file to load: the one given, STEELYARD_CONFIG, ./steelyard.yaml, or None."""
    if given is not None:
        return given
    if named := env.get(CONFIG):
        return Path(named)
    return FILE if FILE.exists() else None


def load(
    path: Path | None, env: Mapping[str, str], overrides: Mapping[str, str] | None = None
) -> Settings:
    """Return the settings; a later layer wins: default, file, environment, overrides.

    Args:
        path: a YAML file; None for none.
        env: variables; every one named `STEELYARD_*` must be a key, others are ignored.
        overrides: key -> text, from the command line.

    Raises:
        SettingsError: everything that is wrong in any of them.
    """
    layers = _Layers()
    if path is not None:
        layers.read_file(path)
    layers.read_environment(env)
    layers.read_overrides(overrides or {})
    settings = layers.build(Settings(), ())
    if not layers.problems:
        layers.check_together(settings)
    if layers.problems:
        raise SettingsError(layers.problems)
    return dataclasses.replace(settings, origins=dict(layers.origins))


class _Layers:
    """Values read so far, and what is wrong with them."""

    def __init__(self) -> None:
        self._leaves = {leaf.key: leaf for leaf in leaves(Settings())}
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
            remedy = "`steelyard config init` writes one."
            self.problems.append(f"{path}: cannot be read: {cause}. {remedy}")
            return
        value, problems = parse(text)
        self.problems += [f"{path}: {problem}." for problem in problems]
        self._read_node(value, "", str(path))

    def read_environment(self, env: Mapping[str, str]) -> None:
        """Read every variable with our prefix."""
        for name, key, text in settings_in(env):
            self._read_text(key, text, name, spell=variable)

    def read_overrides(self, overrides: Mapping[str, str]) -> None:
        """Read what the command line sets."""
        for key, text in overrides.items():
            self._read_text(key, text, COMMAND_LINE)

    def build(self, node: Node, section: tuple[str, ...]) -> Node:
        """Return a config with everything that was read for it and below it."""
        own = [leaf for leaf in self._leaves.values() if leaf.section == section]
        read = {leaf.field: self._values[leaf.key] for leaf in own if leaf.key in self._values}
        changes = {**self._build_sections(node, section), **read}
        if not changes or section in self._broken:
            return node
        try:
            return dataclasses.replace(node, **changes)  # type: ignore[type-var]
        except SettingError as error:
            self.problems.append(self._refused(error, section))
            return node

    def check_together(self, settings: Settings) -> None:
        """Check what settings of one section mean for those of another."""
        try:
            settings.learner.task_weights.check_weighting(settings.weighting)
        except SettingError as error:
            where = self.origins.get(f"learner.task_weights.{error.name}", DEFAULT)
            self.problems.append(f"{where}: {error}.")

    def _build_sections(self, node: Any, section: tuple[str, ...]) -> dict[str, Any]:
        built = {
            entry.name: self.build(getattr(node, entry.name), (*section, entry.name))
            for entry in dataclasses.fields(node)
            if dataclasses.is_dataclass(getattr(node, entry.name))
        }
        return {name: value for name, value in built.items() if value is not getattr(node, name)}

    def _read_node(self, value: Any, key: str, where: str) -> None:
        if value is None:
            return
        if not isinstance(value, dict):
            place = f"{where}: {key or 'the file'}"
            # What stands in the place of options may be one of them.
            shown = MASK if key.startswith("kafka") else repr(value)
            self.problems.append(f"{place}: got {shown}, expected a section with keys.")
            return
        for name, part in value.items():
            self._read_part(part, f"{key}.{name}" if key else str(name), where)

    def _read_part(self, part: Any, key: str, where: str) -> None:
        leaf = self._leaves.get(key)
        if key in self._sections:
            self._read_node(part, key, where)
        elif leaf is None:
            self._unknown(key, where)
        elif leaf.free and isinstance(part, dict):
            for option, given in part.items():
                self._set_option(leaf, str(option), given, where)
        else:
            self._set(leaf, part, where)

    def _read_text(
        self, key: str, text: str, where: str, *, spell: Callable[[str], str] = str
    ) -> None:
        leaf, free = self._leaves.get(key), self._free_parent(key)
        if leaf is not None:
            self._set(leaf, leaf.from_text(text), where)
        elif free is not None:
            option = key.removeprefix(f"{free.key}.")
            self._set_option(free, option, text_or_value(text), where)
        elif key in self._sections:
            example = spell(next(one for one in self._leaves if one.startswith(f"{key}.")))
            advice = f"Set its keys one by one, such as {example}."
            self.problems.append(f"{where}: {key} is a section. {advice}")
        else:
            self._unknown(key, where, spell)

    def _free_parent(self, key: str) -> Leaf | None:
        """Return the leaf whose mapping holds a key."""
        for leaf in self._leaves.values():
            if leaf.free and key.startswith(f"{leaf.key}."):
                return leaf
        return None

    def _set(self, leaf: Leaf, raw: Any, where: str) -> None:
        # A list of brokers reads better in a file; the client library wants one text.
        if leaf.key == "kafka.bootstrap_servers" and isinstance(raw, list):
            raw = ",".join(map(str, raw))
        try:
            value = leaf.convert(raw)
        except ValueError as error:
            self._wrong(leaf, raw, str(error), where)
            return
        self._values[leaf.key], self._written[leaf.key] = value, raw
        self.origins[leaf.key] = where

    def _set_option(self, leaf: Leaf, option: str, raw: Any, where: str) -> None:
        key = f"{leaf.key}.{option}"
        if leaf.key == "kafka.options" and option in GUARDED:
            reason = "this option is set by Steelyard and cannot be overridden. Remove it."
            self.problems.append(f"{where}: {key}: {reason}")
            return
        self._values[leaf.key] = {**self._values.get(leaf.key, leaf.value), option: raw}
        self.origins[key] = where

    def _wrong(self, leaf: Leaf, raw: Any, expected: str, where: str) -> None:
        self._broken.add(leaf.section)
        shown = MASK if leaf.free or is_secret(leaf.key) else repr(raw)
        present = present_value(leaf.key, raw)
        renamed = f" ({shown} is now {present})" if present else ""
        self.problems.append(f"{where}: {leaf.key}: got {shown}, expected {expected}{renamed}.")

    def _unknown(self, key: str, where: str, spell: Callable[[str], str] = str) -> None:
        place = where if spell is variable else f"{where}: {key}"
        present = present_key(key)
        if present is not None:
            self.problems.append(f"{place}: renamed to {spell(present)}{NOTES.get(key, '')}.")
            return
        what = "no setting has this variable" if spell is variable else "unknown key"
        known = self._leaves if spell is variable else [*self._leaves, *self._sections]
        nearest = max(known, key=lambda one: difflib.SequenceMatcher(a=one, b=key).ratio())
        self.problems.append(f"{place}: {what}. Did you mean {spell(nearest)}?")

    def _refused(self, error: SettingError, section: tuple[str, ...]) -> str:
        """Report a refused value by its key, as written, with units.

        A config may refuse a field of a section below it: `privacy.noise_multiplier`.
        """
        depth = len(section)
        own = [leaf for leaf in self._leaves.values() if leaf.section[:depth] == section]
        by_field = {".".join((*leaf.section[depth:], leaf.field)): leaf for leaf in own}
        leaf, expected = by_field[error.name], error.expected
        if error.bound is not None:
            limit = by_field[error.bound[0]]
            name = ".".join((*limit.section[depth:], limit.name))
            expected += f" {name}={limit.text(error.bound[1])}"
        given = [self.origins[one.key] for one in own if one.key in self.origins]
        where = self.origins.get(leaf.key) or (given[0] if given else DEFAULT)
        written = self._written
        got = repr(written[leaf.key]) if leaf.key in written else leaf.text(error.value)
        got = MASK if leaf.free else got
        return f"{where}: {leaf.key}: got {got}, expected {expected}."
