"""Commands on events: validate, send, import, tail, dead letters, schema."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import JSON, KAFKA, Options, takes
from deploy.cli.table_options import SkipInvalid
from deploy.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Read, check and write events.")

LinesFile = Annotated[str, typer.Argument(metavar="FILE|-", help="NDJSON; - is standard input.")]


@app.command()
@takes(*JSON)
def validate(file: LinesFile, options: Options) -> None:
    """Check every line of a file as an event.

    A file may also be one JSON object. Exit 1 if an event is invalid.
    """
    from deploy.admin import event_file, events

    with event_file.open_lines(file) as lines:
        raise typer.Exit(events.validate(lines, file, options.output()))


@app.command()
@takes(*KAFKA, *JSON)
def send(
    file: LinesFile,
    topic: Annotated[str, typer.Option(metavar="TOPIC")],
    rate: Annotated[
        str | None, typer.Option(metavar="N/s", help="Events per second at most, such as 100/s.")
    ] = None,
    *,
    options: Options,
) -> None:
    """Write every valid line of a file to a topic.

    Exit 1 if a line is not an event. Records are keyed by client_id, items by object_id.
    """
    settings = options.told_settings()
    from deploy.admin import event_file, events
    from deploy.admin.rate import Throttle, parse
    from deploy.admin.topic_names import explained

    kafka, output = settings.kafka, options.output()
    pace = Throttle(parse(rate, "--rate")).wait
    with (
        event_file.open_lines(file) as lines,
        explained(topic, kafka.topics),
        events.writing(kafka, topic) as sink,
    ):
        raise typer.Exit(events.send(sink, lines, file, topic, kafka.topics, output, pace=pace))


@app.command(name="import")
@takes(*KAFKA, *JSON)
def import_(
    history: Annotated[
        Path, typer.Argument(metavar="HISTORY", help="CSV, Parquet or JSONL: a shop's past.")
    ],
    mapping: Annotated[
        Path, typer.Option(metavar="FILE", help="YAML: which column is what, and its times.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print counts, first events and rows left out.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write one NDJSON file for each kind.")
    ] = None,
    send: Annotated[
        bool, typer.Option("--send", help="Send to the topics, which must be empty.")
    ] = False,
    skip_invalid: SkipInvalid = False,
    *,
    options: Options,
) -> None:
    """Turn the rows of a history into events, in order of time.

    Ids of events follow from the rows, so the same history gives the same events.
    """
    from deploy.admin import events as writing
    from deploy.admin.history import command

    command.chosen(out, to_kafka=send, dry_run=dry_run)
    found, left_out = command.events_of(history, mapping, skip_invalid=skip_invalid or dry_run)
    output = options.output()
    if dry_run:
        raise typer.Exit(command.show(found, left_out, output))
    if out is not None:
        raise typer.Exit(command.write(found, left_out, out, output))
    kafka = options.told_settings().kafka
    from consumers.kafka.admin import KafkaAdmin

    topics = kafka.topics
    with KafkaAdmin(kafka) as admin, writing.writing(kafka, *topics.kinds()) as sink:
        ends = admin.end_offsets(topics.kinds())
        raise typer.Exit(command.send(found, left_out, sink, topics, ends, output))


@app.command()
@takes(*KAFKA)
def tail(
    topic: Annotated[str, typer.Argument(metavar="TOPIC")],
    partition: Annotated[int | None, typer.Option(min=0, help="All by default.")] = None,
    start: Annotated[
        int, typer.Option("--from", help="First offset; below zero, counted from the end.")
    ] = -10,
    *,
    options: Options,
) -> None:
    """Print the last records of a topic, one JSON object a line."""
    settings = options.told_settings()
    from deploy.admin import records
    from deploy.admin.topic_names import explained

    kafka, output = settings.kafka, options.output(as_json=True)
    with explained(topic, kafka.topics), records.reading(kafka, topic) as source:
        records.tail(source, output, partition=partition, start=start)


@app.command(name="no-hits")
@takes(*KAFKA, *JSON)
def no_hits(
    records: Annotated[
        int, typer.Option(min=1, help="Newest records read of each partition.")
    ] = 10_000,
    top: Annotated[int, typer.Option(min=1, help="Most queries printed.")] = 20,
    min_clients: Annotated[
        int, typer.Option(min=1, help="Leave out queries of fewer clients.")
    ] = 2,
    *,
    options: Options,
) -> None:
    """Print the searches that found nothing, those of the most clients first."""
    kafka = options.settings().kafka
    from deploy.admin import records as reading

    topic = kafka.topics.exposures
    if topic is None:
        raise UsageError("kafka.topics.exposures: got none, expected the topic of the searches")
    output = options.output()
    with reading.reading(kafka, topic) as source:
        reading.without_hits(source, output, num_records=records, top=top, min_clients=min_clients)


@app.command()
@takes(*KAFKA)
def deadletters(
    reason: Annotated[str | None, typer.Option(help="Print only those with this reason.")] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Send the original bytes again and delete these.")
    ] = False,
    *,
    options: Options,
) -> None:
    """Print dead letters, one JSON object a line; with --replay, send them again."""
    kafka = options.told_settings().kafka
    from deploy.admin import events, records

    topics, output, sink = kafka.topics, options.output(as_json=True), None
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(records.reading(kafka, topics.dead_letter))
        if replay:
            writing = events.writing(kafka, topics.dead_letter, *topics.kinds())
            sink = stack.enter_context(writing)
        raise typer.Exit(records.dead_letters(source, topics, output, reason=reason, sink=sink))


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(metavar="json-schema")] = "json-schema",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a file per event; do not print.")
    ] = None,
) -> None:
    """Print the JSON Schemas of the events."""
    from deploy.admin import events

    if kind != "json-schema":
        raise UsageError(f"schema: got {kind!r}, expected json-schema")
    if out:
        events.write_schemas(out)
    else:
        typer.echo(json.dumps(events.schemas(), indent=2))
