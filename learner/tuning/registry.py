"""Fine-tuning methods by name.

A new method is a new module in this folder and a line in `named`.
"""

from __future__ import annotations

import re
from typing import Any

from learner.errors import TuningUnsupported
from learner.passes.forward import Passes
from learner.passes.pooling import Pool
from learner.tuning import adapters
from learner.tuning.frozen import FrozenTuning
from learner.tuning.full import FullTuning
from learner.tuning.top_layers import TopLayersTuning
from learner.tuning.tuning import Tuning


def named(name: str, model: Any, pool: Pool, passes: Passes, *, seed: int = 0) -> Tuning:
    """Return the tuning of an encoder that a setting names.

    Args:
        name: as in `LearnerConfig.tuning`.
        model: an encoder; an adapter is added to it, if it has none yet.
        pool: of the encoder.
        passes: over texts of different lengths.
        seed: of an adapter's first values.

    Raises:
        TuningUnsupported: there is no such tuning, or the encoder does not allow it.
    """
    if name == FullTuning.name:
        return FullTuning(model, pool, passes)
    if name == FrozenTuning.name:
        return FrozenTuning(model, pool, passes)
    if top := re.fullmatch(r"top:([1-9]\d*)", name):
        return TopLayersTuning(model, pool, passes, int(top[1]))
    if adapter := adapters.recipe(name):
        kind = adapters.TopAdapterTuning if adapter.num_layers else adapters.AdapterTuning
        return kind(model, pool, passes, adapter, seed=seed)
    raise TuningUnsupported(
        f"learner.tuning: got {name!r}, expected full, frozen, top:N, lora:R, ia3 or prefix:N; "
        "an adapter of the last N layers is lora:R@top:N, ia3@top:N or prefix:N@top:N"
    )
