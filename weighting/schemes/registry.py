"""The weighting schemes by the name that `weighting.scheme` gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from weighting.schemes.class_balanced import ClassBalanced
from weighting.schemes.focal import Focal
from weighting.schemes.ratio import ImportanceRatio
from weighting.schemes.scheme import Scheme
from weighting.schemes.self_paced import SelfPaced
from weighting.schemes.softmax_share import SoftmaxShare
from weighting.schemes.uniform import Uniform

SchemeName = Literal["ratio", "uniform", "softmax_share", "class_balanced", "focal", "self_paced"]
DEFAULT: SchemeName = "ratio"


class SchemeSettings(Protocol):
    """The settings that choose a scheme and its parameters."""

    @property
    def scheme(self) -> SchemeName:
        """Name of the scheme."""

    @property
    def exponent(self) -> float:
        """Exponent b of the importance ratio, or of p in the softmax share."""


SCHEMES: Mapping[SchemeName, Callable[[SchemeSettings], Scheme]] = {
    "ratio": lambda settings: ImportanceRatio(settings.exponent),
    "uniform": lambda settings: Uniform(),
    "softmax_share": lambda settings: SoftmaxShare(settings.exponent),
    "class_balanced": lambda settings: ClassBalanced(),
    "focal": lambda settings: Focal(),
    "self_paced": lambda settings: SelfPaced(),
}


def make_scheme(settings: SchemeSettings) -> Scheme:
    """Build the scheme that the settings name.

    Raises:
        ValueError: there is no scheme of that name.
    """
    if settings.scheme not in SCHEMES:
        raise ValueError(f"scheme: got {settings.scheme!r}, expected one of {', '.join(SCHEMES)}")
    return SCHEMES[settings.scheme](settings)
