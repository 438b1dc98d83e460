"""Options of the commands that read a file of rows, declared once."""

from __future__ import annotations

from typing import Annotated

import typer

ExampleColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="NAME=COLUMN",
        help="Take a column for query, text, ...; repeatable.",
    ),
]
Delimiter = Annotated[
    str | None, typer.Option(metavar="CHAR", help="Of CSV; by default found in the header.")
]
Timezone = Annotated[
    str | None, typer.Option(metavar="NAME", help="Zone of times without an offset.")
]
TimeFormat = Annotated[
    str | None,
    typer.Option(metavar="FORMAT", help="Of times that are texts: %d.%m.%Y %H:%M:%S."),
]
SkipInvalid = Annotated[
    bool, typer.Option("--skip-invalid", help="Leave out and count rows with wrong values.")
]
DevShare = Annotated[float, typer.Option(help="Share that decides when to stop; 0: none.")]
TestShare = Annotated[float, typer.Option(help="Share that is judged at the end; 0: none.")]
