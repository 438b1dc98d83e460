"""The weighting schemes by the name that `weighting.scheme` gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from weighting.schemes.class_balanced import ClassBalanced
from weighting.schemes.focal import Focal
from weighting.schemes.ratio import ImportanceRatio
from weighting.schemes.scheme import Scheme
from weighting.schemes.self_paced import SelfPaced
from weighting.schemes.softmax_share import SoftmaxShare
from weighting.schemes.uniform import Uniform

SchemeName = Literal[
    "ratio",
    "uniform",
    "softmax_share",
    "attribute_share",
    "class_balanced",
    "focal",
    "self_paced",
]
DEFAULT: SchemeName = "ratio"

SCHEMES: Mapping[SchemeName, Callable[[float], Scheme]] = {
    "ratio": ImportanceRatio,
    "uniform": lambda exponent: Uniform(),
    "softmax_share": SoftmaxShare,
    "attribute_share": lambda exponent: SoftmaxShare(exponent, by_attributes=True),
    "class_balanced": lambda exponent: ClassBalanced(),
    "focal": lambda exponent: Focal(),
    "self_paced": lambda exponent: SelfPaced(),
}
"""name -> its scheme under the setting `weighting.exponent`, which some do not have."""


def make_scheme(name: str, exponent: float = 1.0) -> Scheme:
    """Build the scheme of a name.

    Raises:
        ValueError: there is no scheme of that name, or it cannot have the exponent.
    """
    for known, build in SCHEMES.items():
        if name == known:
            return build(exponent)
    raise ValueError(f"scheme: got {name!r}, expected one of {', '.join(SCHEMES)}")


def by_attributes(schemes: Iterable[Scheme]) -> bool:
    """Return whether one of them asks for the choice by attributes."""
    return any(isinstance(s, SoftmaxShare) and s.by_attributes for s in schemes)


def parse_candidates(text: str) -> dict[str, Scheme]:
    """Build the schemes of a list such as ``uniform, ratio:0.5``, by name.

    Raises:
        ValueError: it names fewer than two, one twice, or one that there is not; the message is
            the expectation.

    >>> [scheme.exponent for scheme in parse_candidates("uniform, ratio:0.5").values()]
    [0.0, 0.5]
    """
    names = [part.strip() for part in text.split(",")]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError("two or more different candidates")
    return {name: _candidate(name) for name in names}


def _candidate(text: str) -> Scheme:
    name, _, exponent = text.partition(":")
    try:
        return make_scheme(name, float(exponent) if exponent else 1.0)
    except ValueError as error:
        raise ValueError(
            f"scheme or scheme:exponent, of {', '.join(SCHEMES)} (in {text!r}: {error})"
        ) from error
