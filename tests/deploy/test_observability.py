"""Logs as one JSON object or one readable line each; and the metrics port."""

import io
import json
import logging
import socket
from collections.abc import Iterator
from urllib.request import urlopen

import pytest
import structlog
from prometheus_client import Counter

from deploy.errors import PortTaken
from deploy.process.observability import (
    ObservabilityConfig,
    configure_logging,
    new_registry,
    start_metrics,
)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def logged(config: ObservabilityConfig) -> io.StringIO:
    stream = io.StringIO()
    configure_logging(config, stream)
    return stream


def test_a_record_is_one_json_object_with_its_fields() -> None:
    stream = logged(ObservabilityConfig())
    logging.getLogger("steelyard.serving").info("version swapped", extra={"version": "v000012"})
    structlog.get_logger("steelyard.learner").info("step", loss=0.5)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["event"], first["version"], first["level"], first["logger"]) == (
        "version swapped",
        "v000012",
        "info",
        "steelyard.serving",
    )
    assert (second["event"], second["loss"]) == ("step", 0.5)
    assert first["timestamp"].endswith("Z")


def test_an_exception_stays_inside_its_json_object() -> None:
    stream = logged(ObservabilityConfig())
    try:
        raise ValueError("no such thing")
    except ValueError:
        logging.getLogger("steelyard").exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert "no such thing" in json.dumps(json.loads(line)["exception"])


def test_a_console_shows_one_readable_line() -> None:
    stream = logged(ObservabilityConfig(log_format="console"))
    logging.getLogger("steelyard").warning("late", extra={"position": "clicks[3]@171004"})
    (line,) = stream.getvalue().splitlines()
    assert "late" in line
    assert "position=clicks[3]@171004" in line


def test_what_is_below_the_level_is_not_logged_and_a_second_call_replaces_the_first() -> None:
    first = logged(ObservabilityConfig())
    second = logged(ObservabilityConfig(log_level="warning"))
    logging.getLogger("steelyard").info("quiet")
    logging.getLogger("steelyard").warning("loud")
    assert first.getvalue() == ""
    assert [json.loads(line)["event"] for line in second.getvalue().splitlines()] == ["loud"]


def test_what_the_client_library_says_again_and_again_is_logged_once_in_five_minutes() -> None:
    stream = logged(ObservabilityConfig())

    def log(logger: str, line: int, text: str, *, at: float) -> None:
        record = logging.LogRecord(logger, logging.ERROR, "cluster.py", line, text, (), None)
        record.created = at
        logging.getLogger(logger).handle(record)

    for second in range(600):
        log("kafka.cluster", 10, f"refused at {second}", at=1000.0 + second)
    log("kafka.cluster", 20, "another thing", at=1599.0)
    for _ in range(2):
        log("steelyard", 10, "ours", at=1600.0)
    log("kafka.cluster", 10, "the clock was set back", at=900.0)
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == [
        "refused at 0",
        "refused at 300",
        "another thing",
        "ours",
        "ours",
        "the clock was set back",
    ]


def test_the_coloured_copy_of_a_message_is_left_out() -> None:
    stream = logged(ObservabilityConfig())
    logging.getLogger("uvicorn.error").info(
        "Started server", extra={"color_message": "\x1b[1mStarted\x1b[0m server", "port": 1}
    )
    line = json.loads(stream.getvalue())
    assert (line["event"], line["port"]) == ("Started server", 1)
    assert "color_message" not in line


def test_the_metrics_port_shows_the_registry_and_is_free_afterwards() -> None:
    registry = new_registry()
    Counter("steelyard_test", "A test.", registry=registry).inc()
    server = start_metrics(registry, 0)
    with urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
        text = answer.read().decode()
    server.close()
    assert "steelyard_test_total 1.0" in text
    assert "process_cpu_seconds_total" in text
    socket.create_server(("127.0.0.1", server.port)).close()


def test_a_metrics_port_in_use_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(PortTaken, match=r"Address already in use.*observability\.metrics_port"):
            start_metrics(new_registry(), taken.getsockname()[1])
