"""Frozen surfaces, computed from the code; `python -m tests.accept_surface` writes them.

A surface is what somebody outside relies on. Each is one file under `tests/surface/`, compared by
`tests/test_surface.py`.
"""

import ast
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "surface"

DOOR_MODULES = (
    "weighting/sample.py",
    "weighting/config.py",
    "weighting/weigher.py",
    "weighting/weighted.py",
    "consumers/pipeline.py",
    "learner/artifact.py",
    "serving/app.py",
    "deploy/broker/node.py",
)
"""Modules that another folder, or a user's own program, imports."""


def doors() -> Iterator[str]:
    """Public names of the door modules, with types and parameters; read, not imported."""
    for name in DOOR_MODULES:
        if (ROOT / name).exists():
            for line in _public(ast.parse((ROOT / name).read_text()).body):
                yield f"{name.removesuffix('.py').replace('/', '.')}.{line}"


def series() -> Iterator[str]:
    """Type, name and labels of every Prometheus series."""
    yield from (
        f"{kind} {name}{{{','.join(labels)}}}"
        for name, (kind, labels) in sorted(declared_series().items())
    )


def declared_series() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name as scraped -> (type, labels) of every series."""
    from prometheus_client import CollectorRegistry

    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for file in sorted(ROOT.glob("*/telemetry.py")):
        telemetry = importlib.import_module(f"{file.parent.name}.telemetry").Telemetry(
            CollectorRegistry()
        )
        members = [
            m
            for value in vars(telemetry).values()
            for m in (value.values() if isinstance(value, dict) else (value,))
        ]
        for value in members:
            if hasattr(value, "_labelnames"):
                suffix = {"counter": "_total", "info": "_info"}.get(value._type, "")
                found[value._name + suffix] = (value._type, tuple(value._labelnames))
    return found


def commands() -> Iterator[str]:
    """Every command with its arguments and options."""
    import typer

    yield from _commands(
        typer.main.get_command(importlib.import_module("deploy.cli.app").app), "steelyard"
    )


def settings() -> Iterator[str]:
    """Every settings key, with its default."""
    tree = importlib.import_module("deploy.settings.tree")
    render = importlib.import_module("deploy.settings.render")
    for entry in render.describe(tree.Settings()):
        yield f"{entry.key} = {json.dumps(entry.value)}"


def event_schemas() -> Iterator[str]:
    """The JSON Schemas of what producers write."""
    yield _pretty(importlib.import_module("consumers.codec").schemas())


def http() -> Iterator[str]:
    """The OpenAPI document, without the version number of the package."""
    routes = importlib.import_module("serving.app").ROUTES
    document = importlib.import_module("serving.wire.openapi").document(routes)
    yield _pretty(
        document
        | {"info": {key: value for key, value in document["info"].items() if key != "version"}}
    )


SURFACES: Mapping[str, tuple[str, Callable[[], Iterator[str]]]] = {
    "doors.txt": ("weighting/sample.py", doors),
    "series.txt": ("consumers/telemetry.py", series),
    "commands.txt": ("deploy/cli/app.py", commands),
    "settings.txt": ("deploy/settings/render.py", settings),
    "events.json": ("consumers/codec.py", event_schemas),
    "http.json": ("serving/wire/openapi.py", http),
}
"""golden file -> (the module without which there is nothing to compare, the surface)."""


def current(name: str) -> str:
    """A surface as the code has it now, as the text of its golden file."""
    return "\n".join(SURFACES[name][1]()) + "\n"


def _pretty(data: object) -> str:
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False)


def _public(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name
            yield from (f"{node.name}.{line}" for line in _public(node.body))
        elif isinstance(node, ast.FunctionDef) and (
            node.name == "__init__" or not node.name.startswith("_")
        ):
            returned = ast.unparse(node.returns) if node.returns else None
            yield f"{node.name}({ast.unparse(node.args)}) -> {returned}"
        elif (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and not node.target.id.startswith("_")
        ):
            yield f"{node.target.id}: {ast.unparse(_without_metadata(node.annotation))}"


def _without_metadata(annotation: ast.expr) -> ast.expr:
    """Return the type that `Annotated` gives bounds and a help text."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[kind, *_])):
            return kind
    return annotation


def _commands(command: Any, words: str) -> Iterator[str]:
    parameters = [_parameter(parameter) for parameter in command.params if parameter.name != "help"]
    subcommands = getattr(command, "commands", {})
    if parameters or not subcommands or command.invoke_without_command:
        yield " ".join([words, *parameters])
    for name in sorted(subcommands):
        yield from _commands(subcommands[name], f"{words} {name}")


def _parameter(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    return "[" + "|".join([*parameter.opts, *parameter.secondary_opts]) + "]"


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for golden, (module, _) in SURFACES.items():
        if (ROOT / module).exists():
            (GOLDEN / golden).write_text(current(golden))
