"""Command `demo`: the whole system on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import JSON, Options, takes


@takes("bootstrap_servers", *JSON)
def demo(
    seconds: Annotated[
        float | None,
        typer.Option(min=10, help="Duration: 90 by default, 330 with a catalogue."),
    ] = None,
    catalog: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Products with graded judgements; else an invented shop."),
    ] = None,
    split: Annotated[int, typer.Option(min=0, max=2, help="Held-out split of judgements.")] = 0,
    *,
    options: Options,
    tuning: Annotated[
        str | None,
        typer.Option(help="Trained layers: full, top:N or frozen; top:1, or frozen, by default."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of shop and learner.")] = 0,
) -> None:
    """Run Kafka, a simulated shop, learner and server, and report measurements."""
    from deploy.demo.run import DemoConfig
    from deploy.demo.run import main as run

    run(
        DemoConfig(
            seconds=seconds or (330 if catalog else 90),
            catalog=catalog,
            split=split,
            bootstrap_servers=options.bootstrap_servers,
            tuning=tuning or ("frozen" if catalog else "top:1"),
            seed=seed,
            json=options.as_json,
        )
    )
