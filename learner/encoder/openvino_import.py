"""OpenVINO, imported without the reports that it sends to its makers."""

from __future__ import annotations

import sys
from typing import Any

from learner.errors import ModelUnsupported

_REPORTS = "openvino_telemetry"


def openvino_for(setting: str) -> Any:
    """Return the library.

    Each conversion of a model would fork the process, threads and all, to send a report over the
    network; OpenVINO leaves that out where it finds no module to do it.

    Args:
        setting: that asks for it, for the error.

    Raises:
        ModelUnsupported: it is not installed; says how to install it.
    """
    sys.modules[_REPORTS] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise ModelUnsupported(
            f"{setting} needs {error.name}, which is not installed: "
            'pip install "steelyard[openvino]"'
        ) from error
    return openvino
