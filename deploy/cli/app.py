"""The command line: its commands put together, and how an error ends it.

A command reads its options and makes one call; what is slow to import is imported inside it.
Exit codes: 0 ok, 1 a check failed, 2 usage, 3 refused as unsafe, 75 start it again,
130 interrupted. Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from deploy.cli import (
    broker,
    checkpoints,
    config,
    demo,
    doctor,
    evaluate,
    events,
    fit,
    offsets,
    replay,
    roles,
    tag,
    topics,
    verify,
)
from deploy.cli.exit_codes import FAILED, exit_code, missing_extra, refusal_of_system
from deploy.process.log_line import log_end

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="An incremental learner on shop events in Kafka, and its server.",
)
for _command in (
    demo.demo,
    roles.learn,
    roles.serve,
    roles.up,
    broker.broker,
    doctor.doctor,
    verify.verify,
    evaluate.evaluate,
    fit.fit,
    tag.tag,
):
    app.command()(_command)
app.add_typer(events.app, name="events")
app.add_typer(topics.app, name="topics")
app.add_typer(config.app, name="config")
app.add_typer(offsets.app, name="offsets")
app.add_typer(replay.app, name="replay")
app.add_typer(checkpoints.app, name="checkpoints")


def _print_version(asked: bool) -> None:
    if not asked:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        typer.echo(f"steelyard {version('steelyard')}")
    except PackageNotFoundError:
        typer.echo("steelyard 0: a source tree that is not installed")
    raise typer.Exit


@app.callback()
def steelyard(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Declare the options that come before the command."""


def main() -> None:
    """Run the command line.

    An error that declares an exit code ends in one clear text, and so does an extra that is not
    installed and what the system refuses, such as to write on a full disk; any other error ends in
    a traceback.
    """
    for variable in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):  # read where they are used
        os.environ.setdefault(variable, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app(prog_name="steelyard")
    except Exception as raised:
        error = missing_extra(raised) or raised
        code = exit_code(error)
        if code is None and (refused := refusal_of_system(error)):
            if not log_end(error, FAILED):
                typer.echo(f"steelyard: {refused}", err=True)
            _end_without_output()
        if code is None:
            raise
        if not log_end(error, code):
            typer.echo(f"steelyard: {error}", err=True)
        sys.exit(code)


def _end_without_output() -> NoReturn:
    """End with code 1; what is left in the output's buffer may be what could not be written."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    sys.exit(FAILED)
