"""What the pages show works: every example event decodes, every dead-letter reason is explained."""

import json
import re
from pathlib import Path

import pytest

from consumers.codec import REASONS, decode
from consumers.events import Click, Exposure, ItemUpdate, Kind, Purchase
from consumers.source import Record

ROOT = Path(__file__).parents[1]
PRODUCERS = (ROOT / "docs" / "producers.md").read_text()
APPENDED_US = 1_800_000_000_000_000


def kind_of(event: dict[str, object]) -> Kind:
    if "query_response_hit_ids" in event:
        return Kind.EXPOSURE
    return Kind(str(event["action_name"])) if "action_name" in event else Kind.ITEM


def decoded(text: str) -> object:
    kind = kind_of(json.loads(text))
    return decode(kind, Record(topic="t", partition=0, offset=0, timestamp_us=APPENDED_US, key=None, value=text.encode(), headers=()))


def test_the_page_shows_one_event_of_each_kind_and_each_can_be_read() -> None:
    events = [decoded(block) for block in re.findall(r"```json\n(.*?)```", PRODUCERS, re.DOTALL)]
    assert [type(event) for event in events] == [Exposure, Click, Purchase, ItemUpdate]


@pytest.mark.parametrize(("name", "kind"), [("exposure", Exposure), ("click", Click), ("purchase", Purchase)])
def test_the_example_files_can_be_read(name: str, kind: type) -> None:
    assert isinstance(decoded((ROOT / "examples" / f"{name}.json").read_text()), kind)


def test_every_reason_of_a_dead_letter_is_explained() -> None:
    assert [reason for reason in REASONS if f"`{reason}`" not in PRODUCERS] == []
