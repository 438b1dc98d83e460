"""Commands on checkpoints: list, show, diff, promote, rollback, prune, verify, export, compress."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import JSON, SETTINGS, Options, Yes, takes
from deploy.cli.table_options import Delimiter, ExampleColumns, SkipInvalid, Timezone

app = typer.Typer(no_args_is_help=True, help="Show, compare and promote versions.")

VersionName = Annotated[str, typer.Argument(metavar="VERSION|@ALIAS", show_default=False)]


@app.command("list")
@takes(*SETTINGS, *JSON)
def list_(options: Options) -> None:
    """Print every version, newest last."""
    from deploy.admin import checkpoints

    raise typer.Exit(checkpoints.list_(options.store(), options.output()))


@app.command()
@takes(*SETTINGS, *JSON)
def show(
    version: VersionName,
    path: Annotated[bool, typer.Option("--path", help="Print its folder only.")] = False,
    *,
    options: Options,
) -> None:
    """Print the manifest of a version."""
    from deploy.admin import checkpoints

    code = checkpoints.show(options.store(), version, options.output(), path=path)
    raise typer.Exit(code)


@app.command()
@takes(*SETTINGS, *JSON)
def diff(first: VersionName, second: VersionName, options: Options) -> None:
    """Print the differences between two versions."""
    from deploy.admin import checkpoints

    raise typer.Exit(checkpoints.diff(options.store(), first, second, options.output()))


@app.command()
@takes(*SETTINGS, *JSON)
def promote(
    version: VersionName,
    alias: Annotated[str, typer.Option(help="champion or challenger.")] = "champion",
    yes: Yes = False,
    *,
    options: Options,
) -> None:
    """Point an alias to a version.

    Serving stays on a champion chosen this way; promote @announced to follow the learner again.
    """
    from deploy.admin import checkpoints

    store, output = options.store(), options.output()
    raise typer.Exit(checkpoints.promote(store, version, output, alias=alias, yes=yes))


@app.command()
@takes(*SETTINGS, *JSON)
def rollback(
    to: Annotated[str, typer.Option(metavar="VERSION|@previous")] = "@previous",
    yes: Yes = False,
    *,
    options: Options,
) -> None:
    """Make serving go back to an older version, and stay there."""
    from deploy.admin import checkpoints

    raise typer.Exit(checkpoints.rollback(options.store(), options.output(), to=to, yes=yes))


@app.command()
@takes(*SETTINGS, *JSON)
def prune(
    keep: Annotated[int | None, typer.Option(min=5, help="Number of newest to keep.")] = None,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Retire versions that the newest does not extend.")
    ] = False,
    yes: Yes = False,
    *,
    options: Options,
) -> None:
    """Retire old versions; a running learner deletes their files a minute later.

    Versions that an alias or an operator command names are kept.
    """
    from deploy.admin import checkpoints

    store, output = options.store(), options.output()
    code = checkpoints.prune(store, output, keep=keep, superseded=superseded, yes=yes)
    raise typer.Exit(code)


@app.command()
@takes(*SETTINGS, *JSON)
def verify(
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION|@ALIAS", help="All by default.")
    ] = None,
    *,
    options: Options,
) -> None:
    """Compare the digests of a version's files, without Kafka.

    Exit 1 if one differs.
    """
    from deploy.admin import checkpoints

    raise typer.Exit(checkpoints.verify(options.store(), version, options.output()))


@app.command()
@takes(*SETTINGS, *JSON)
def export(
    version: VersionName,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)
    ],
    format: Annotated[
        str, typer.Option(help="sentence-transformers, onnx or openvino-int8.")
    ] = "sentence-transformers",
    calibrate_on: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Pairs or shown lists, for openvino-int8."),
    ] = None,
    *,
    options: Options,
) -> None:
    """Write a version's encoder for sentence-transformers, ONNX Runtime or OpenVINO.

    The encoder alone: the whole score is served by Steelyard only.
    """
    from deploy.admin import export

    store, output = options.store(), options.output()
    code = export.export(store, version, folder, output, form=format, calibrate_on=calibrate_on)
    raise typer.Exit(code)


@app.command()
@takes(*SETTINGS, *JSON)
def compress(
    version: VersionName,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)
    ],
    on: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Pairs or shown lists to learn from and to judge on."),
    ],
    layers: Annotated[
        int | None, typer.Option(help="Layers that stay, evenly spaced; all by default.")
    ] = None,
    prune_ffn: Annotated[
        float, typer.Option(help="Share of feed-forward units that go, by importance.")
    ] = 0.0,
    prune_heads: Annotated[
        float, typer.Option(help="Share of attention heads that go, by importance.")
    ] = 0.0,
    magnitude: Annotated[
        float, typer.Option(help="Share of weights that become zero; no faster on a CPU.")
    ] = 0.0,
    epochs: Annotated[
        int, typer.Option(min=0, help="Passes of distillation over the file; 0: prune only.")
    ] = 3,
    lr: Annotated[float, typer.Option(help="Highest learning rate of distillation.")] = 5e-4,
    test: Annotated[float, typer.Option(help="Share of queries that the figures are of.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of parts, order and draws.")] = 0,
    column: ExampleColumns = None,
    delimiter: Delimiter = None,
    timezone: Timezone = None,
    skip_invalid: SkipInvalid = False,
    *,
    options: Options,
) -> None:
    """Make a smaller encoder of a version's, and print what it costs.

    The folder can be learner.model of a fit or of a new learner. docs/compression.md says more.
    """
    settings = options.store_settings()
    from deploy.admin import compress as command
    from deploy.fitting.command import FitRequest

    examples = FitRequest(
        file=on,
        seed=seed,
        columns=tuple(column or ()),
        delimiter=delimiter,
        timezone=timezone,
        skip_invalid=skip_invalid,
    )
    request = command.CompressRequest(
        name=version,
        folder=folder,
        examples=examples,
        test=test,
        layers=layers,
        prune_ffn=prune_ffn,
        prune_heads=prune_heads,
        magnitude=magnitude,
        epochs=epochs,
        lr=lr,
    )
    raise typer.Exit(command.run(settings, request, options.output()))
