"""Commands that run until a signal: learn, serve, up."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.cli.options import KAFKA, SETTINGS, Options, takes
from deploy.errors import UsageError

_ROLES = ("learn", "serve")


@takes(*KAFKA)
def learn(
    options: Options,
    accept_config: Annotated[
        bool,
        typer.Option(
            "--accept-config",
            help="Continue under settings that differ from the newest checkpoint's.",
        ),
    ] = False,
) -> None:
    """Read events, train, and publish new versions to the store, until a signal."""
    settings = options.process_settings()
    from deploy.roles.learn import run

    run(settings, accept_config=accept_config)


@takes(*SETTINGS)
def serve(options: Options) -> None:
    """Serve the newest version of the store over HTTP, until a signal."""
    settings = options.process_settings()
    from deploy.roles.serve import run

    run(settings)


@takes(*KAFKA)
def up(
    role: Annotated[
        str, typer.Option(metavar="ROLE,...", help="Roles to run: learn, serve.")
    ] = "learn,serve",
    *,
    options: Options,
) -> None:
    """Run several roles together, until a signal or until one of them ends."""
    roles = _roles(role)
    settings = options.process_settings()
    from deploy.roles.up import run

    run(settings, roles)


def _roles(text: str) -> tuple[str, ...]:
    roles = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for role in roles:
        if role not in _ROLES:
            expected = "learn, serve or both with a comma"
            raise UsageError(f"--role: got {role!r}, expected {expected}")
    return roles
