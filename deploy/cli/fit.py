"""Command `fit`: learn from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import JSON, SETTINGS, Options, takes
from deploy.cli.table_options import (
    Delimiter,
    DevShare,
    ExampleColumns,
    SkipInvalid,
    TestShare,
    TimeFormat,
    Timezone,
)


@takes(*SETTINGS, *JSON)
def fit(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Parquet, CSV or JSONL: pairs or shown lists.")
    ],
    epochs: Annotated[
        int, typer.Option(min=1, help="Passes over the file; after the first the encoder alone.")
    ] = 3,
    split: Annotated[
        str,
        typer.Option(metavar="query|time", help="Hold back whole queries, or the newest lists."),
    ] = "query",
    dev: DevShare = 0.1,
    test: TestShare = 0.1,
    patience: Annotated[
        int, typer.Option(min=1, help="Epochs without a better NDCG@10 on dev before it ends.")
    ] = 1,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of parts, order and draws; the model's is a setting.")
    ] = 0,
    column: ExampleColumns = None,
    attributes: Annotated[
        str | None, typer.Option(metavar="COLUMN,...", help="Columns that are attributes.")
    ] = None,
    delimiter: Delimiter = None,
    timezone: Timezone = None,
    time_format: TimeFormat = None,
    first_position: Annotated[int, typer.Option(help="Number of the first place in a list.")] = 1,
    before: Annotated[
        str | None, typer.Option(metavar="TIME", help="Leave out rows of this time or later.")
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="End of a file without times; its own date by default."),
    ] = None,
    skip_invalid: SkipInvalid = False,
    *,
    options: Options,
) -> None:
    """Learn from a file; the result is the first version of a new store.

    Pairs have the columns query, text and label; shown lists list_id, query, text and clicked.
    `steelyard learn` goes on from the version. docs/fit.md describes files and figures.
    """
    settings = options.told_settings()
    from deploy.fitting import command

    request = command.FitRequest(
        file=file,
        epochs=epochs,
        split=split,
        dev=dev,
        test=test,
        patience=patience,
        seed=seed,
        columns=tuple(column or ()),
        attributes=tuple(name.strip() for name in (attributes or "").split(",") if name.strip()),
        delimiter=delimiter,
        timezone=timezone,
        time_format=time_format,
        first_position=first_position,
        before=before,
        as_of=as_of,
        skip_invalid=skip_invalid,
    )
    raise typer.Exit(command.run(settings, request, options.output()))
