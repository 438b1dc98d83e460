"""No failure writes a secret or a record into the log, and each is one bounded line."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any, Literal

import pytest
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.testclient import TestClient

from consumers.kafka.options import KafkaConfig
from consumers.kafka.source import KafkaSource
from deploy.errors import SettingsError
from deploy.process import log_line
from deploy.process.observability import ObservabilityConfig, configure_logging
from deploy.settings.leaf import secrets_in
from deploy.settings.load import load

PASSWORD = 'pass"word\\1é'
CLIENT = "customer-4711"
FORMATS: tuple[Literal["json", "console"], ...] = ("json", "console")
ENV = {"STEELYARD_KAFKA__OPTIONS__SASL_PLAIN_PASSWORD": json.dumps(PASSWORD)}


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, shown = list(root.handlers), root.level, warnings.showwarning
    yield
    logging.captureWarnings(False)
    warnings.showwarning = shown
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def logged(log_format: Literal["json", "console"]) -> io.StringIO:
    stream = io.StringIO()
    secrets = secrets_in(load(None, ENV))
    configure_logging(ObservabilityConfig(log_format=log_format), stream, secrets)
    return stream


def failing_poll(**_: Any) -> Any:
    """A client whose poll fails with records in its frames."""

    class Cluster:
        def topic_id(self, topic: str) -> None:
            return None

    class Failing:
        _cluster = Cluster()

        def topics(self) -> set[str]:
            return {"clicks"}

        def partitions_for_topic(self, topic: str) -> set[int]:
            return {0}

        def poll(self, **_: Any) -> None:
            records = [{"client_id": CLIENT, "password": PASSWORD}] * 50_000
            raise RuntimeError(f"{len(records)} records", PASSWORD)

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_, **__: None

    return Failing()


def poll_fails() -> None:
    source = KafkaSource(
        KafkaConfig(), ["clicks"], client=failing_poll, clock=lambda: 0.0, sleep=lambda _: None
    )
    source._consumer = failing_poll()
    source._partitions = {("clicks", 0): None}
    source.seek("clicks", 0, 0)
    assert source.poll(0.0) == []


def client_fails() -> None:
    names = ("sasl_plain_password", "sasl_mechanism", "security_protocol")
    for order in permutations(names):
        options = {name: PASSWORD if "password" in name else "PLAIN" for name in order}

        def make(**given: Any) -> Any:
            raise OSError(f"no client for {given['sasl_plain_password']} at {given}")

        try:
            make(**KafkaConfig(options=options).options)
        except OSError:
            logging.getLogger("consumers.kafka.source").warning("no client", exc_info=True)


def request_fails() -> None:
    async def answer(request: Request) -> None:
        client = CLIENT
        raise ValueError(f"cannot answer {len(client)}")

    def logging_app(app: Any) -> Any:
        async def run(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except ValueError:
                logging.getLogger("serving").exception("failed")
                raise

        return run

    app = logging_app(Starlette(routes=[Route("/", answer)]))
    with pytest.raises(ValueError, match="cannot answer"):
        TestClient(app).get("/", headers={"Authorization": PASSWORD.encode().hex()})


def everything_at_once() -> None:
    logging.getLogger("x").error(
        "url %s",
        f"socks5://me:{CLIENT}@proxy:1080",
        extra={"options": {"sasl_plain_password": PASSWORD}, "records": ["r" * 9_000] * 900},
    )


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("fail", [poll_fails, client_fails, request_fails, everything_at_once])
def test_no_failure_writes_a_secret_or_a_customer_into_the_log(
    fail: Callable[[], None], log_format: Literal["json", "console"]
) -> None:
    stream = logged(log_format)
    fail()
    text = stream.getvalue()
    assert text
    for spelling in (PASSWORD, json.dumps(PASSWORD)[1:-1], repr(PASSWORD)[1:-1], CLIENT):
        assert spelling not in text
    assert PASSWORD.encode().hex() not in text
    if log_format == "json":
        lines = text.splitlines()
        assert all(isinstance(json.loads(line), dict) for line in lines)
        assert max(map(len, lines)) <= log_line.MAX_LINE_CHARS + 1_000


def test_a_long_value_is_cut_with_a_mark_and_the_line_stays_an_object() -> None:
    stream = logged("json")
    logging.getLogger("x").warning("y" * 5_000_000, extra={"many": list(range(10**6))})
    (line,) = stream.getvalue().splitlines()
    event = json.loads(line)
    assert event["event"].endswith("(cut: 5000000 characters)")
    assert event["many"][-1] == "... of 1000000 items"
    assert len(line) < log_line.MAX_LINE_CHARS


def test_many_long_values_leave_an_object_that_says_so() -> None:
    stream = logged("json")
    logging.getLogger("x").warning("failed", extra={f"k{n}": "v" * 4_000 for n in range(40)})
    event = json.loads(stream.getvalue())
    assert (event["event"], event["level"]) == ("failed", "warning")
    assert "cut" in event["rest"]


def test_a_traceback_has_its_frames_without_their_variables() -> None:
    stream = logged("json")
    try:
        raise ValueError("no such thing")
    except ValueError:
        logging.getLogger("x").exception("failed")
    (line,) = stream.getvalue().splitlines()
    (raised,) = json.loads(line)["exception"]
    assert (raised["exc_type"], raised["exc_value"]) == ("ValueError", "no such thing")
    assert not any(frame.get("locals") for frame in raised["frames"])
    assert raised["frames"][0]["name"]


PROGRAM = """
import sys, warnings
from deploy.process.observability import ObservabilityConfig, configure_logging
for _ in range(2):
    configure_logging(ObservabilityConfig(log_format="json"))
print("a report\\nof two lines", file=sys.stderr)
sys.stderr.write("loading: 0%\\rloading: 50%\\rloading: 100%\\n")
warnings.warn("deprecated")
from tqdm import tqdm
for _ in tqdm(range(3)):
    pass
print("", file=sys.stderr)
raise RuntimeError("the end")
"""


def test_all_that_others_print_to_standard_error_is_a_record_of_the_json_log() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 1
    events = [json.loads(line) for line in done.stderr.splitlines()]
    said = [event["event"] for event in events]
    assert said[:3] == ["a report", "of two lines", "loading: 100%"]
    assert any("deprecated" in each for each in said)
    assert said[-1] == "ended by RuntimeError"
    assert events[-1]["exception"][0]["exc_value"] == "the end"


@pytest.mark.parametrize(
    ("env", "sets"),
    [
        ({}, {"kafka.options": "hunter2"}),
        ({"STEELYARD_KAFKA__OPTIONS": "hunter2"}, {}),
        ({}, {"kafka.options.group_id": "hunter2"}),
        ({}, {"kafka": "hunter2"}),
        ({}, {"kafka.options": "[hunter2]"}),
    ],
)
def test_what_is_given_for_options_is_not_echoed(env: dict[str, str], sets: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as raised:
        load(None, env, sets)
    assert "hunter2" not in str(raised.value)
    assert "kafka" in str(raised.value).lower()


def test_options_in_a_file_that_are_no_section_are_not_echoed(tmp_path: Any) -> None:
    for text in ("kafka: hunter2", "kafka: {options: hunter2}", "kafka: {options: [hunter2]}"):
        path = tmp_path / "steelyard.yaml"
        path.write_text(text)
        with pytest.raises(SettingsError) as raised:
            load(path, {})
        assert "hunter2" not in str(raised.value)
