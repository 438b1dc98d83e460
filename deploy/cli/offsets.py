"""Commands on consumer group offsets: describe, reset."""

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
    no_args_is_help=True,
    help="Show and move the offsets of consumer groups; dry runs without --execute.",
)


@app.command()
@takes(*KAFKA, *JSON)
def describe(
    group: Annotated[
        str | None, typer.Option(metavar="GROUP", help="The learner's by default.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Repeat every two seconds until interrupted.")
    ] = False,
    *,
    options: Options,
) -> None:
    """Print offsets and lag of a group; exit 1 without one."""
    settings = options.store_settings() if group is None else options.told_settings()
    from deploy.admin import kafka_commands

    raise typer.Exit(kafka_commands.describe(settings, options.output(), group, watch=watch))


@app.command()
@takes(*KAFKA, *JSON)
def reset(
    group: Annotated[str, typer.Option(metavar="GROUP")],
    topic: Annotated[
        list[str] | None, typer.Option(metavar="TOPIC[:0,1,2]", help="Scope; repeatable.")
    ] = None,
    all_topics: Annotated[
        bool, typer.Option("--all-topics", help="Scope: all that the group has offsets of.")
    ] = False,
    from_file: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Scope and target: topic,partition,offset.")
    ] = None,
    to_earliest: Annotated[bool, typer.Option("--to-earliest")] = False,
    to_latest: Annotated[bool, typer.Option("--to-latest")] = False,
    to_current: Annotated[bool, typer.Option("--to-current")] = False,
    to_datetime: Datetime = None,
    by_duration: Duration = None,
    shift_by: Annotated[
        int | None, typer.Option(metavar="N", help="Negative numbers go backwards.")
    ] = None,
    to_offset: Annotated[int | None, typer.Option(metavar="N")] = None,
    execute: Execute = False,
    export: Export = False,
    yes: Yes = False,
    *,
    options: Options,
) -> None:
    """Plan to move a group's offsets; with --execute, move them.

    Moving the learner's own offsets does not change its state: records read again count twice.
    """
    settings = options.told_settings()
    from deploy.admin import kafka_commands
    from deploy.admin.offsets.plan import ResetRequest
    from deploy.admin.offsets.scopes import one_scope
    from deploy.admin.offsets.targets import one_target

    scope = one_scope(topic or (), all_topics, from_file)
    targets = {
        "to-earliest": to_earliest,
        "to-latest": to_latest,
        "to-current": to_current,
        "to-datetime": to_datetime,
        "by-duration": by_duration,
        "shift-by": shift_by,
        "to-offset": to_offset,
    }
    target = one_target(targets, none=from_file is not None)
    request = ResetRequest(scope=scope, target=target, execute=execute, export=export, yes=yes)
    raise typer.Exit(kafka_commands.reset(settings, options.output(), group, request))
