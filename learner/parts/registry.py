"""The parts of a served score, in the order of their columns."""

from __future__ import annotations

from learner.parts.attributes import Attributes
from learner.parts.client_affinity import ClientAffinity
from learner.parts.item_prior import ItemPrior
from learner.parts.lexical import Lexical
from learner.parts.part import Part
from learner.parts.prototype import Prototype
from learner.parts.stateless import (
    ENCODER_START,
    PAIR_MEMORY,
    RESIDUAL,
    Given,
    ZeroShot,
)
from learner.request import ENCODER


def make_parts(*, width: int, logit_scale: float) -> dict[str, Part]:
    """Return untrained parts by name.

    Args:
        width: of the encoder's vectors.
        logit_scale: of the cosine.
    """
    return {
        ENCODER: Given(ENCODER, ENCODER_START),
        "zero_shot": ZeroShot(logit_scale),
        RESIDUAL: Given(RESIDUAL, 0.5),
        PAIR_MEMORY: Given(PAIR_MEMORY, 0.5),
        "lexical": Lexical(),
        "attributes": Attributes(),
        "item_prior": ItemPrior(),
        "prototype": Prototype(width, logit_scale),
        "client_affinity": ClientAffinity(width),
    }
