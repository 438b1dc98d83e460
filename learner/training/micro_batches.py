"""A step's samples in micro-batches that fit the memory of the device."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from weighting.sample import Sample
from weighting.tasks import TaskName


def micro_batches(
    samples: Sequence[Sample], number: int, *, whole_lists: Collection[TaskName]
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
