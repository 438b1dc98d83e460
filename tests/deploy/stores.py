"""A log, and a store of versions that consumed it, with their audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from consumers.audit import Hasher
from consumers.events import encode_click
from learner.artifact import Store, Version
from learner.store.journal import frames
from learner.store.journal.records import Open, Part, Step
from tests.fakes.log import Log
from tests.learner.saving import cut, files, owner, rewrite
from weighting.provenance import TopicPartition

SEGMENT = "000001-0000"
SAMPLES = 400  #: of each step, by the journal
A, B = ("clicks", 0), ("clicks", 1)


def clicks(*lengths: int) -> Log:
    """Partitions of clicks; client c-<offset> of partition 0 clicks item SKU-<offset>."""
    log = Log([("clicks", partition) for partition in range(len(lengths))], max_records=7)
    for partition, length in enumerate(lengths):
        for offset in range(length):
            value = encode_click(
                client_id=f"c-{offset}",
                object_id=f"SKU-{offset}",
                time_us=offset,
                event_id=f"e-{partition}-{offset}",
            )
            log.append(
                "clicks",
                partition,
                value,
                key=f"c-{offset}".encode(),
                timestamp_us=offset * 1_000_000,
            )
    return log


def consumed(
    root: Path, log: Log, cuts: Sequence[Mapping[TopicPartition, int]], **changes: Any
) -> list[Version]:
    """Make versions with these next offsets, each the parent of the next.

    `changes` are further fields of all their manifests.
    """
    checkpointer = owner(root)
    for step, offsets in enumerate(cuts, 1):
        nested: dict[str, dict[int, int]] = {}
        for (topic, partition), offset in offsets.items():
            nested.setdefault(topic, {})[partition] = offset
        checkpointer.announce(checkpointer.save(files(step), cut(step, offsets=nested)))
    (root / "journal").mkdir(exist_ok=True)
    segment, places = frames.MAGIC + frames.encode(0, Open(1, 0, {})), []
    for step in range(1, len(cuts) + 1):
        segment += frames.encode(step, Step(step, (Part((), "full", SAMPLES),)))
        places.append(len(segment))
    (root / "journal" / SEGMENT).write_bytes(segment)
    names = [version.name for version in Store(root).versions()]
    for number, (name, offsets) in enumerate(zip(names, cuts, strict=True), 1):
        fields = {
            "audit": audit(log, offsets),
            "journal": {"segment": SEGMENT, "byte": places[number - 1], "skip": []},
            "timeline": [[SEGMENT, 0, None]],
            "created": 1_700_000_000_000_000 + number * 10_000_000,
        }
        change(root, name, **{**fields, **changes})
    return Store(root).versions()


def change(root: Path, name: str, **fields: Any) -> Version:
    """Give a manifest other fields, and its child the `self` that it then has."""
    store = Store(root)
    rewrite(root, store.version(name), **fields)
    changed = store.version(name)
    (changed.path / "manifest.json").write_bytes(
        (root / "man" / f"M-{changed.seq:08d}").read_bytes()
    )
    for child in store.versions():
        if (child.manifest["parent"] or {}).get("version") == name:
            change(root, child.name, parent={"version": name, "self": changed.manifest["self"]})
    return store.version(name)


def audit(log: Log, offsets: Mapping[TopicPartition, int]) -> dict[str, dict[str, Any]]:
    """Return the audits of a log that was read up to these offsets."""
    found: dict[str, dict[str, Any]] = {}
    for (topic, partition), end in offsets.items():
        hasher = Hasher(topic, partition)
        records = log.records[topic, partition][:end]
        found.setdefault(topic, {})[str(partition)] = {
            "num_records": len(records),
            "sum64": sum(map(hasher, records)) % 2**64,
            "outcomes": {"accepted": len(records)},
            "last": [records[-1].offset, hasher(records[-1])] if records else None,
        }
    return found
