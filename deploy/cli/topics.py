"""Command on topics: create."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.cli.options import JSON, KAFKA, Options, takes

app = typer.Typer(no_args_is_help=True, help="Create the topics of the settings.")


@app.callback()
def topics() -> None:
    """Create the topics of the settings."""


@app.command()
@takes(*KAFKA, *JSON)
def create(
    partitions: Annotated[
        int | None,
        typer.Option(min=1, help="Of events and items; by default as those that exist, else 4."),
    ] = None,
    replication: Annotated[
        int, typer.Option(min=-1, help="Replication factor; -1 takes the brokers' default.")
    ] = -1,
    *,
    options: Options,
) -> None:
    """Create the topics that are missing; exit 1 if event topics differ in partitions.

    Items and dead letters are compacted; events are kept for join.attribution_window and a week.
    """
    settings = options.told_settings()
    from consumers.kafka.admin import KafkaAdmin
    from deploy.admin import topics as creating

    with KafkaAdmin(settings.kafka) as admin:
        code = creating.create(
            admin,
            settings.kafka.topics,
            options.output(),
            num_partitions=partitions,
            replication=replication,
            attribution_us=settings.join.attribution_window_us,
        )
    raise typer.Exit(code)
