"""Files of a model that somebody gives us: what is wrong with them is named, in one line.

transformers, tokenizers and safetensors raise errors of any class at a file that is damaged or
forged, so whatever they raise is taken for a fault of the files. Nothing of them is executed: no
code of the folder, no pickle, no attention that is fetched from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import torch

from learner.errors import LearnerError, ModelMissing, ModelUnsupported

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_REMEDY = "Expected a folder as save_pretrained writes it: copy it again, or name another."
_MAX_SHOWN = 240  # characters of another library's message
_MOST_LABELS = 1_000_000
_OWN_ATTENTION = (None, "eager", "sdpa")
_LAYER = re.compile(r"\.\d+\.")
_NO_MEMORY = re.compile(r"(?i)can(no|')t allocate memory")


@contextmanager
def reading(
    name: str,
    part: str,
    kind: type[LearnerError] = ModelMissing,
    *,
    setting: str = "learner.model: ",
) -> Iterator[None]:
    """Name a model and one of its files where a library fails at what is in it.

    Args:
        name: of the model, as in `LearnerConfig.model`, or of a folder.
        part: what is read, such as ``config.json``.
        kind: error that is raised.
        setting: that names the model, and a colon; empty where none does, as of a version.

    Raises:
        LearnerError: of that kind.
    """
    try:
        yield
    except (LearnerError, MemoryError):
        raise
    except Exception as error:
        remedy = _remedy(name, error)
        text = f"{setting}{name!r} cannot be loaded: {part}: {_said(error)}. {remedy}"
        raise kind(text) from error


def _remedy(name: str, error: Exception) -> str:
    """Return what to do about an error, whose cause need not be in a file."""
    if isinstance(error, ImportError):
        return "Install what it needs, or name another model."
    if _NO_MEMORY.search(str(error)):
        return "Give the process more memory, or name a smaller model."
    if not Path(name).is_dir():
        return "Expected a model on a hub that can be reached: look at its name and the connection."
    return _REMEDY


def _said(error: Exception) -> str:
    """Return the message of an error in one line."""
    text = " ".join(str(error).split())
    if not isinstance(error, OSError | ValueError | safetensors.SafetensorError):
        text = f"{type(error).__name__}: {text}"
    return (text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...").rstrip(". ")


def check_labels(name: str, written: bytes | None) -> None:
    """Refuse a ``config.json`` of so many labels that transformers would be at them for hours.

    Raises:
        ModelUnsupported: it says so.
    """
    with suppress(msgspec.DecodeError):  # whoever reads it next says what is wrong
        number = msgspec.json.decode(written or b"{}", type=dict[str, Any]).get("num_labels")
        if isinstance(number, int) and number > _MOST_LABELS:
            raise ModelUnsupported(
                f"learner.model: {name!r}: config.json: num_labels: got {number}, expected at most "
                f"{_MOST_LABELS}. {_REMEDY}"
            )


def check_config(name: str, config: Any) -> None:
    """Refuse what a configuration asks for and training cannot do.

    Raises:
        ModelUnsupported: its weights are quantised, it has no layers, or its attention is one of
            elsewhere.
    """
    if getattr(config, "quantization_config", None):
        raise ModelUnsupported(
            f"learner.model: {name!r}: config.json: found quantization_config, expected weights "
            "in floating point: name the model that was not quantised"
        )
    number = getattr(config, "num_hidden_layers", None)
    if isinstance(number, int) and number < 1:
        raise ModelUnsupported(
            f"learner.model: {name!r}: config.json: num_hidden_layers: got {number}, expected at "
            "least 1: the layers that the folder has values for would be left out"
        )
    attention = getattr(config, "_attn_implementation", None)
    if attention not in _OWN_ATTENTION:
        raise ModelUnsupported(
            f"learner.model: {name!r}: config.json: found the attention {attention!r}, expected "
            "sdpa, eager or none: remove attn_implementation from it"
        )


def check_weights(name: str, folder: Path) -> None:
    """Read the headers of a folder's tensors.

    Raises:
        ModelMissing: a file is absent or damaged; names it.
        ModelUnsupported: parameters are whole numbers.
    """
    for path in _weight_files(name, folder):
        with reading(name, path.name), safetensors.safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():
                kind = tensors.get_slice(key).get_dtype()
                if key.endswith(".weight") and not kind.startswith(("F", "BF")):
                    raise ModelUnsupported(
                        f"learner.model: {name!r}: {path.name}: {key} is of {kind}, expected "
                        "numbers in floating point: name the model that was not quantised"
                    )


def _weight_files(name: str, folder: Path) -> list[Path]:
    if not (folder / INDEX).is_file() or (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []
    with reading(name, INDEX):
        index = msgspec.json.decode((folder / INDEX).read_bytes(), type=dict[str, Any])
        files = set(msgspec.convert(index.get("weight_map"), dict[str, str]).values())
        for file in files:
            if Path(file).name != file:
                raise ValueError(f"found the file {file!r}, expected a name without a folder")
    return [folder / file for file in sorted(files)]


def check_loaded(name: str, model: Any, report: Mapping[str, Any]) -> None:
    """Refuse a model whose tensors are not those that its configuration describes.

    Args:
        name: of the model, for errors.
        model: as transformers loaded it.
        report: of that loading; shapes that differ are in it.

    Raises:
        ModelUnsupported: names the first tensor.
    """
    for key, found, expected in sorted(report["mismatched_keys"], key=str):
        raise ModelUnsupported(
            f"learner.model: {name!r}: {key} has the shape {tuple(found)}, expected "
            f"{tuple(expected)} by config.json. {_REMEDY}"
        )
    own = model.state_dict()
    for key in sorted(report["unexpected_keys"]):
        if _is_of_a_layer(key, own):
            raise ModelUnsupported(
                f"learner.model: {name!r}: there are values for {key}, a layer that config.json "
                "does not have; it would be left out. Correct the number of layers in config.json"
            )


def _is_of_a_layer(key: str, own: Mapping[str, Any]) -> bool:
    """Return whether a tensor is as one of the first layer, of another layer."""
    first = _LAYER.sub(".0.", key, count=1)
    parts = first.split(".")
    return first != key and any(".".join(parts[n:]) in own for n in range(len(parts)))


@torch.no_grad()
def check_finite(name: str, named: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Refuse parameters that are NaN or infinite.

    Raises:
        ModelUnsupported: names the first one.
    """
    for key, tensor in named:
        if not bool(torch.isfinite(tensor).all()):
            raise ModelUnsupported(
                f"learner.model: {name!r}: {key} has values that are NaN or infinite. {_REMEDY}"
            )
