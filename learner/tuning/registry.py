"""Fine-tuning methods by name.

A new method is a new module in this folder and a line in `named`.
"""

from __future__ import annotations

import re
from typing import Any

from learner.encoder.passes import Passes
from learner.encoder.pooling import Pool
from learner.errors import TuningUnsupported
from learner.tuning.frozen import FrozenTuning
from learner.tuning.full import FullTuning
from learner.tuning.top_layers import TopLayersTuning
from learner.tuning.tuning import Tuning


def named(name: str, model: Any, pool: Pool, passes: Passes) -> Tuning:
    """Return the tuning of an encoder that a setting names.

    Raises:
        TuningUnsupported: there is no such tuning, or the encoder does not allow it.
    """
    if name == FullTuning.name:
        return FullTuning(model, pool, passes)
    if name == FrozenTuning.name:
        return FrozenTuning(model, pool, passes)
    if top := re.fullmatch(r"top:([1-9]\d*)", name):
        return TopLayersTuning(model, pool, passes, int(top[1]))
    raise TuningUnsupported(
        f"learner.tuning: got {name!r}, expected full, frozen or top:N with N >= 1"
    )
