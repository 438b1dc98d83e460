"""Command `evaluate`: how good the scores were, before they were learned from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import JSON, SETTINGS, Options, takes


@takes(*SETTINGS, *JSON)
def evaluate(
    version: Annotated[
        str, typer.Argument(metavar="VERSION|@ALIAS", help="The newest by default.")
    ] = "@announced",
    since: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION|TIME",
            help="Leave out what came up to this version, or to the last one made by this time.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page with charts, which needs nothing beside."),
    ] = None,
    *,
    options: Options,
) -> None:
    """Print how good the scores of the stream were, beside the order that the shop showed.

    Each sample was scored before it was learned.
    """
    from deploy.admin import evaluate as admin

    found = admin.evaluate(options.store(), version, since, options.output(), report=report)
    raise typer.Exit(found)
