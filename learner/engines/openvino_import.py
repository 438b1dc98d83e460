"""OpenVINO and NNCF, imported without the reports that they send to their makers."""

from __future__ import annotations

import sys
from typing import Any

from learner.errors import ModelUnsupported
from learner.extras import needed_by

_REPORTS = "openvino_telemetry"


def openvino_for(setting: str) -> Any:
    """Return the library.

    Both would fork the process, threads and all, to send reports over the network; they leave that
    out where they find no module to do it.

    Args:
        setting: that asks for it, for the error.

    Raises:
        ModelUnsupported: it is not installed; says how to install it.
    """
    sys.modules[_REPORTS] = None  # type: ignore[assignment]
    with needed_by(setting, ModelUnsupported):
        import openvino
    return openvino


def nncf_for(setting: str) -> Any:
    """Return the library, as `openvino_for` does."""
    sys.modules[_REPORTS] = None  # type: ignore[assignment]
    with needed_by(setting, ModelUnsupported):
        import nncf
    return nncf
