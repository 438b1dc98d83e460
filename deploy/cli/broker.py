"""Command `broker`: a local Kafka."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import JSON, Options, takes


@takes(*JSON)
def broker(
    options: Options,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
    ] = 9092,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder that keeps the topics; temporary by default."),
    ] = None,
) -> None:
    """Run a local single-node Kafka broker from packages until interrupted."""
    from deploy.broker.node import Broker
    from deploy.process.lifecycle import until_ended

    with Broker(data, port=port) as node:
        servers = node.bootstrap_servers
        typer.echo(json.dumps({"bootstrap_servers": servers}) if options.as_json else servers)
        until_ended(node)
