"""Checks of a verification, and the report of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from deploy.process.terminal import Output
from learner.artifact import Version

EQUAL, DIFFERS, UNDECIDED = 0, 1, 3
"""Exit codes."""

_SIGNS = {"equal": "ok", "differs": "X", "undecided": "?"}
_RESULTS = {EQUAL: "equal", DIFFERS: "different", UNDECIDED: "undecided"}

Step = Literal["files", "journal", "log", "conservation", "state"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check and its outcome.

    Attributes:
        step: of the verification.
        outcome: what it found.
        text: the same for a person.
        partition: where it differs, as `clicks[0]`.
        offsets: the smallest range ``[start, end)`` that holds the difference.
        num_compared: number of versions whose state was compared.
        versions: those whose state differs.
    """

    step: Step
    outcome: Literal["equal", "differs", "undecided"]
    text: str
    partition: str | None = None
    offsets: tuple[int, int] | None = None
    num_compared: int | None = None
    versions: tuple[str, ...] = ()


def report(
    out: Output, start: Version | None, version: Version | None, checks: Sequence[Check]
) -> int:
    """Write all checks; return the exit code."""
    outcomes = {check.outcome for check in checks}
    code = EQUAL
    if outcomes & {"differs", "undecided"}:
        code = DIFFERS if "differs" in outcomes else UNDECIDED
    facts: dict[str, Any] = {
        "version": version and version.name,
        "since": start and start.name,
        "result": _RESULTS[code],
        "checks": [asdict(check) for check in checks],
    }
    lines = [f"{_SIGNS[check.outcome]:<2} {check.step}: {check.text}" for check in checks]
    out.give(facts, [*lines, _RESULTS[code]])
    return code
