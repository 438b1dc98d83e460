"""Identity of a query, whatever its spelling."""

from __future__ import annotations

import re
import unicodedata

_DASHES = re.compile("[-\u2010-\u2015]")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_PUNCTUATION = ".,;:!?\"'()[]\u00a1\u00bf\u2018\u2019\u201c\u201d\u2026"


def query_key(query: str) -> str:
    """Return what all spellings of a query have in common.

    Compatibility forms, case, spacing, dashes, and punctuation around words do not tell queries
    apart; accents, and symbols within words, do. The key of a key is itself.

    >>> query_key("Wi-Fi ROUTER!")
    'wi fi router'
    >>> query_key("c++")
    'c++'
    """
    text = folded(query)
    words = [word.strip(_PUNCTUATION) for word in _DASHES.sub(" ", text).split()]
    return " ".join(word for word in words if word) or " ".join(text.split())


def folded(text: str) -> str:
    """Return a text as NFKC with its case folded (Unicode 15, 3.13), less what has no width."""
    one_case = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", one_case))
