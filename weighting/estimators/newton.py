"""Newton's search for a minimum: steps that are halved until they do not go up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

_LEAST_STEP = 1e-6
Point = TypeVar("Point")
Step = TypeVar("Step")


class Objective(Protocol[Point, Step]):
    """A convex function of a point."""

    def value(self, at: Point) -> float:
        """Return it at a point."""
        ...

    def step(self, at: Point) -> tuple[Step, float]:
        """Return the Newton step H^-1 g, to be taken off, and g' H^-1 g: twice what is left."""
        ...

    def along(self, at: Point, step: Step) -> Callable[[float], Point]:
        """Return the point at `at - size step`, as a function of the size."""
        ...


def minimum(
    objective: Objective[Point, Step], start: Point, *, max_steps: int, least_gain: float
) -> Point:
    """Return the minimum of a convex function, nearly.

    Args:
        objective: the function.
        start: where the search begins.
        max_steps: after which it ends in any case.
        least_gain: it ends where a step promises less than this share of what the first one did,
            at most of 1: what is small is found too.
    """
    at, value, enough = start, objective.value(start), 0.0
    for _ in range(max_steps):
        step, gain = objective.step(at)
        enough = enough or least_gain * min(gain, 1.0)
        if gain <= enough:
            break
        point, size = objective.along(at, step), 1.0
        while True:
            proposal = point(size)
            better = objective.value(proposal)
            if better <= value or size < _LEAST_STEP:
                break
            size /= 2
        if better > value:
            break
        at, value = proposal, better
    return at
