"""A terminal on paper: the output, messages and questions of a command."""

from __future__ import annotations

import json
from typing import Any

from deploy.process.terminal import Output


class Paper:
    """A terminal; without an `answer` there is nobody to ask."""

    def __init__(self, answer: bool | None = None) -> None:
        self.written: list[str] = []
        self.reported: list[str] = []
        self.asked: list[str] = []
        self._answer = answer

    def output(self, *, as_json: bool = False) -> Output:
        return Output(
            write=self.written.append,
            report=self.reported.append,
            as_json=as_json,
            ask=None if self._answer is None else self._ask,
        )

    @property
    def objects(self) -> list[Any]:
        return [json.loads(line) for line in self.written]

    @property
    def text(self) -> str:
        return "\n".join(self.written)

    def _ask(self, question: str) -> bool:
        self.asked.append(question)
        return bool(self._answer)
