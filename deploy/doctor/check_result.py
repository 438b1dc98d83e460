"""One line of the doctor's report: what was looked at, how it is, and what to paste when it is not well."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Mark = Literal["ok", "!", "X"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """A check and its outcome."""

    area: str
    mark: Mark  #: X fails the examination; ! works, but not as it could
    text: str
    remedy: str = ""

    @property
    def failed(self) -> bool:
        """Whether it must be put right."""
        return self.mark == "X"

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def render(findings: Sequence[CheckResult]) -> str:
    """Return the report: one line a finding, its remedy below it, under a heading per area."""
    lines = []
    for area, group in itertools.groupby(findings, key=lambda finding: finding.area):
        lines.append(area)
        for finding in group:
            lines.append(f"  {finding.mark:<2} {finding.text}")
            if finding.remedy:
                lines.append(f"     Fix: {finding.remedy}")
    num_failed = sum(finding.failed for finding in findings)
    num_marked = sum(finding.mark == "!" for finding in findings)
    counted = [f"{num_failed} to be put right"] * bool(num_failed) + [
        f"{num_marked} to look at"
    ] * bool(num_marked)
    return "\n".join([*lines, ", ".join(counted) or "all is well"])
