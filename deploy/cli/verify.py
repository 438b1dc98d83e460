"""Command `verify`: recount from Kafka what a version consumed."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.cli.options import JSON, KAFKA, Options, takes


@takes(*KAFKA, *JSON)
def verify(
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION|@ALIAS", help="The newest by default.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION", help="Start; by default the oldest whose records are retained."
        ),
    ] = None,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Train again from there, and compare states byte by byte."),
    ] = False,
    rate_limit: Annotated[
        str | None,
        typer.Option(metavar="N/s", help="Records to read per second at most, such as 5000/s."),
    ] = None,
    *,
    options: Options,
) -> None:
    """Read Kafka again and compare with what a version's manifest records as consumed.

    Exit 0 if equal, 1 if different, 3 if it cannot be decided.
    """
    settings = options.store_settings()
    from deploy.admin import kafka_commands
    from deploy.admin.rate import Throttle, parse

    throttle = Throttle(parse(rate_limit, "--rate-limit"))
    code = kafka_commands.verify(
        settings, options.output(), version, since, deep=deep, pace=throttle.wait
    )
    raise typer.Exit(code)
