"""`steelyard <noun> <verb>`: every command reads its options and makes one call; what is heavy is imported inside it.

Exit codes: 0 ok, 1 a check failed, 2 usage, 3 refused as unsafe, 75 fenced or stalled (start it again), 130 interrupted.
Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.errors import SettingsError, UsageError

if TYPE_CHECKING:
    from deploy.settings.tree import Settings
    from learner.artifact import Store

OK, FAILED, USAGE, UNSAFE, TRY_AGAIN, INTERRUPTED = 0, 1, 2, 3, 75, 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A learner of live shop events, and its server.",
)
events_app = typer.Typer(no_args_is_help=True, help="Look at, check and write events.")
config_app = typer.Typer(no_args_is_help=True, help="Look at and check settings.")
app.add_typer(events_app, name="events")
offsets_app = typer.Typer(
    no_args_is_help=True,
    help="Look at and move offsets of consumer groups; dry runs without --execute.",
)
replay_app = typer.Typer(
    invoke_without_command=True,
    help="Go back to a version and read again; a dry run without --execute.",
)
checkpoints_app = typer.Typer(no_args_is_help=True, help="Look at, compare and promote versions.")
app.add_typer(config_app, name="config")
app.add_typer(offsets_app, name="offsets")
app.add_typer(replay_app, name="replay")
app.add_typer(checkpoints_app, name="checkpoints")

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Settings in YAML; `steelyard config init` writes one."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="One setting, such as learner.batch=64; repeatable."
    ),
]
Servers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers", metavar="HOST:PORT", help="Kafka: kafka.bootstrap_servers."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Yes = Annotated[
    bool, typer.Option("--yes", help="Do not ask; needed where there is nobody to ask.")
]
Execute = Annotated[
    bool, typer.Option("--execute/--dry-run", help="Carry the plan out, or only show it.")
]
Export = Annotated[
    bool, typer.Option("--export", help="Print Kafka's CSV: topic,partition,offset.")
]
Datetime = Annotated[
    str | None,
    typer.Option("--to-datetime", metavar="TIME", help="ISO 8601; without an offset it is UTC."),
]
Duration = Annotated[
    str | None, typer.Option("--by-duration", metavar="P1D", help="Back from now.")
]
LinesFile = Annotated[str, typer.Argument(metavar="FILE|-", help="NDJSON; - is standard input.")]
VersionName = Annotated[str, typer.Argument(metavar="VERSION|@ALIAS", show_default=False)]


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
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
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
    from deploy.errors import DeployError, Unsafe
    from learner.errors import (
        Fenced,
        JournalFailed,
        LearnerError,
        LogRewritten,
        RankLost,
        VersionMissing,
    )
    from serving.errors import ServingError
    from weighting.errors import WeightingError

    if isinstance(error, SettingsError | UsageError | OptionRefused | VersionMissing):
        return USAGE
    if isinstance(error, Unsafe | LogRewritten) or (
        isinstance(error, ConsumersError) and error.unsafe
    ):
        return UNSAFE
    if isinstance(
        error, ConsumersError | DeployError | LearnerError | ServingError | WeightingError
    ):
        return (
            TRY_AGAIN
            if error.retriable or isinstance(error, Fenced | JournalFailed | RankLost)
            else FAILED
        )
    return None


@app.command()
def demo(
    seconds: Annotated[
        float | None,
        typer.Option(min=10, help="How long the shop is open: 90, or 330 with a catalogue."),
    ] = None,
    catalog: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Products with graded judgements; else an invented shop."),
    ] = None,
    split: Annotated[
        int, typer.Option(min=0, max=2, help="Which split of the judgements is held out.")
    ] = 0,
    bootstrap_servers: Servers = None,
    tuning: Annotated[
        str | None,
        typer.Option(help="What moves: full, top:N or frozen; top:1, or frozen with a catalogue."),
    ] = None,
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
def learn(
    config: Config = None,
    sets: Sets = None,
    bootstrap_servers: Servers = None,
    accept_config: Annotated[
        bool,
        typer.Option(
            "--accept-config",
            help="Go on under settings other than the newest checkpoint's; each event still counts once.",
        ),
    ] = False,
) -> None:
    """Read events, train, and offer new versions in the store, until a signal."""
    settings = _role(config, sets, bootstrap_servers)
    from deploy.roles.learn import run

    run(settings, accept_config=accept_config)


@app.command()
def serve(config: Config = None, sets: Sets = None) -> None:
    """Answer over HTTP with the newest version of the store, until a signal."""
    settings = _role(config, sets, None)
    from deploy.roles.serve import run

    run(settings)


@app.command()
def up(
    role: Annotated[
        str, typer.Option(metavar="ROLE,...", help="Which roles: learn, serve.")
    ] = "learn,serve",
    config: Config = None,
    sets: Sets = None,
    bootstrap_servers: Servers = None,
) -> None:
    """Run several roles together, until a signal or until one of them ends."""
    roles = _roles(role)
    settings = _role(config, sets, bootstrap_servers)
    from deploy.roles.up import run

    run(settings, roles)


@app.command()
def broker(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")
    ] = 9092,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep topics there; left out, they go at the end."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run one Apache Kafka node from packages, for who has none, until a signal."""
    from deploy.broker.node import Broker
    from deploy.process.lifecycle import until_ended

    with Broker(data, port=port) as node:
        typer.echo(
            json.dumps({"bootstrap_servers": node.bootstrap_servers})
            if as_json
            else node.bootstrap_servers
        )
        until_ended(node)


@app.command()
def doctor(
    config: Config = None,
    sets: Sets = None,
    bootstrap_servers: Servers = None,
    as_json: Json = False,
) -> None:
    """Check Kafka, clock, store, model and machine; exit 1 on any cross."""
    settings = _settings(config, sets, bootstrap_servers)
    from deploy.doctor.report import examine, render

    report = examine(settings)
    typer.echo(
        json.dumps([finding.to_json() for finding in report], indent=2)
        if as_json
        else render(report)
    )
    raise typer.Exit(FAILED if any(finding.failed for finding in report) else OK)


@app.command()
def verify(
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION|@ALIAS", help="Left out, the newest.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Left out, the oldest whose records are retained."),
    ] = None,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", help="Learn again what lies between, and compare the state to the byte."
        ),
    ] = False,
    rate_limit: Annotated[
        str | None,
        typer.Option(metavar="N/s", help="Read at most so many records a second, such as 5000/s."),
    ] = None,
    config: Config = None,
    sets: Sets = None,
    bootstrap_servers: Servers = None,
    as_json: Json = False,
) -> None:
    """Read Kafka again and compare with what the version says it consumed; exit 0 equal, 1 different, 3 cannot be decided."""
    settings = _settings(config, sets, bootstrap_servers)
    from deploy.admin import kafka_commands
    from deploy.admin.rate import Throttle, parse

    throttle = Throttle(parse(rate_limit, "--rate-limit"))
    raise typer.Exit(
        kafka_commands.verify(
            settings, _out(as_json), version, since, deep=deep, pace=throttle.wait
        )
    )


@offsets_app.command("describe")
def describe_offsets(
    group: Annotated[
        str | None, typer.Option(metavar="GROUP", help="Left out, the learner's.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Again every two seconds, until interrupted.")
    ] = False,
    config: Config = None,
    sets: Sets = None,
    bootstrap_servers: Servers = None,
    as_json: Json = False,
) -> None:
    """Print where a group stands; exit 1 if there is none."""
    settings = _settings(config, sets, bootstrap_servers)
    from deploy.admin import kafka_commands

    raise typer.Exit(kafka_commands.describe(settings, _out(as_json), group, watch=watch))


@offsets_app.command("reset")
def reset_offsets(
    group: Annotated[str, typer.Option(metavar="GROUP")],
    topic: Annotated[
        list[str] | None, typer.Option(metavar="TOPIC[:0,1,2]", help="Scope; repeatable.")
    ] = None,
    all_topics: Annotated[
        bool, typer.Option("--all-topics", help="Scope: all that the group has offsets of.")
    ] = False,
    from_file: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Scope and target: topic,partition,offset.")
    ] = None,
    to_earliest: Annotated[bool, typer.Option("--to-earliest")] = False,
    to_latest: Annotated[bool, typer.Option("--to-latest")] = False,
    to_current: Annotated[bool, typer.Option("--to-current")] = False,
    to_datetime: Datetime = None,
    by_duration: Duration = None,
    shift_by: Annotated[
        int | None, typer.Option(metavar="N", help="Below zero is backwards.")
    ] = None,
    to_offset: Annotated[int | None, typer.Option(metavar="N")] = None,
    execute: Execute = False,
    export: Export = False,
    yes: Yes = False,
    config: Config = None,
    sets: Sets = None,
    bootstrap_servers: Servers = None,
    as_json: Json = False,
) -> None:
    """Plan to move a group's offsets, and with --execute do exactly that. The learner's own keep their state: records then count twice."""
    settings = _settings(config, sets, bootstrap_servers)
    given: dict[str, Any] = {
        "to-earliest": to_earliest,
        "to-latest": to_latest,
        "to-current": to_current,
        "to-datetime": to_datetime,
    }
    given |= {"by-duration": by_duration, "shift-by": shift_by, "to-offset": to_offset}
    from deploy.admin import kafka_commands
    from deploy.admin.offsets.plan import ResetRequest
    from deploy.admin.offsets.scopes import one_scope
    from deploy.admin.offsets.targets import one_target

    scope = one_scope(topic or (), all_topics, from_file)
    target = one_target(given, none=from_file is not None)
    request = ResetRequest(scope=scope, target=target, execute=execute, export=export, yes=yes)
    raise typer.Exit(kafka_commands.reset(settings, _out(as_json), group, request))


@replay_app.callback()
def replay(
    context: typer.Context,
    from_checkpoint: Annotated[str | None, typer.Option(metavar="VERSION|@ALIAS")] = None,
    to_datetime: Datetime = None,
    by_duration: Duration = None,
    into: Annotated[str, typer.Option(help="live, or shadow: a store beside the store.")] = "live",
    shadow_root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where; left out, beside store.root.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="as-it-was (the journal, bit by bit) or anew (other settings, --exclude)."
        ),
    ] = None,
    exclude: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="client_id:X, event_id:Y or topic[p]@start-end, one a line."
        ),
    ] = None,
    execute: Execute = False,
    export: Export = False,
    yes: Yes = False,
    config: Config = None,
    sets: Sets = None,
    bootstrap_servers: Servers = None,
    as_json: Json = False,
) -> None:
    """Plan to restore a version with its offsets and read on from there; with --execute do exactly that. Each record counts once."""
    if context.invoked_subcommand is not None:
        return
    settings = _settings(config, sets, bootstrap_servers)
    from deploy.admin import kafka_commands
    from deploy.admin.offsets.targets import one_target
    from deploy.admin.replay.request import ReplayRequest

    times = {"to-datetime": to_datetime, "by-duration": by_duration}
    request = ReplayRequest(
        version=from_checkpoint,
        target=one_target(times, none=not any(times.values())),
        exclude=exclude,
        mode=mode,
        into=into,
        shadow_root=shadow_root,
        execute=execute,
        export=export,
        yes=yes,
    )
    raise typer.Exit(
        kafka_commands.replay(
            settings, _out(as_json), request, learn=_again("learn", config, sets, bootstrap_servers)
        )
    )


@replay_app.command()
def cancel(
    yes: Yes = False,
    config: Config = None,
    sets: Sets = None,
    bootstrap_servers: Servers = None,
    as_json: Json = False,
) -> None:
    """Withdraw a replay that was not taken yet, or go back to the last checkpoint before the one that goes on."""
    settings = _settings(config, sets, bootstrap_servers)
    from deploy.admin import kafka_commands

    raise typer.Exit(kafka_commands.cancel(settings, _out(as_json), yes=yes))


@checkpoints_app.command("list")
def list_checkpoints(config: Config = None, sets: Sets = None, as_json: Json = False) -> None:
    """Print every version, newest last."""
    from deploy.admin import checkpoints

    raise typer.Exit(checkpoints.list_(_store(config, sets), _out(as_json)))


@checkpoints_app.command("show")
def show_checkpoint(
    version: VersionName,
    path: Annotated[bool, typer.Option("--path", help="Print its folder only.")] = False,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Print one version as its manifest tells it."""
    from deploy.admin import checkpoints

    raise typer.Exit(checkpoints.show(_store(config, sets), version, _out(as_json), path=path))


@checkpoints_app.command()
def diff(
    first: VersionName,
    second: VersionName,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Print what lies between two versions."""
    from deploy.admin import checkpoints

    raise typer.Exit(checkpoints.diff(_store(config, sets), first, second, _out(as_json)))


@checkpoints_app.command()
def promote(
    version: VersionName,
    alias: Annotated[str, typer.Option(help="champion or challenger.")] = "champion",
    yes: Yes = False,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Let an alias name a version. Serving stays on a champion so chosen; promoting @announced lets it follow the learner again."""
    from deploy.admin import checkpoints

    raise typer.Exit(
        checkpoints.promote(_store(config, sets), version, _out(as_json), alias=alias, yes=yes)
    )


@checkpoints_app.command()
def rollback(
    to: Annotated[str, typer.Option(metavar="VERSION|@previous")] = "@previous",
    yes: Yes = False,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Let serving go back to an older version, and stay there."""
    from deploy.admin import checkpoints

    raise typer.Exit(checkpoints.rollback(_store(config, sets), _out(as_json), to=to, yes=yes))


@checkpoints_app.command()
def prune(
    keep: Annotated[int | None, typer.Option(min=5, help="So many of the newest stay.")] = None,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Those that the newest state did not go through.")
    ] = False,
    yes: Yes = False,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Retire old versions; those that an alias or an order names stay. Their files are gone an hour later."""
    from deploy.admin import checkpoints

    raise typer.Exit(
        checkpoints.prune(
            _store(config, sets), _out(as_json), keep=keep, superseded=superseded, yes=yes
        )
    )


@checkpoints_app.command("verify")
def verify_checkpoints(
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION|@ALIAS", help="Left out, all.")
    ] = None,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Read the files of a version and compare their digests; exit 1 if one differs. Kafka is not asked."""
    from deploy.admin import checkpoints

    raise typer.Exit(checkpoints.verify(_store(config, sets), version, _out(as_json)))


@events_app.command()
def validate(file: LinesFile, as_json: Json = False) -> None:
    """Check every line, or the one object of the file, as an event; exit 1 if one is not."""
    from deploy.admin import event_file, events

    with event_file.open_lines(file) as lines:
        raise typer.Exit(events.validate(lines, file, _out(as_json)))


@events_app.command()
def send(
    file: LinesFile,
    topic: Annotated[str, typer.Option(metavar="TOPIC")],
    rate: Annotated[
        str | None, typer.Option(metavar="N/s", help="At most so many a second, such as 100/s.")
    ] = None,
    config: Config = None,
    sets: Sets = None,
    bootstrap_servers: Servers = None,
    as_json: Json = False,
) -> None:
    """Write every line that is an event to a topic, keyed by its client_id (an item by its object_id); exit 1 if one is not."""
    settings = _settings(config, sets, bootstrap_servers)
    from deploy.admin import event_file, events
    from deploy.admin.rate import Throttle, parse

    throttle = Throttle(parse(rate, "--rate"))
    with event_file.open_lines(file) as lines, events.writing(settings.kafka, topic) as sink:
        raise typer.Exit(
            events.send(
                sink, lines, file, topic, settings.kafka.topics, _out(as_json), pace=throttle.wait
            )
        )


@events_app.command()
def tail(
    topic: Annotated[str, typer.Argument(metavar="TOPIC")],
    partition: Annotated[int | None, typer.Option(min=0, help="Left out, all of them.")] = None,
    start: Annotated[
        int, typer.Option("--from", help="First offset; below zero, counted from the end.")
    ] = -10,
    config: Config = None,
    sets: Sets = None,
    bootstrap_servers: Servers = None,
) -> None:
    """Print records up to the end of the topic, one JSON object a line."""
    settings = _settings(config, sets, bootstrap_servers)
    from deploy.admin import records

    with records.reading(settings.kafka, topic) as source:
        records.tail(source, _out(True), partition=partition, start=start)


@events_app.command()
def deadletters(
    reason: Annotated[
        str | None, typer.Option(help="Only those set aside for this reason.")
    ] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Send the original bytes once more and delete these.")
    ] = False,
    config: Config = None,
    sets: Sets = None,
    bootstrap_servers: Servers = None,
) -> None:
    """Print what could not be read, one JSON object a line; with --replay, send it again."""
    settings = _settings(config, sets, bootstrap_servers)
    from deploy.admin import events, records

    topics = settings.kafka.topics
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(records.reading(settings.kafka, topics.dead_letter))
        sink = (
            stack.enter_context(events.writing(settings.kafka, topics.dead_letter, *topics.kinds()))
            if replay
            else None
        )
        raise typer.Exit(records.dead_letters(source, topics, _out(True), reason=reason, sink=sink))


@events_app.command()
def schema(
    kind: Annotated[str, typer.Argument(metavar="json-schema")] = "json-schema",
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write one file per event there instead of printing."),
    ] = None,
) -> None:
    """Print the JSON Schemas of the events that we read."""
    from deploy.admin import events

    if kind != "json-schema":
        raise UsageError(f"schema: got {kind!r}, expected json-schema")
    events.write_schemas(out) if out else typer.echo(json.dumps(events.schemas(), indent=2))


@config_app.command()
def init(file: Annotated[Path, typer.Argument(metavar="FILE")] = Path("steelyard.yaml")) -> None:
    """Write a file with every key at its default, commented out; an existing file is left alone (exit 3)."""
    from deploy.settings.tree import starter

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
    origin: Annotated[
        bool, typer.Option("--origin", help="Say where each value came from.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print every key with its value."""
    from deploy.settings.tree import describe

    entries = describe(_settings(config, sets, None))
    if as_json:
        shown = {
            e.key: {"value": e.value, "origin": e.origin} if origin else e.value for e in entries
        }
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
    from deploy.settings.tree import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def _settings(
    config: Path | None, sets: list[str] | None, bootstrap_servers: str | None
) -> Settings:
    from deploy.settings.tree import load

    overrides = {"kafka.bootstrap_servers": bootstrap_servers} if bootstrap_servers else {}
    for given in sets or ():
        key, equals, text = given.partition("=")
        if not equals:
            raise UsageError(f"--set: got {given!r}, expected KEY=VALUE")
        overrides[key] = text
    return load(config, os.environ, overrides)


def _store(config: Path | None, sets: list[str] | None) -> Store:
    settings = _settings(config, sets, None)
    from learner.artifact import Store

    return Store(settings.store.root)


def _again(
    command: str, config: Path | None, sets: list[str] | None, bootstrap_servers: str | None
) -> str:
    """Return how another command is typed with the same settings."""
    words = ["steelyard", command]
    words += ["--config", str(config)] if config else []
    words += [word for given in sets or () for word in ("--set", given)]
    words += ["--bootstrap-servers", bootstrap_servers] if bootstrap_servers else []
    return shlex.join(words)


def _role(config: Path | None, sets: list[str] | None, bootstrap_servers: str | None) -> Settings:
    """Return the settings of a process that stays, its logs set up."""
    settings = _settings(config, sets, bootstrap_servers)
    from deploy.process.observability import configure_logging

    configure_logging(settings.observability)
    return settings


def _roles(text: str) -> tuple[str, ...]:
    roles = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [role for role in roles if role not in ("learn", "serve")]
    if unknown:
        raise UsageError(f"--role: got {unknown[0]!r}, expected learn, serve or both with a comma")
    return roles


def _out(as_json: bool) -> Any:
    from deploy.process.terminal import Output

    ask = (
        (lambda question: typer.confirm(question, err=True))
        if sys.stdin.isatty() and sys.stderr.isatty()
        else None
    )
    return Output(
        write=lambda line: typer.echo(line),
        report=lambda line: typer.echo(line, err=True),
        as_json=as_json,
        ask=ask,
    )
