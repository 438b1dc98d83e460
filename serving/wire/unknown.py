"""Unknown names in requests: misspelt ones are refused, those of other services ignored."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping

from serving.errors import Invalid

#: Fields of other rerank services that resemble one of ours and mean something else.
_OTHERS = {"models", "truncation"}
_LEAST_SIMILARITY = 0.75
_MAX_LENGTH = 40
"""Characters of a name that is compared with the known ones."""
_MAX_NAMES = 16
"""Names of a request that are: comparing one takes up to 0.3 ms."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` probably stands for; None if there is none.

    >>> nearest("explian", ["query", "explain"])
    'explain'
    """
    if name in _OTHERS or len(name) > _MAX_LENGTH:
        return None
    found = difflib.get_close_matches(name.lower(), known, 1, _LEAST_SIMILARITY)
    return found[0] if found else None


def ignored(names: Iterable[str], known: Mapping[str, str]) -> tuple[str, ...]:
    """Return unknown names of a request's top level, which are ignored.

    Args:
        names: unknown ones.
        known: the known ones, with the path of each.

    Raises:
        Invalid: one of them is probably a misspelling, or its place is elsewhere.
    """
    names = tuple(names)
    for name in itertools.islice(names, _MAX_NAMES):
        if (meant := nearest(name, known)) is not None:
            raise Invalid(f"Unknown field `{name}`: did you mean `{known[meant]}`? - at `$`")
    return names


def warnings_of(names: Iterable[str]) -> list[str]:
    """Return a sentence for each ignored name, of the first few."""
    shown = (name[:_MAX_LENGTH] for name in itertools.islice(names, _MAX_NAMES))
    return [f"`{name}` is not known here and was ignored" for name in shown]


def refused(name: str, known: Iterable[str], where: str) -> Invalid:
    """Return the error of an unknown name where all names must be known."""
    known = list(known)
    meant = nearest(name, known)
    listed = ", ".join(f"`{one}`" for one in known)
    advice = f"did you mean `{meant}`?" if meant else f"expected one of {listed}"
    return Invalid(f"Unknown field `{name[:100]}`: {advice} - at `{where}`")


def check_query(names: Iterable[str], fields: Iterable[str]) -> None:
    """Refuse query parameters that are meant for the body; what a proxy adds is let through.

    Raises:
        Invalid: one of them is, or resembles, a field of the body.
    """
    fields = list(fields)
    for name in itertools.islice(names, _MAX_NAMES):
        if (meant := nearest(name, fields)) is not None:
            raise Invalid(f"Expected `{meant}` in the JSON body, got the query parameter `{name}`")


def refuse_query(names: Iterable[str]) -> None:
    """Refuse any query parameter.

    Raises:
        Invalid: there is one.
    """
    for name in names:
        raise Invalid(f"Expected no query parameters, got `{name[:100]}`")
