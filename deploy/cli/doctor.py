"""Command `doctor`: checks of the environment."""

from __future__ import annotations

import json

import typer

from deploy.cli.exit_codes import FAILED, OK
from deploy.cli.options import JSON, KAFKA, Options, takes


@takes(*KAFKA, *JSON)
def doctor(options: Options) -> None:
    """Check Kafka, clock, store, model and machine; exit 1 if a check fails."""
    settings = options.told_settings()
    from deploy.doctor.report import examine, render

    results = examine(settings)
    if options.as_json:
        typer.echo(json.dumps([result.to_json() for result in results], indent=2))
    else:
        typer.echo(render(results))
    raise typer.Exit(FAILED if any(result.failed for result in results) else OK)
