"""Reading of bodies: no call builds many numbers, and what is read is what was sent."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect
from starlette.testclient import TestClient

from serving.errors import Invalid
from serving.wire import decoding
from serving.wire.decoding import decode, document, top_n
from serving.wire.protocol import RerankRequest, ScoreRequest, TeiRequest

#: msgspec needs 15 us for the first, and 10 for each of the others.
SLOW_NUMBERS = ("1e300", "1e-310", "1.2345678901234567e-300", "0." + "7" * 80 + "e-300")


def parts(kind: inspect.Type) -> list[inspect.Type]:
    """Return a type and all that it is made of."""
    found = [kind]
    match kind:
        case inspect.Metadata():
            found += parts(kind.type)
        case inspect.StructType():
            for field in kind.fields:
                found += parts(field.type)
        case inspect.ListType():
            found += parts(kind.item_type)
        case inspect.UnionType():
            for each in kind.types:
                found += parts(each)
    return found


@pytest.mark.parametrize("kind", [RerankRequest, TeiRequest, ScoreRequest, decoding._Shape])
def test_the_call_that_reads_a_whole_body_builds_nothing_but_strings(kind: type) -> None:
    allowed = (
        inspect.Metadata,
        inspect.StructType,
        inspect.ListType,
        inspect.UnionType,
        inspect.StrType,
        inspect.BoolType,
        inspect.NoneType,
        inspect.LiteralType,
        inspect.RawType,
    )
    assert [part for part in parts(inspect.type_info(kind)) if not isinstance(part, allowed)] == []


def test_numbers_are_read_by_python() -> None:
    for decoder in (decoding._SCALAR, decoding._SMALL_DOCUMENT):
        assert decoder.float_hook is decoding._finite


class Recorder:
    """A decoder that keeps what it was given."""

    def __init__(self, decoder: msgspec.json.Decoder[Any]) -> None:
        self.seen: list[bytes] = []
        self._decoder = decoder

    def decode(self, raw: msgspec.Raw) -> Any:
        self.seen.append(bytes(raw))
        return self._decoder.decode(raw)


@pytest.mark.parametrize("number", SLOW_NUMBERS)
def test_no_call_builds_the_numbers_of_more_than_four_kilobytes(
    monkeypatch: pytest.MonkeyPatch, client: TestClient, number: str
) -> None:
    scalars, small = Recorder(decoding._SCALAR), Recorder(decoding._SMALL_DOCUMENT)
    monkeypatch.setattr(decoding, "_SCALAR", scalars)
    monkeypatch.setattr(decoding, "_SMALL_DOCUMENT", small)
    many = f"[{','.join([number] * 1000)}]"
    one = f'{{"text":"a","x":{many},"y":{{"z":{many}}},"id":{many},"w":[[{many}],{many}]}}'
    for path, body in (
        ("/v2/rerank", f'{{"query":"q","documents":[{one}],"top_n":{many},"x":{many}}}'),
        ("/rerank", f'{{"query":"q","documents":["b",{one}],"rank_fields":["x"]}}'),
        ("/v1/score", f'{{"instances":[{{"query":"q","document":{one}}}]}}'),
    ):
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
    assert small.seen == [b'"b"']
    numbers = [raw for raw in scalars.seen if raw != b'"a"']
    assert set(numbers) == {number.encode()}
    assert len(numbers) == 3 * 2000, "x and id; what is nested deeper is not read at all"


@pytest.mark.parametrize("number", [*SLOW_NUMBERS, "5e-324", "-0.0", "1.5", "12345678901234567890"])
def test_a_number_is_what_python_reads(number: str) -> None:
    read = document(msgspec.Raw(f'{{"text":"a","x":{number}}}'.encode()), "{}", 0)
    assert read.attributes == {"x": json.loads(number)}


def expected(value: Any) -> Any:
    if isinstance(value, list):
        return [str(each) for each in value if isinstance(each, str) or type(each) is int]
    return None if isinstance(value, dict) else value


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(
    text=st.text(),
    attributes=st.dictionaries(st.text(), VALUES),
    indent=st.none() | st.just(1),
    large=st.booleans(),
)
def test_a_document_is_read_as_by_one_call(
    text: str, attributes: dict[str, Any], indent: int | None, large: bool
) -> None:
    attributes.pop("id", None)
    text += "b" * 5000 * large
    whole = json.dumps({**attributes, "text": text}, indent=indent)
    read = document(msgspec.Raw(whole.encode()), "$.documents[{}]", 0)
    attributes.pop("text", None)
    known = {
        key: found for key, value in attributes.items() if (found := expected(value)) is not None
    }
    assert (read.text, dict(read.attributes)) == (text, known)


def test_what_is_nested_in_a_large_document_is_not_read() -> None:
    whole = f'{{"text":"{"a" * 5000}","x":{{"y":1e400}},"z":[[1e400],{{"y":1e400}},"b"]}}'
    assert document(msgspec.Raw(whole.encode()), "", 0).attributes == {"z": ["b"]}


@pytest.mark.parametrize("space", [b"", b" " * 5000])
@pytest.mark.parametrize(
    ("piece", "reason"),
    [
        (b"5", "Expected `str | object`, got `int`"),
        (b"null", "got `null`"),
        (b'"\xff"', "utf-8"),
        (b'{"text":"a","{x}":"\xff"}', "utf-8"),
        (b'{"text":"a","x":[1e400]}', "Number out of range"),
        (b'{"text":1e400}', "Number out of range"),
        (b'{"text":[]}', "Expected `str`"),
        (b'{"text":{}}', "Expected `str`"),
    ],
)
def test_an_error_names_the_document(
    client: TestClient, piece: bytes, reason: str, space: bytes
) -> None:
    piece = piece.replace(b"{", b"{" + space)
    body = b'{"query":"q","documents":["a",%s]}' % piece
    answer = client.post("/v2/rerank", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert reason in answer.json()["detail"]
    assert "$.documents[1]" in answer.json()["detail"]


@pytest.mark.parametrize("sent", ["true", '"2"', "[3]", "{}", "1e400", "1e-310"])
def test_what_is_no_number_of_documents_is_refused_by_name(sent: str) -> None:
    asked = decode(f'{{"query":"q","documents":["a"],"top_n":{sent}}}'.encode(), RerankRequest)
    with pytest.raises(Invalid, match=r"at `\$\.top_n`"):
        top_n(asked)
