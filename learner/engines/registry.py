"""Engines that run encoders to serve them, by the names that `serving.engine` has for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from learner.engines.openvino_engine import NAME, OpenVino
from learner.passes.forward import Passes
from learner.passes.graph_passes import Engine, GraphPasses

TORCH = "torch"
ENGINES: Mapping[str, Callable[[str], Engine]] = {NAME: OpenVino}
"""Name -> engine of a precision; torch itself needs none."""


def passes_of(name: str, precision: str) -> Passes | None:
    """Return passes through an engine, None for those that torch finds best.

    Args:
        name: ``torch``, or a key of `ENGINES`.
        precision: ``float32``, ``bfloat16`` or ``int8``.

    Raises:
        ModelUnsupported: the engine is not installed, or the processor has no such products.
    """
    return None if name == TORCH else GraphPasses(ENGINES[name](precision))
