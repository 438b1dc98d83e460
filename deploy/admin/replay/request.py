"""Options of `replay`, and the log that they are about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from consumers.events import Kind
from consumers.source import Source
from deploy.admin.brokers import Brokers
from deploy.admin.offsets.targets import Target
from deploy.admin.options import one_of
from deploy.errors import UsageError

AS_IT_WAS, ANEW = "as-it-was", "anew"
LIVE, SHADOW = "live", "shadow"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """Options of `replay`; one of version, target and (alone) exclude gives how far back."""

    version: str | None = None
    target: Target | None = None
    exclude: Path | None = None
    mode: str | None = None
    into: str = LIVE
    shadow_root: Path | None = None
    execute: bool = False
    export: bool = False
    yes: bool = False

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            UsageError: names the option and what was expected.
        """
        target = self.target.name if self.target else ""
        given = {
            "--from-checkpoint": self.version is not None,
            "--to-datetime": target == "to-datetime",
            "--by-duration": target == "by-duration",
        }
        named = [name for name, there in given.items() if there]
        if len(named) > 1 or (not named and self.exclude is None):
            raise UsageError(one_of("how far back", named, [*given, "--exclude alone"]))
        _check_choice("--mode", self.mode, (AS_IT_WAS, ANEW))
        _check_choice("--into", self.into, (LIVE, SHADOW))
        if self.exclude is not None and self.mode == AS_IT_WAS:
            raise UsageError(
                "--mode: as-it-was repeats every record; with --exclude the mode is anew"
            )
        if self.shadow_root is not None and self.into != SHADOW:
            raise UsageError("--shadow-root: only with --into shadow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Access to the log.

    Attributes:
        kinds: of every topic that the learner reads.
        brokers: connected.
        open: opens the topics of events.
    """

    kinds: Mapping[str, Kind]
    brokers: Brokers
    open: Callable[[], AbstractContextManager[Source]]

    @property
    def events(self) -> list[str]:
        """Topics of events; the others are compacted."""
        return [topic for topic, kind in self.kinds.items() if kind is not Kind.ITEM]


def _check_choice(option: str, value: str | None, choices: tuple[str, str]) -> None:
    if value is not None and value not in choices:
        raise UsageError(f"{option}: got {value!r}, expected {' or '.join(choices)}")
