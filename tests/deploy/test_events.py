"""Events on the command line: accepted or refused by number and field, none lost on the way."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from consumers.dead_letter import DeadLetters
from consumers.errors import Invalid, SinkUnavailable, TopicMissing
from consumers.events import encode_click, encode_exposure, encode_item
from consumers.pipeline import Topics
from consumers.source import Record
from consumers.telemetry import Telemetry
from deploy.admin import event_file, events, records
from deploy.admin.topic_names import explained, unread
from deploy.errors import UsageError
from deploy.process.observability import new_registry
from deploy.process.terminal import Output
from tests.fakes.log import Log, Shelf
from weighting.provenance import Position, TopicPartition

CLICK = encode_click(client_id="c-1", object_id="SKU-7", time_us=0, query_id="q")
EXPOSURE = encode_exposure(
    query_id="q", client_id="c-2", time_us=0, user_query="shoes", hits=["SKU-7"]
)
ITEM = encode_item(object_id="SKU-7", text="Red shoe")
NO_OFFSET = CLICK.replace(b"Z", b"")
NO_CLIENT = CLICK.replace(b'"client_id"', b'"x"')


class Paper:
    """Output of a command: results and messages."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.reported: list[str] = []

    def output(self, *, as_json: bool = False) -> Output:
        return Output(write=self.written.append, report=self.reported.append, as_json=as_json)

    @property
    def objects(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.written]


# --- validate ---


def test_every_line_is_checked_as_what_its_fields_say_it_is() -> None:
    paper = Paper()
    assert events.validate([CLICK, EXPOSURE, b"\n", ITEM], "x.ndjson", paper.output()) == 0
    assert paper.written == []
    assert paper.reported == ["3 valid (1 click, 1 exposure, 1 item), 0 invalid"]


def test_what_would_be_repaired_is_told_with_line_kind_and_field() -> None:
    back = b'{"action_name":"purchase","client_id":7,"timestamp":1795471710120,"event_attributes":'
    lines = [
        back + b'{"object":{"object_id":"A"},"quantity":"-1"}}',
        b'{"action_name":"page_exit"}',
        b"\xef\xbb\xbf" + EXPOSURE,
    ]
    paper = Paper()
    assert events.validate(lines, "x", paper.output()) == 0
    assert paper.written == [
        "x:1: return: client_id repaired - at `$.client_id`",
        "x:1: return: timestamp repaired - at `$.timestamp`",
        "x:1: return: amount repaired - at `$.event_attributes.quantity`",
        "x:3: exposure: encoding repaired - at `$`",
    ]
    assert paper.reported == [
        "3 valid (1 return, 1 skipped action, 1 exposure), 0 invalid, 4 fields repaired or dropped"
    ]
    paper = Paper()
    events.validate(lines, "x", paper.output(as_json=True))
    (told,) = paper.objects
    assert told["events"] == {"return": 1, "skipped action": 1, "exposure": 1}
    assert told["repaired"][0] == {  # type: ignore[index]
        "line": 1,
        "event": "return",
        "field": "client_id",
        "path": "$.client_id",
        "result": "repaired",
    }


def test_a_line_that_is_none_is_told_with_its_number_field_and_error() -> None:
    paper = Paper()
    assert (
        events.validate(
            [CLICK, b"", NO_OFFSET, NO_CLIENT, b"[1", b"\xff"], "x.ndjson", paper.output()
        )
        == 1
    )
    assert paper.written[:2] == [
        "x.ndjson:3: action: Expected `datetime` with a timezone component - at `$.timestamp`",
        "x.ndjson:4: action: Object missing required field `client_id`",
    ]
    assert [line.partition(": ")[0] for line in paper.written] == [
        "x.ndjson:3",
        "x.ndjson:4",
        "x.ndjson:5",
        "x.ndjson:6",
    ]
    assert paper.reported == ["1 valid (1 click), 4 invalid"]


def test_a_file_may_be_one_object_over_several_lines() -> None:
    paper, pretty = (
        Paper(),
        json.dumps(json.loads(EXPOSURE), indent=2).encode().splitlines(keepends=True),
    )
    assert len(pretty) > 1
    assert events.validate([b"\n", *pretty], "x.json", paper.output()) == 0
    assert paper.reported == ["1 valid (1 exposure), 0 invalid"]
    assert events.validate([*pretty, *pretty], "x.json", Paper().output()) == 1, (
        "two are no lines and no object"
    )


def test_a_first_line_that_is_cut_off_does_not_take_the_others_with_it() -> None:
    for rest in ([CLICK, EXPOSURE], [CLICK] * (2 * 1024 * 1024 // len(CLICK))):
        paper = Paper()
        assert events.validate([CLICK[:20], *rest], "x", paper.output()) == 1
        assert paper.written == ["x:1: action: not JSON: Input data was truncated"]
        (summary,) = paper.reported
        assert summary.startswith(f"{len(rest)} valid (")
        assert summary.endswith("), 1 invalid")


def test_a_first_line_that_is_none_is_told_before_the_second_is_there() -> None:
    def live() -> Iterator[bytes]:
        yield b"{'a': 1}"
        assert len(paper.written) == 1
        yield CLICK

    paper = Paper()
    assert events.validate(live(), "-", paper.output()) == 1
    assert paper.reported == ["1 valid (1 click), 1 invalid"]


@pytest.mark.parametrize(
    "file",
    sorted((Path(__file__).parents[2] / "examples").glob("*.json")),
    ids=lambda file: str(file.name),
)
def test_every_example_is_valid_as_the_command_sees_it(file: Path) -> None:
    paper = Paper()
    with event_file.open_lines(str(file)) as lines:
        assert events.validate(lines, file.name, paper.output()) == 0, paper.written
    assert paper.reported == [f"1 valid (1 {file.stem}), 0 invalid"]


def test_as_json_the_outcome_is_one_object() -> None:
    paper = Paper()
    assert events.validate([CLICK, NO_OFFSET], "x.ndjson", paper.output(as_json=True)) == 1
    error = "Expected `datetime` with a timezone component - at `$.timestamp`"
    refusal = {
        "line": 2,
        "event": "action",
        "reason": "naive_timestamp",
        "field": "$.timestamp",
        "error": error,
    }
    told = {"file": "x.ndjson", "valid": 1, "events": {"click": 1}, "invalid": [refusal]}
    assert paper.objects == [told | {"repaired": []}]


def test_a_file_that_cannot_be_opened_is_a_usage_error(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="No such file or directory"),
        event_file.open_lines(str(tmp_path / "no")),
    ):
        pass


# --- send ---


def test_lines_are_sent_unchanged_and_keyed_by_client_or_item() -> None:
    paper, shelf = Paper(), Shelf()
    assert (
        events.send(shelf, [CLICK + b"\n", EXPOSURE, ITEM], "x", "any", Topics(), paper.output())
        == 0
    )
    assert shelf.sent == [
        ("any", b"c-1", CLICK, {}),
        ("any", b"c-2", EXPOSURE, {}),
        ("any", b"SKU-7", ITEM, {}),
    ]
    assert shelf.num_flushes == 1


def test_a_topic_that_no_learner_reads_is_told_with_those_of_the_settings() -> None:
    topics, paper = Topics(clicks="shop.clicks", items=None), Paper()
    assert events.send(Shelf(), [CLICK], "x", "shop.click", topics, paper.output()) == 0
    warning, result = paper.reported
    assert warning == (
        "topic 'shop.click' is read by no learner of these settings. Topics of kafka.topics: "
        "exposures, shop.clicks, purchases, steelyard.deadletter. Did you mean shop.clicks?"
    )
    assert result == "1 sent to shop.click, 0 refused"
    paper = Paper()
    assert events.send(Shelf(), [CLICK], "x", "shop.clicks", topics, paper.output()) == 0
    assert paper.reported == ["1 sent to shop.clicks, 0 refused"]
    assert "Did you mean" not in str(unread("backup", topics))


def test_a_topic_that_does_not_exist_is_an_error_that_names_those_of_the_settings() -> None:
    with (
        pytest.raises(UsageError, match=r"'clikcs' does not exist.*Did you mean clicks\?"),
        explained("clikcs", Topics()),
    ):
        raise TopicMissing("clikcs", "h:1")
    with pytest.raises(TopicMissing, match="topics create"), explained("clicks", Topics()):
        raise TopicMissing("clicks", "h:1")


def test_what_the_topic_does_not_carry_is_refused_and_the_rest_is_sent() -> None:
    paper, shelf = Paper(), Shelf()
    assert (
        events.send(
            shelf, [EXPOSURE, CLICK, b"{"], "x", "clicks", Topics(), paper.output(as_json=True)
        )
        == 1
    )
    assert [value for _, _, value, _ in shelf.sent] == [CLICK]
    assert paper.objects == [{"topic": "clicks", "sent": 1, "refused": 2}]
    assert [line[:4] for line in paper.reported] == ["x:1:", "x:3:"]


def test_an_error_that_is_the_same_in_every_line_is_told_once() -> None:
    paper = Paper()
    assert (
        events.send(Shelf(), [EXPOSURE] * 100 + [b"{"], "x", "clicks", Topics(), paper.output())
        == 1
    )
    assert paper.reported == [
        "x:1: Object missing required field `action_name`",
        "x:101: not JSON: Input data was truncated",
        "0 sent to clicks, 101 refused, each error reported at its first line",
    ]


def test_an_object_over_several_lines_is_sent_as_one_record() -> None:
    shelf, pretty = Shelf(), json.dumps(json.loads(CLICK), indent=2).encode()
    assert events.send(shelf, pretty.splitlines(), "x", "clicks", Topics(), Paper().output()) == 0
    ((_, key, value, _),) = shelf.sent
    assert (key, json.loads(value or b"")) == (b"c-1", json.loads(CLICK))


def test_each_record_that_is_sent_waits_for_its_turn() -> None:
    shelf, waited = Shelf(), list[int]()
    events.send(
        shelf,
        [CLICK, b"no event", CLICK],
        "x",
        "clicks",
        Topics(),
        Paper().output(),
        pace=lambda: waited.append(len(shelf.sent)),
    )
    assert waited == [0, 1]


# --- tail ---


def filled(num_records: int) -> Log:
    log = Log([("clicks", 0), ("clicks", 1)], max_records=3)
    for number in range(num_records):
        log.append("clicks", 0, b'{"n": %d}' % number, key=b"c", timestamp_us=number * 1_000_000)
    log.append("clicks", 1, b"\xff", key=None, headers=[("ce_id", b"7")])
    return log


def positions(paper: Paper) -> list[object]:
    return [line["position"] for line in paper.objects]


def test_the_last_records_of_each_partition_are_shown() -> None:
    paper = Paper()
    records.tail(filled(20), paper.output(), start=-2)
    assert sorted(map(str, positions(paper))) == ["clicks[0]@18", "clicks[0]@19", "clicks[1]@0"]


def test_one_partition_from_an_offset_to_the_end_is_shown_in_order() -> None:
    paper = Paper()
    records.tail(filled(20), paper.output(), partition=0, start=13)
    assert positions(paper) == [f"clicks[0]@{offset}" for offset in range(13, 20)]
    assert paper.objects[0] == {
        "position": "clicks[0]@13",
        "time": "1970-01-01T00:00:13+00:00",
        "key": "c",
        "value": {"n": 13},
    }


def test_bytes_that_are_no_text_and_headers_are_shown_too() -> None:
    paper = Paper()
    records.tail(filled(0), paper.output(), partition=1)
    (shown,) = paper.objects
    assert (shown["value"], shown["headers"], shown["time"], shown["key"]) == (
        {"base64": "/w=="},
        {"ce_id": "7"},
        None,
        None,
    )


def test_a_partition_that_is_not_there_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--partition: got 7, expected one of 0 to 1"):
        records.tail(filled(1), Paper().output(), partition=7)


def test_an_offset_beyond_the_end_shows_nothing_and_ends() -> None:
    paper = Paper()
    records.tail(filled(3), paper.output(), partition=0, start=100)
    assert paper.written == []


def test_it_ends_at_the_end_offsets_of_when_it_began() -> None:
    class Growing(Log):
        def end_offsets(self) -> dict[TopicPartition, int]:
            ends = super().end_offsets()
            self.append("clicks", 0, b"written meanwhile")
            return ends

    log, paper = Growing([("clicks", 0)]), Paper()
    log.append("clicks", 0, CLICK)
    records.tail(log, paper.output())
    assert positions(paper) == ["clicks[0]@0"]


# --- dead letters ---


def set_aside(*values: bytes | None, reason: str = "schema", topic: str = "clicks") -> Log:
    """A topic of dead letters, written as the pipeline writes it."""
    shelf = Shelf()
    letters = DeadLetters(shelf, "steelyard.deadletter", Telemetry(new_registry()))
    for offset, value in enumerate(values):
        where = Position(topic, 0, offset)
        letters.put(
            Record(topic, 0, offset, 0, b"k", value),
            Invalid(stage="schema", reason=reason, error="wrong", position=where),
        )
    return log_of(shelf.sent)


def log_of(sent: Iterable[tuple[str, bytes | None, bytes | None, dict[str, bytes]]]) -> Log:
    log = Log([("steelyard.deadletter", 0)])
    for _, key, value, headers in sent:
        log.append("steelyard.deadletter", 0, value, key=key, headers=list(headers.items()))
    return log


def test_dead_letters_are_listed_with_position_reason_and_value() -> None:
    paper = Paper()
    assert records.dead_letters(set_aside(NO_OFFSET, b"\xff"), Topics(), paper.output()) == 0
    first, second = paper.objects
    assert first["position"] == "clicks[0]@0"
    assert (first["stage"], first["reason"], first["error"], first["value"]) == (
        "schema",
        "schema",
        "wrong",
        json.loads(NO_OFFSET),
    )
    assert second["value"] == {"base64": "/w=="}
    assert paper.reported == ["2 dead letters"]


def test_only_the_letters_of_one_reason_are_listed() -> None:
    paper = Paper()
    assert records.dead_letters(set_aside(CLICK), Topics(), paper.output(), reason="not_json") == 0
    assert paper.written == []


def test_a_letter_set_aside_twice_is_listed_once_and_a_deleted_one_not_at_all() -> None:
    log = set_aside(CLICK, EXPOSURE)
    again, gone = log.records["steelyard.deadletter", 0]
    log.append("steelyard.deadletter", 0, again.value, key=again.key, headers=again.headers)
    log.append("steelyard.deadletter", 0, None, key=gone.key)
    paper = Paper()
    records.dead_letters(log, Topics(), paper.output())
    assert positions(paper) == ["clicks[0]@0"]


def test_a_replay_sends_the_original_bytes_to_their_topic_and_then_deletes_the_letter() -> None:
    paper, shelf = Paper(), Shelf()
    assert records.dead_letters(set_aside(NO_OFFSET), Topics(), paper.output(), sink=shelf) == 0
    assert shelf.sent == [
        ("clicks", b"c-1", NO_OFFSET, {}),
        ("steelyard.deadletter", b"clicks-0-0", None, {}),
    ]
    assert shelf.num_flushes == 2


def test_a_letter_that_cannot_be_sent_stays_and_the_exit_code_says_so() -> None:
    paper, shelf = Paper(), Shelf()
    assert (
        records.dead_letters(set_aside(b"\xff", b"[1]", None), Topics(), paper.output(), sink=shelf)
        == 1
    )
    assert (
        records.dead_letters(
            set_aside(CLICK, topic="foreign"), Topics(), paper.output(), sink=shelf
        )
        == 1
    )
    assert shelf.sent == []


def test_no_letter_is_deleted_before_what_it_held_is_safe() -> None:
    class Broken(Shelf):
        def flush(self) -> None:
            raise SinkUnavailable("clicks", 1, "broker gone")

    shelf = Broken()
    with pytest.raises(SinkUnavailable):
        records.dead_letters(set_aside(CLICK), Topics(), Paper().output(), sink=shelf)
    assert [topic for topic, *_ in shelf.sent] == ["clicks"]


# --- searches that found nothing ---


def test_searches_that_found_nothing_are_listed_by_clients_and_never_of_one_client_only() -> None:
    log = Log([("exposures", 0), ("exposures", 1)])
    searches = [
        ("a", "Purple  unicorn", []),
        ("b", "purple unicorn", []),
        ("b", "purple unicorn", []),
        ("c", "jane doe, 5 elm street", []),
        ("c", "shoes", ["A"]),
        ("d", "", []),
    ]
    for n, (client, query, hits) in enumerate(searches):
        value = encode_exposure(
            query_id=f"q{n}", client_id=client, time_us=0, user_query=query, hits=hits
        )
        log.append("exposures", n % 2, value, key=client.encode())
    log.append("exposures", 0, b"{", key=b"x")
    paper = Paper()
    output = paper.output(as_json=True)
    records.without_hits(log.reader(), output, num_records=100, top=5, min_clients=2)
    assert paper.objects == [
        {"searches": 6, "no_hits": 5, "queries": [{"query": "purple unicorn", "clients": 2}]}
    ]
    paper = Paper()
    records.without_hits(log.reader(), paper.output(), num_records=100, top=1, min_clients=1)
    assert len(paper.written) == 2


# --- schemas ---


def test_the_schema_files_are_what_the_types_say(tmp_path: Path) -> None:
    written = events.write_schemas(tmp_path)
    assert [path.name for path in written] == [
        path.name for path in written if (events.SCHEMAS / path.name).exists()
    ]
    for path in written:
        hint = f"{path.name} is not current: steelyard events schema --out deploy/schemas"
        assert (events.SCHEMAS / path.name).read_text() == path.read_text(), hint
    assert {path.name for path in events.SCHEMAS.glob("*.schema.json")} == {
        path.name for path in written
    }
