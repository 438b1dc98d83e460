"""Parts of the lists: learned from, to stop by, and to judge at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from deploy.errors import UsageError
from deploy.fitting.examples import Examples
from weighting.query_key import query_key

BY = ("query", "time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Lists in order of time, each in one part.

    Attributes:
        train: learned from.
        dev: decides when to stop, and where scores are divided in yes and no.
        test: judged once, at the end.
    """

    train: list[Examples]
    dev: list[Examples]
    test: list[Examples]


def split(lists: Sequence[Examples], by: str, *, dev: float, test: float, seed: int) -> Parts:
    """Divide lists by query, or by time with the newest in `test`.

    Args:
        lists: in order of time.
        by: `query`: all lists of a query are in one part, drawn by the seed; or `time`.
        dev: share of the queries, or of the lists.
        test: likewise.
        seed: of the draw.

    Raises:
        UsageError: a share is out of bounds, or a part would be empty.
    """
    if by not in BY:
        raise UsageError(f"--split: got {by!r}, expected query or time")
    if not (0 <= dev < 1 and 0 <= test < 1 and dev + test < 1):
        raise UsageError(
            f"--dev and --test: got {dev:g} and {test:g}, expected shares from 0 whose sum is "
            "below 1"
        )
    keys = [query_key(own.query) if by == "query" else str(n) for n, own in enumerate(lists)]
    order = list(dict.fromkeys(keys))
    if by == "query":
        order.sort(key=lambda key: _drawn(key, seed))
    num_test, num_dev = _number(test, len(order)), _number(dev, len(order))
    if num_test + num_dev >= len(order):
        what = "queries" if by == "query" else "lists"
        raise UsageError(
            f"--split {by}: found {len(order)} {what}, expected at least "
            f"{1 + (dev > 0) + (test > 0)}: one for each part. --dev 0 --test 0 learns from all."
        )
    in_test = set(order[len(order) - num_test :])
    in_dev = set(order[len(order) - num_test - num_dev : len(order) - num_test])
    parts = Parts(train=[], dev=[], test=[])
    for key, own in zip(keys, lists, strict=True):
        part = parts.test if key in in_test else parts.dev if key in in_dev else parts.train
        part.append(own)
    return parts


def _number(share: float, whole: int) -> int:
    """Return a share of a number, at least 1 of any share."""
    return max(round(share * whole), 1) if share else 0


def _drawn(key: str, seed: int) -> bytes:
    return blake2b(f"{seed}/{key}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
