"""Commands on settings: init, show, check, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.cli.exit_codes import FAILED, OK, UNSAFE
from deploy.cli.options import JSON, SETTINGS, Options, takes
from deploy.errors import SettingsError

app = typer.Typer(no_args_is_help=True, help="Show and check settings.")


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE")] = Path("steelyard.yaml"),
    trial: Annotated[
        bool, typer.Option("--trial", help="With windows of seconds and a store in this folder.")
    ] = False,
) -> None:
    """Write a file with every key at its default, commented out.

    An existing file is left alone (exit 3).
    """
    from deploy.settings.render import TRIAL, starter

    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(starter(TRIAL if trial else {}))
    except FileExistsError:
        typer.echo(f"steelyard: {file} exists; nothing written", err=True)
        raise typer.Exit(UNSAFE) from None
    typer.echo(f"{file} written", err=True)


@app.command()
@takes(*SETTINGS, *JSON)
def show(
    options: Options,
    origin: Annotated[
        bool, typer.Option("--origin", help="Print the origin of each value.")
    ] = False,
) -> None:
    """Print every key with its value."""
    from deploy.settings.render import describe

    entries = describe(options.settings())
    if options.as_json:
        shown: dict[str, Any] = {entry.key: entry.value for entry in entries}
        if origin:
            shown = {e.key: {"value": e.value, "origin": e.origin} for e in entries}
        typer.echo(json.dumps(shown, indent=2))
        return
    for entry in entries:
        value = entry.value if isinstance(entry.value, str) else json.dumps(entry.value)
        line = f"{entry.key}: {value}"
        typer.echo(f"{line:<60}  # {entry.origin}" if origin else line)


@app.command()
@takes(*SETTINGS, *JSON)
def check(options: Options) -> None:
    """Print everything that is wrong with the settings; exit 1 if something is."""
    problems: tuple[str, ...] = ()
    try:
        options.settings()
    except SettingsError as error:
        problems = error.problems
    if options.as_json:
        typer.echo(json.dumps({"problems": problems}))
    else:
        for problem in problems:
            typer.echo(problem)
    raise typer.Exit(FAILED if problems else OK)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a settings file, for editors."""
    from deploy.settings.render import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
