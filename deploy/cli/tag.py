"""Command `tag`: learn tags of words from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import JSON, SETTINGS, Options, takes
from deploy.cli.table_options import DevShare, SkipInvalid, TestShare, TimeFormat, Timezone


@takes(*SETTINGS, *JSON)
def tag(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Parquet or JSONL: lists tokens and tags.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New or empty folder.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the file, at most.")] = 10,
    split: Annotated[
        str,
        typer.Option(metavar="text|time", help="Hold back whole texts, or the newest ones."),
    ] = "text",
    dev: DevShare = 0.1,
    test: TestShare = 0.1,
    patience: Annotated[
        int, typer.Option(min=1, help="Epochs without a better F1 on dev before it ends.")
    ] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of parts, order and dropout.")] = 0,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Texts of a step, which learner.lr is meant for.")
    ] = 32,
    tuning: Annotated[
        str, typer.Option(metavar="full|frozen|top:N", help="What of the encoder moves.")
    ] = "full",
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COLUMN",
            help="Take a column for tokens, tags, weight or time; repeatable.",
        ),
    ] = None,
    timezone: Timezone = None,
    time_format: TimeFormat = None,
    skip_invalid: SkipInvalid = False,
    *,
    options: Options,
) -> None:
    """Learn tags of words; the result is a token-classification folder of Hugging Face.

    Rows have the columns tokens and tags, lists of equal length; weight and time are optional.
    docs/fit.md describes files and figures.
    """
    settings = options.told_settings()
    from deploy.tagging import command

    request = command.TagRequest(
        file=file,
        folder=folder,
        epochs=epochs,
        split=split,
        dev=dev,
        test=test,
        patience=patience,
        seed=seed,
        batch_size=batch_size,
        tuning=tuning,
        columns=tuple(column or ()),
        timezone=timezone,
        time_format=time_format,
        skip_invalid=skip_invalid,
    )
    raise typer.Exit(command.run(settings, request, options.output()))
