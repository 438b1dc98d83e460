"""Result of one check of the doctor: a mark, a sentence, and a remedy to paste."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Mark = Literal["ok", "!", "X"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """A check and its outcome.

    Attributes:
        area: heading in the report.
        mark: X fails the examination; ! works, but not as it could.
        text: what was found.
        remedy: what to do; empty where nothing is to be done.
    """

    area: str
    mark: Mark
    text: str
    remedy: str = ""

    @classmethod
    def ok(cls, area: str, text: str) -> CheckResult:
        """Return a check that passed."""
        return cls(area=area, mark="ok", text=text)

    @classmethod
    def warn(cls, area: str, text: str, remedy: str) -> CheckResult:
        """Return a check to look at."""
        return cls(area=area, mark="!", text=text, remedy=remedy)

    @classmethod
    def fail(cls, area: str, text: str, remedy: str) -> CheckResult:
        """Return a check that failed."""
        return cls(area=area, mark="X", text=text, remedy=remedy)

    @property
    def failed(self) -> bool:
        """True where something must be put right."""
        return self.mark == "X"

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)
