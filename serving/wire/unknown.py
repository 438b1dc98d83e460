"""Unknown names in requests: misspelt ones are refused, those of other services ignored."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from serving.errors import Invalid

_ELSEWHERE = {"top_k": "top_n"}
"""Names of the same thing elsewhere, whose meaning would be lost."""
_OTHERS = {"client_ip", "content", "contents", "contexts", "mode", "models", "truncated"}
"""Fields of other services that look like a slip of ours and mean something else."""
_SHORTEST = 5
"""Letters of a known name in which a slip is looked for."""
_MAX_LENGTH = 40
"""Characters of a name that is compared with the known ones."""
_MAX_NAMES = 16
"""Names of a request that are."""


def nearest(name: str, known: Mapping[str, str]) -> str | None:
    """Return the path of the known name that `name` stands for; None if there is none.

    That is one in another spelling (`topN`), or at the top level with one slip: a letter too many,
    too few, wrong, or two that changed places. More would refuse what other services send.

    Args:
        name: unknown.
        known: names, with the path of each.

    >>> nearest("explian", {"query": "query", "explain": "explain"})
    'explain'
    """
    if len(name) > _MAX_LENGTH or name.lower() in _OTHERS:
        return None
    plain = _plain(_ELSEWHERE.get(name, name))
    for one, path in known.items():
        if _plain(one) == plain:
            return path
    for one, path in known.items():
        if one == path and len(_plain(one)) >= _SHORTEST and _is_slip(plain, _plain(one)):
            return path
    return None


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _is_slip(one: str, other: str) -> bool:
    """Return whether words that begin alike differ by one letter, or two that changed places."""
    if one[:1] != other[:1]:
        return False
    one, other = _without_common(one, other)
    one, other = (word[::-1] for word in _without_common(one[::-1], other[::-1]))
    return max(len(one), len(other)) <= 1 or (len(one) == 2 and one == other[::-1])


def _without_common(one: str, other: str) -> tuple[str, str]:
    """Return two words without the letters that both begin with."""
    both = zip(one, other, strict=False)
    number = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both))
    return one[number:], other[number:]


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
            raise Invalid(f"Unknown field `{name}`: did you mean `{meant}`? - at `$`")
    return names


def warnings_of(names: Iterable[str]) -> list[str]:
    """Return a sentence for each ignored name, of the first few."""
    shown = (ascii(name[:_MAX_LENGTH])[1:-1] for name in itertools.islice(names, _MAX_NAMES))
    return [f"`{name}` is not known here and was ignored" for name in shown]


def refused(name: str, known: Iterable[str], where: str) -> Invalid:
    """Return the error of an unknown name where all names must be known."""
    known = list(known)
    meant = nearest(name, dict(zip(known, known, strict=True)))
    listed = ", ".join(f"`{one}`" for one in known)
    advice = f"did you mean `{meant}`?" if meant else f"expected one of {listed}"
    return Invalid(f"Unknown field `{name[:100]}`: {advice} - at `{where}`")


def check_query(names: Iterable[str], fields: Iterable[str]) -> None:
    """Refuse query parameters that are meant for the body; what a proxy adds is let through.

    Args:
        names: of the parameters.
        fields: of the body's top level.

    Raises:
        Invalid: one of them is a field of the body, in any spelling.
    """
    plain = {_plain(field): field for field in fields}
    for name in names:
        if (meant := plain.get(_plain(name[:_MAX_LENGTH]))) is not None:
            raise Invalid(f"Expected `{meant}` in the JSON body, got the query parameter `{name}`")
