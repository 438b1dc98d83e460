"""`steelyard <noun> <verb>`: every command reads its options and makes one call; what is heavy is imported inside it.

Exit codes: 0 ok, 1 a check failed, 2 usage, 3 refused as unsafe, 75 fenced or stalled (start it again), 130 interrupted.
Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.errors import SettingsError, UsageError

if TYPE_CHECKING:
    from deploy.settings import Settings

OK, FAILED, USAGE, UNSAFE, TRY_AGAIN, INTERRUPTED = 0, 1, 2, 3, 75, 130

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="A learner of live shop events, and its server."
)
events_app = typer.Typer(no_args_is_help=True, help="Look at, check and write events.")
config_app = typer.Typer(no_args_is_help=True, help="Look at and check settings.")
app.add_typer(events_app, name="events")
app.add_typer(config_app, name="config")

Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings in YAML; `steelyard config init` writes one.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting, such as learner.batch=64; repeatable.")]
Servers = Annotated[str | None, typer.Option("--bootstrap-servers", metavar="HOST:PORT", help="Kafka: kafka.bootstrap_servers.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"steelyard {version('steelyard')}")
        except PackageNotFoundError:
            typer.echo("steelyard 0: a source tree that is not installed")
        raise typer.Exit(OK)


@app.callback()
def steelyard(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Take what stands before the command."""


def main() -> None:
    """Run the command line; an error of ours is one clear text and an exit code, anything else a traceback."""
    try:
        app(prog_name="steelyard")
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        typer.echo(f"steelyard: {error}", err=True)
        sys.exit(code)


def exit_code(error: Exception) -> int | None:
    """Return the exit code of an error of ours, None for any other."""
    from consumers.errors import ConsumersError, OptionRefused
    from deploy.errors import DeployError
    from learner.errors import Fenced, LearnerError
    from serving.errors import ServingError
    from weighting.errors import WeightingError

    if isinstance(error, SettingsError | UsageError | OptionRefused):
        return USAGE
    if isinstance(error, ConsumersError | DeployError | LearnerError | ServingError | WeightingError):
        return TRY_AGAIN if error.retriable or isinstance(error, Fenced) else FAILED
    return None


@app.command()
def demo(
    seconds: Annotated[float | None, typer.Option(min=10, help="How long the shop is open: 90, or 330 with a catalogue.")] = None,
    catalog: Annotated[Path | None, typer.Option(metavar="DIR", help="Products with graded judgements; else an invented shop.")] = None,
    split: Annotated[int, typer.Option(min=0, max=2, help="Which split of the judgements is held out.")] = 0,
    bootstrap_servers: Servers = None,
    tuning: Annotated[str | None, typer.Option(help="What moves: full, top:N or frozen; top:1, or frozen with a catalogue.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the shop and the learner.")] = 0,
    as_json: Json = False,
) -> None:
    """Run all of it for a while on one machine: Kafka, a shop, the learner, the server; then tell what was measured."""
    from deploy.demo.run import DemoConfig
    from deploy.demo.run import main as run

    run(
        DemoConfig(
            seconds=seconds or (330 if catalog else 90),
            catalog=catalog,
            split=split,
            bootstrap_servers=bootstrap_servers,
            tuning=tuning or ("frozen" if catalog else "top:1"),
            seed=seed,
            json=as_json,
        )
    )


@app.command()
def learn(config: Config = None, sets: Sets = None, bootstrap_servers: Servers = None) -> None:
    """Read events, train, and offer new versions in the store, until a signal."""
    settings = _role(config, sets, bootstrap_servers)
    from deploy.learn import run

    run(settings)


@app.command()
def serve(config: Config = None, sets: Sets = None) -> None:
    """Answer over HTTP with the newest version of the store, until a signal."""
    settings = _role(config, sets, None)
    from deploy.serve import run

    run(settings)


@app.command()
def up(
    role: Annotated[str, typer.Option(metavar="ROLE,...", help="Which roles: learn, serve.")] = "learn,serve",
    config: Config = None,
    sets: Sets = None,
    bootstrap_servers: Servers = None,
) -> None:
    """Run several roles together, until a signal or until one of them ends."""
    roles = _roles(role)
    settings = _role(config, sets, bootstrap_servers)
    from deploy.up import run

    run(settings, roles)


@app.command()
def broker(
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")] = 9092,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep topics there; left out, they go at the end.")] = None,
    as_json: Json = False,
) -> None:
    """Run one Apache Kafka node from packages, for who has none, until a signal."""
    from deploy.broker import Broker
    from deploy.lifecycle import until_ended

    with Broker(data, port=port) as node:
        typer.echo(json.dumps({"bootstrap_servers": node.bootstrap_servers}) if as_json else node.bootstrap_servers)
        until_ended(node)


@app.command()
def doctor(config: Config = None, sets: Sets = None, bootstrap_servers: Servers = None, as_json: Json = False) -> None:
    """Check Kafka, clock, store, model and machine; exit 1 on any cross."""
    settings = _settings(config, sets, bootstrap_servers)
    from deploy.doctor import examine, render

    report = examine(settings)
    typer.echo(json.dumps([finding.to_json() for finding in report], indent=2) if as_json else render(report))
    raise typer.Exit(FAILED if any(finding.failed for finding in report) else OK)


@events_app.command()
def validate(file: Annotated[str, typer.Argument(metavar="FILE|-", help="NDJSON; - is standard input.")], as_json: Json = False) -> None:
    """Check every line, or the one object of the file, as an event; exit 1 if one is not."""
    from deploy import events

    with events.open_lines(file) as lines:
        raise typer.Exit(events.validate(lines, file, _out(as_json)))


@events_app.command()
def send(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="NDJSON; - is standard input.")],
    topic: Annotated[str, typer.Option(metavar="TOPIC")],
    rate: Annotated[str | None, typer.Option(metavar="N/s", help="At most so many a second, such as 100/s.")] = None,
    config: Config = None,
    sets: Sets = None,
    bootstrap_servers: Servers = None,
    as_json: Json = False,
) -> None:
    """Write every line that is an event to a topic, keyed by its client_id (an item by its object_id); exit 1 if one is not."""
    settings = _settings(config, sets, bootstrap_servers)
    from deploy import events

    a_second = events.parse_rate(rate)
    with events.open_lines(file) as lines, events.writing(settings.kafka, topic) as sink:
        raise typer.Exit(events.send(sink, lines, file, topic, settings.kafka.topics, _out(as_json), rate=a_second))


@events_app.command()
def tail(
    topic: Annotated[str, typer.Argument(metavar="TOPIC")],
    partition: Annotated[int | None, typer.Option(min=0, help="Left out, all of them.")] = None,
    start: Annotated[int, typer.Option("--from", help="First offset; below zero, counted from the end.")] = -10,
    config: Config = None,
    sets: Sets = None,
    bootstrap_servers: Servers = None,
) -> None:
    """Print records up to the end of the topic, one JSON object a line."""
    settings = _settings(config, sets, bootstrap_servers)
    from deploy import events

    with events.reading(settings.kafka, topic) as source:
        events.tail(source, _out(True), partition=partition, start=start)


@events_app.command()
def deadletters(
    reason: Annotated[str | None, typer.Option(help="Only those set aside for this reason.")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Send the original bytes once more and delete these.")] = False,
    config: Config = None,
    sets: Sets = None,
    bootstrap_servers: Servers = None,
) -> None:
    """Print what could not be read, one JSON object a line; with --replay, send it again."""
    settings = _settings(config, sets, bootstrap_servers)
    from deploy import events

    topics = settings.kafka.topics
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(events.reading(settings.kafka, topics.dead_letter))
        sink = stack.enter_context(events.writing(settings.kafka, topics.dead_letter, *topics.kinds())) if replay else None
        raise typer.Exit(events.dead_letters(source, topics, _out(True), reason=reason, sink=sink))


@events_app.command()
def schema(
    kind: Annotated[str, typer.Argument(metavar="json-schema")] = "json-schema",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write one file per event there instead of printing.")] = None,
) -> None:
    """Print the JSON Schemas of the events that we read."""
    from deploy import events

    if kind != "json-schema":
        raise UsageError(f"schema: got {kind!r}, expected json-schema")
    events.write_schemas(out) if out else typer.echo(json.dumps(events.schemas(), indent=2))


@config_app.command()
def init(file: Annotated[Path, typer.Argument(metavar="FILE")] = Path("steelyard.yaml")) -> None:
    """Write a file with every key at its default, commented out; an existing file is left alone (exit 3)."""
    from deploy.settings import starter

    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(starter())
    except FileExistsError:
        typer.echo(f"steelyard: {file} exists; nothing written", err=True)
        raise typer.Exit(UNSAFE) from None
    typer.echo(f"{file} written", err=True)


@config_app.command()
def show(
    config: Config = None,
    sets: Sets = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value came from.")] = False,
    as_json: Json = False,
) -> None:
    """Print every key with its value."""
    from deploy.settings import describe

    entries = describe(_settings(config, sets, None))
    if as_json:
        shown = {e.key: {"value": e.value, "origin": e.origin} if origin else e.value for e in entries}
        typer.echo(json.dumps(shown, indent=2))
        return
    for entry in entries:
        line = f"{entry.key}: {entry.value if isinstance(entry.value, str) else json.dumps(entry.value)}"
        typer.echo(f"{line:<60}  # {entry.origin}" if origin else line)


@config_app.command()
def check(config: Config = None, sets: Sets = None, as_json: Json = False) -> None:
    """Find everything that is wrong with the settings; exit 1 if something is."""
    try:
        _settings(config, sets, None)
        problems: tuple[str, ...] = ()
    except SettingsError as error:
        problems = error.problems
    if as_json:
        typer.echo(json.dumps({"problems": problems}))
    else:
        for problem in problems:
            typer.echo(problem)
    raise typer.Exit(FAILED if problems else OK)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of a settings file, for editors."""
    from deploy.settings import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def _settings(config: Path | None, sets: list[str] | None, bootstrap_servers: str | None) -> Settings:
    from deploy.settings import load

    overrides = {"kafka.bootstrap_servers": bootstrap_servers} if bootstrap_servers else {}
    for given in sets or ():
        key, equals, text = given.partition("=")
        if not equals:
            raise UsageError(f"--set: got {given!r}, expected KEY=VALUE")
        overrides[key] = text
    return load(config, os.environ, overrides)


def _role(config: Path | None, sets: list[str] | None, bootstrap_servers: str | None) -> Settings:
    """Return the settings of a process that stays, its logs set up."""
    settings = _settings(config, sets, bootstrap_servers)
    from deploy.observability import configure_logging

    configure_logging(settings.observability)
    return settings


def _roles(text: str) -> tuple[str, ...]:
    roles = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [role for role in roles if role not in ("learn", "serve")]
    if unknown:
        raise UsageError(f"--role: got {unknown[0]!r}, expected learn, serve or both with a comma")
    return roles


def _out(as_json: bool) -> Any:
    from deploy.events import Output

    return Output(write=lambda line: typer.echo(line), tell=lambda line: typer.echo(line, err=True), as_json=as_json)
