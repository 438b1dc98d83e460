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
    keys = [query_key(own.query) if by == "query" else str(n) for n, own in enumerate(lists)]
    order = list(dict.fromkeys(keys)) if by == "time" else drawn(keys, seed)
    what = "queries" if by == "query" else "lists"
    names = divide(order, f"--split {by}: found {len(order)} {what}", dev=dev, test=test)
    parts = Parts(train=[], dev=[], test=[])
    found = {"train": parts.train, "dev": parts.dev, "test": parts.test}
    for key, own in zip(keys, lists, strict=True):
        found[names[key]].append(own)
    return parts


def drawn(keys: Sequence[str], seed: int) -> list[str]:
    """Return the distinct keys in an order drawn by the seed, for each key apart."""
    return sorted(dict.fromkeys(keys), key=lambda key: _drawn(key, seed))


def divide(order: Sequence[str], found: str, *, dev: float, test: float) -> dict[str, str]:
    """Return for each key `train`, `dev` or `test`: the last ones are `test`.

    Args:
        order: distinct keys.
        found: what there is, for the error.
        dev: share of the keys.
        test: likewise.

    Raises:
        UsageError: a share is out of bounds, or a part would be empty.
    """
    if not (0 <= dev < 1 and 0 <= test < 1 and dev + test < 1):
        raise UsageError(
            f"--dev and --test: got {dev:g} and {test:g}, expected shares from 0 whose sum is "
            "below 1"
        )
    num_test, num_dev = _number(test, len(order)), _number(dev, len(order))
    num_train = len(order) - num_dev - num_test
    if num_train <= 0:
        raise UsageError(
            f"{found}, expected at least {1 + (dev > 0) + (test > 0)}: one for each part. "
            "--dev 0 --test 0 learns from all."
        )
    names = ["train"] * num_train + ["dev"] * num_dev + ["test"] * num_test
    return dict(zip(order, names, strict=True))


def _number(share: float, whole: int) -> int:
    """Return a share of a number, at least 1 of any share."""
    return max(round(share * whole), 1) if share else 0


def _drawn(key: str, seed: int) -> bytes:
    return blake2b(f"{seed}/{key}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
