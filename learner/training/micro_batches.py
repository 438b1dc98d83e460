"""A step's samples in micro-batches that fit the memory of the device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeVar

from weighting.tasks import TaskName


class Pair(Protocol):
    """What the encoder and its losses read of a sample."""

    @property
    def task(self) -> TaskName:
        """Name of the task."""

    @property
    def list_id(self) -> str:
        """List that it was shown in; empty when none is known."""

    @property
    def query(self) -> str:
        """The query's text."""

    @property
    def item_id(self) -> str:
        """Identity of the item; empty when it has none."""

    @property
    def text(self) -> str:
        """The item's text."""


_Pair = TypeVar("_Pair", bound=Pair)


def micro_batches(
    samples: Sequence[Pair], number: int, *, whole_lists: Collection[TaskName]
) -> list[list[int]]:
    """Divide samples into at most `number` micro-batches of about equal size.

    Args:
        samples: in event order.
        number: of micro-batches; fewer result where lists must stay whole.
        whole_lists: tasks of which all samples of a list are in one micro-batch.

    Returns:
        Places in `samples`, each micro-batch in order.
    """
    units: dict[tuple[TaskName, str] | int, list[int]] = {}
    for i, s in enumerate(samples):
        unit = (s.task, s.list_id) if s.task in whole_lists else i
        units.setdefault(unit, []).append(i)
    parts: dict[int, list[int]] = {}
    start = 0
    for places in units.values():
        parts.setdefault(start * number // len(samples), []).extend(places)
        start += len(places)
    return [sorted(part) for part in parts.values()]


def within_tokens(
    samples: Sequence[_Pair],
    part: Sequence[int],
    budget: int,
    num_tokens: Callable[[_Pair], dict[str, int]],
    *,
    whole_lists: Collection[TaskName],
) -> list[list[int]]:
    """Divide a micro-batch so that none encodes more tokens than `budget`.

    A list that exceeds the budget alone is divided too, and then its loss is that of its parts. A
    sample that exceeds it alone is a micro-batch of its own.

    Args:
        samples: of the step.
        part: places of the micro-batch, in order.
        budget: tokens that fit the memory.
        num_tokens: gives each text that a sample needs with its number of tokens; a text is encoded
            once in a micro-batch.
        whole_lists: tasks of which all samples of a list are in one micro-batch.
    """
    units: dict[tuple[TaskName, str] | int, list[int]] = {}
    for i in part:
        s = samples[i]
        units.setdefault((s.task, s.list_id) if s.task in whole_lists else i, []).append(i)
    divided = _Divided(budget)
    for places in units.values():
        texts = [num_tokens(samples[i]) for i in places]
        if sum(_merged(texts).values()) <= budget:
            divided.add(places, _merged(texts))
            continue
        for place, needed in zip(places, texts, strict=True):
            divided.add([place], needed)
    return [sorted(places) for places in divided.parts]


class _Divided:
    """Micro-batches, filled one after the other."""

    def __init__(self, budget: int) -> None:
        self.parts: list[list[int]] = []
        self._budget = budget
        self._encoded: dict[str, int] = {}  # in the last part
        self._num_tokens = 0

    def add(self, places: Sequence[int], texts: dict[str, int]) -> None:
        added = sum(num for text, num in texts.items() if text not in self._encoded)
        if not self.parts or self._num_tokens + added > self._budget:
            self.parts.append([])
            self._encoded, self._num_tokens, added = {}, 0, sum(texts.values())
        self.parts[-1].extend(places)
        self._encoded |= texts
        self._num_tokens += added


def _merged(texts: Sequence[dict[str, int]]) -> dict[str, int]:
    return {text: num for needed in texts for text, num in needed.items()}
