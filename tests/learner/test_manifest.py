"""A manifest is trusted whole or not at all."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.errors import Corrupt, FormatUnknown
from learner.store import manifest
from learner.store.blobs import Digest
from learner.store.journal.records import JournalPosition, JournalRange, segment_epoch
from learner.store.manifest import (
    CheckpointMetadata,
    Exclusions,
    Input,
    LearnedSamples,
    Manifest,
    Parent,
    Replay,
    Reset,
    ResumePoint,
    RunState,
    canonical,
)
from learner.store.manifest_codec import decode, encode, metadata
from tests.learner.saving import cut
from weighting.provenance import Audit, Gap, Offsets

FOLDER = "blobs/000003-00000012"
DIGEST = Digest(sha256="a" * 64, size=7)


def example(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        **{name: getattr(cut(5), name) for name in manifest.CheckpointMetadata.__struct_fields__},
        "format": 2,
        "kind": "checkpoint",
        "version": "v000012",
        "epoch": 3,
        "seq": 12,
        "parent": Parent(version="v000011", digest="b" * 64),
        "created_us": 1_700_000_000_000_000,
        "files": {f"{FOLDER}/model.safetensors": DIGEST},
    }
    return Manifest(**{**fields, **changes})


def signed(raw: dict[str, Any]) -> bytes:
    rest = {key: value for key, value in raw.items() if key != "self"}
    return canonical({**rest, "self": hashlib.sha256(canonical(rest)).hexdigest()})


def test_a_manifest_comes_back_as_it_was_under_the_names_of_the_operators_page() -> None:
    back, raw = decode(encode(example()), where="man/M-00000012")
    assert back == example()
    names = (
        "audit bit_exact config_sha256 created epoch evaluation event_time exclusions files "
        "fingerprint format fresh_events gaps inputs journal kind offsets orders_taken parent "
        "quarantine replay resets samples samples_per_second self seq step superseded timeline "
        "trained version watermark weighting world_size"
    )
    assert sorted(raw) == names.split()
    assert raw["offsets"] == {"clicks": {"0": 50, "1": 55}, "exposures": {"0": 500}}
    assert raw["parent"] == {"version": "v000011", "self": "b" * 64}


def test_equal_manifests_give_equal_bytes_whatever_the_order_of_their_parts() -> None:
    forwards = example(offsets={"a": {0: 1, 1: 2}, "b": {0: 3}}, evaluation={"x": 1.0, "y": 2.0})
    backwards = example(offsets={"b": {0: 3}, "a": {1: 2, 0: 1}}, evaluation={"y": 2.0, "x": 1.0})
    assert encode(forwards) == encode(backwards)


@given(place=st.integers(min_value=0), byte=st.integers(min_value=0, max_value=255))
def test_no_changed_byte_goes_unnoticed(place: int, byte: int) -> None:
    data = bytearray(encode(example()))
    place %= len(data)
    if data[place] == byte:
        return
    data[place] = byte
    with pytest.raises(Corrupt, match="man/M-00000012"):
        decode(bytes(data), where="man/M-00000012")


@given(end=st.integers(min_value=0))
def test_no_truncation_goes_unnoticed(end: int) -> None:
    data = encode(example())
    with pytest.raises(Corrupt):
        decode(data[: end % len(data)], where="man/M-00000012")


@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(Corrupt):
        decode(data, where="man/M-00000012")


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"a":NaN}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'"\\ud800"',
        b"[]",
        b'{"self":1}',
        b'{"format":1,"format":1}',
    ],
    ids=["deep", "nan", "long number", "surrogate", "list", "self of another type", "key twice"],
)
def test_hostile_json_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(Corrupt):
        decode(data, where="man/M-00000012")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        f"{FOLDER}/../000003-00000011/model.safetensors",
        f"{FOLDER}/./model.safetensors",
        f"{FOLDER}//model.safetensors",
        f"{FOLDER}/.hidden",
        f"{FOLDER}/a\\b",
        f"{FOLDER}/a\0b",
        f"{FOLDER}/",
        "",
        "control/aliases.json",
        "blobs/000003-000000120/model.safetensors",
        "..",
    ],
)
def test_a_path_that_leaves_the_versions_folder_is_refused(path: str) -> None:
    raw = json.loads(encode(example()))
    raw["files"] = {path: {"sha256": "a" * 64, "size": 7}}
    with pytest.raises(Corrupt, match="normalised paths inside"):
        decode(signed(raw), where="man/M-00000012")


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "v000013"},
        {"version": "../../x"},
        {"parent": {"version": "../x", "self": ""}},
        {"seq": 0},
        {"epoch": "3"},
        {"files": {f"{FOLDER}/model.safetensors": {"sha256": "xyz", "size": 7}}},
        {"files": {f"{FOLDER}/model.safetensors": {"sha256": "a" * 64, "size": -1}}},
        {"offsets": {"clicks": {"zero": 1}}},
        {"timeline": [["../man/M-00000001", 0, None]]},
        {"timeline": [["000001-0000", -1, None]]},
        {"journal": {"segment": "/etc/passwd", "byte": 0, "skip": []}},
        {"quarantine": [[1, 2, 3]]},
    ],
)
def test_a_field_that_is_not_what_it_should_be_is_refused(changes: dict[str, Any]) -> None:
    raw = {**json.loads(encode(example())), **changes}
    with pytest.raises(Corrupt):
        decode(signed(raw), where="man/M-00000012")


@pytest.mark.parametrize("changes", [{"format": 3}, {"format": None}, {"kind": "merge"}])
def test_another_format_or_kind_is_refused_as_such_and_not_as_damage(
    changes: dict[str, Any],
) -> None:
    raw = {**json.loads(encode(example())), **changes}
    with pytest.raises(FormatUnknown, match="run that one"):
        decode(signed(raw), where="man/M-00000012")


RUN_STATE = RunState(
    timeline=(JournalRange("000003-0000", 0, 17), JournalRange("000003-0001", 0, None)),
    gaps=(Gap(topic="clicks", partition=1, start=5, end=9, reason="retention"),),
    resets=(Reset(command=2, step=4, skip=(1,), offsets={"clicks": {0: (9, 5)}}),),
    quarantine=((3, 5),),
    exclusions=Exclusions(sha256="e" * 64, num=2, command=1),
    bit_exact=False,
    commands_taken=2,
    world_size=3,
    replay=Replay(mode="anew", until={"clicks": {0: 9}}, command=2),
    superseded=((4, 7),),
)
AUDIT = Audit(9, 2**64 - 1, {"accepted": 8, "late": 1}, (8, 2**63))
JOURNALED = {
    "journal": ResumePoint(segment="000003-0001", byte=8, skip=(2, 0)),
    "audit": {"clicks": {0: AUDIT}},
    "inputs": {"clicks": Input(id="x", num_partitions=2)},
    "learned": LearnedSamples(num=8, sum64=2**64 - 1),
}


@pytest.mark.parametrize("kind", ["checkpoint", "fence", "restore", "reset"])
def test_what_holds_from_one_manifest_to_the_next_comes_back_and_stands_among_the_other_fields(
    kind: str,
) -> None:
    whole = example(
        kind=kind,
        run_state=RUN_STATE,
        files={} if kind != "checkpoint" else example().files,
        **JOURNALED,
    )
    back, raw = decode(encode(whole), where="man/M-00000012")
    assert back == whole
    assert back.journal is not None
    assert back.journal.place == JournalPosition("000003-0001", 8)
    assert raw["timeline"] == [["000003-0000", 0, 17], ["000003-0001", 0, None]]
    assert (raw["orders_taken"], raw["quarantine"]) == (2, [[3, 5]])
    assert raw["replay"]["mode"] == "anew"
    assert "run_state" not in raw
    assert metadata(raw) == CheckpointMetadata(
        **{name: getattr(whole, name) for name in CheckpointMetadata.__struct_fields__}
    )


def test_offsets_on_disk_are_nested_and_flat_in_memory() -> None:
    nested = {"clicks": {0: 50, 1: 55}, "exposures": {0: 500}}
    flat = {("clicks", 0): 50, ("clicks", 1): 55, ("exposures", 0): 500}
    whole = example(offsets=nested)
    assert whole.next_offsets == flat
    assert Offsets(flat).nested() == nested
    assert Replay(mode="anew", until=nested, command=2).end_offsets == flat
    (reset,) = RUN_STATE.resets
    assert reset.moved_to == {("clicks", 0): 5}


def test_a_manifest_that_is_no_checkpoint_has_no_files() -> None:
    raw = {**json.loads(encode(example())), "kind": "fence"}
    with pytest.raises(Corrupt, match="a fence without files"):
        decode(signed(raw), where="man/M-00000012")


def test_a_manifest_of_the_first_format_is_read() -> None:
    raw = json.loads(encode(example()))
    for name in (*RunState.__struct_encode_fields__, "journal", "audit", "inputs", "trained"):
        del raw[name]
    back, _ = decode(signed({**raw, "format": 1}), where="man/M-00000012")
    assert back == example(format=1)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_fuzzed_manifests_whose_digest_holds_are_read_or_refused(data: st.DataObject) -> None:
    raw = json.loads(encode(example(run_state=RUN_STATE, **JOURNALED)))
    junk = st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=9)
        | st.sampled_from(["../x", "/etc/passwd", 2**80, -1]),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=6,
    )
    for key in data.draw(st.lists(st.sampled_from(sorted(raw)), min_size=1, max_size=3)):
        raw[key] = data.draw(junk)
    try:
        whole, _ = decode(signed(raw), where="man/M-00000012")
    except (Corrupt, FormatUnknown):
        return
    assert encode(whole)
    assert not any(manifest.check_path(path) for path in whole.files)
    assert all(segment_epoch(span.segment) for span in whole.run_state.timeline)


def test_a_field_that_a_later_minor_release_adds_is_ignored() -> None:
    raw = {**json.loads(encode(example())), "colour": {"num_records": 4}}
    assert decode(signed(raw), where="man/M-00000012")[0] == example()


@pytest.mark.parametrize(
    "changes", [{"evaluation": {"auc": float("nan")}}, {"step": -1}, {"config_sha256": "\ud800"}]
)
def test_what_could_not_be_read_back_is_not_written(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        encode(example(**changes))


@given(name=st.text(max_size=12) | st.from_regex(r"v[0-9]{5,16}", fullmatch=True))
def test_a_name_is_a_version_only_if_its_number_gives_the_same_name(name: str) -> None:
    seq = manifest.version_seq(name)
    assert seq is None or manifest.version_name(seq) == name
    assert manifest.version_seq(manifest.version_name(12)) == 12
    assert manifest.mark_seq("M-00000012") == 12
