"""Commands on replays: plan or execute one, cancel it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import (
    JSON,
    KAFKA,
    Datetime,
    Duration,
    Execute,
    Export,
    Options,
    Yes,
    takes,
)

app = typer.Typer(
    invoke_without_command=True,
    help="Go back to a version and read on from there; a dry run without --execute.",
)


@app.callback()
@takes(*KAFKA, *JSON)
def replay(
    context: typer.Context,
    from_checkpoint: Annotated[str | None, typer.Option(metavar="VERSION|@ALIAS")] = None,
    to_datetime: Datetime = None,
    by_duration: Duration = None,
    into: Annotated[
        str, typer.Option(help="live, or shadow: a second store beside the first.")
    ] = "live",
    shadow_root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder; beside store.root by default.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="as-it-was (the journal, bit by bit) or anew (other settings, --exclude)."
        ),
    ] = None,
    exclude: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="client_id:X, event_id:Y or topic[p]@start-end, one a line."
        ),
    ] = None,
    execute: Execute = False,
    export: Export = False,
    yes: Yes = False,
    *,
    options: Options,
) -> None:
    """Plan to restore a version and read on from its offsets.

    With --execute, do it. Each record counts once.
    """
    if context.invoked_subcommand is not None:
        return
    from deploy.admin import kafka_commands
    from deploy.admin.offsets.targets import one_target
    from deploy.admin.replay.request import ReplayRequest

    times = {"to-datetime": to_datetime, "by-duration": by_duration}
    request = ReplayRequest(
        version=from_checkpoint,
        target=one_target(times, none=not any(times.values())),
        exclude=exclude,
        mode=mode,
        into=into,
        shadow_root=shadow_root,
        execute=execute,
        export=export,
        yes=yes,
    )
    settings = options.store_settings()
    learn = options.command_line("learn")
    raise typer.Exit(kafka_commands.replay(settings, options.output(), request, learn=learn))


@app.command()
@takes(*KAFKA, *JSON)
def cancel(yes: Yes = False, *, options: Options) -> None:
    """Withdraw a waiting replay, or undo the current one.

    To undo is to go back to the last checkpoint before it.
    """
    settings = options.store_settings()
    from deploy.admin import kafka_commands

    raise typer.Exit(kafka_commands.cancel(settings, options.output(), yes=yes))
