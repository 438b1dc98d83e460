"""Who steps together: one process, or several that speak through torch.distributed."""

from __future__ import annotations

from typing import Protocol


class Ranks(Protocol):
    """All processes of one learner."""

    rank: int
    world: int

    def gather(self, data: bytes) -> list[bytes]:
        """Return what every rank gave, by rank."""

    def broadcast(self, data: bytes | None) -> bytes:
        """Return what the first rank gave."""

    def close(self) -> None:
        """Leave the others."""


class OneRank:
    """A learner of one process."""

    rank = 0
    world = 1

    def gather(self, data: bytes) -> list[bytes]:
        """Return what was given."""
        return [data]

    def broadcast(self, data: bytes | None) -> bytes:
        """Return what was given."""
        assert data is not None
        return data

    def close(self) -> None:
        """Nothing to leave."""


ONE: Ranks = OneRank()


def from_environment() -> Ranks:
    """Return one rank."""
    return ONE
