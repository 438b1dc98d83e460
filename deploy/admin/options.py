"""Options of which exactly one must be given."""

from __future__ import annotations

from collections.abc import Sequence


def one_of(what: str, named: Sequence[str], known: Sequence[str]) -> str:
    """Return the message for none or several options where exactly one is expected."""
    got = " and ".join(named) if named else "none"
    return f"{what}: got {got}, expected exactly one of {', '.join(known)}"
