"""A checkpoint of several ranks holds what all of them have together."""

from __future__ import annotations

from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry

from learner.artifact import Store
from learner.publish import Identity, IngestState, Publisher
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.store.journal.writer import Journal
from learner.store.writer import BackgroundWriter
from learner.telemetry import Telemetry
from tests.fakes.clock import ManualClock
from tests.learner.saving import cut
from tests.learner.training import trainer
from weighting.provenance import Audit, Offsets, TopicPartition

FIRST, SECOND, ITEMS = ("clicks", 0), ("clicks", 1), ("items", 0)


def state(name: str, offsets: dict[TopicPartition, int], *, num_polls: int) -> IngestState:
    return IngestState(
        parts={name: name.encode()},
        offsets=Offsets(offsets),
        watermark_us=sum(offsets.values()),
        num_polls=num_polls,
        audit={partition: Audit(num_records=offset) for partition, offset in offsets.items()},
    )


class TwoRanks:
    """Group of rank 0 and a second rank whose ingest state is given."""

    rank = 0
    world = 2

    def __init__(self, second: IngestState) -> None:
        self._second = msgspec.msgpack.encode(second, enc_hook=Offsets.nested)

    def gather(self, data: bytes) -> list[bytes]:
        return [data, b"" if data in (b"", b"new") else self._second]

    def sum_(self, tensors: object) -> None: ...

    def broadcast(self, data: bytes | None) -> bytes:
        assert data is not None
        return data

    def close(self) -> None: ...


def test_the_offset_of_a_partition_that_both_ranks_read_is_the_least(tmp_path: Path) -> None:
    own = state("rank-0", {FIRST: 7, ITEMS: 5}, num_polls=1)
    second = state("rank-1", {SECOND: 3, ITEMS: 4}, num_polls=2)
    checkpointer = Checkpointer(tmp_path, Disk(), lambda: 1_700_000_100.0)
    acquired = checkpointer.acquire(Journal(tmp_path, Disk()), initial=cut(0))
    publisher = Publisher(
        trainer(),
        BackgroundWriter(checkpointer),
        lambda: own,
        Telemetry(CollectorRegistry()),
        clock=ManualClock(),
        identity=Identity(config_sha256="0" * 64, fingerprint={}, inputs={}),
        journal=acquired.journal,
        process_group=TwoRanks(second),
    )
    publisher.take_checkpoint()
    publisher.close()

    (version,) = Store(tmp_path).versions()
    assert version.next_offsets == {FIRST: 7, SECOND: 3, ITEMS: 4}
    assert version.manifest["audit"]["items"]["0"]["num_records"] == 4
    assert version.manifest["journal"]["skip"] == [1, 2]
    assert version.manifest["watermark"] == 7
    for name in ("rank-0", "rank-1"):
        assert Store(tmp_path).read(version, f"training/{name}.msgpack") == name.encode()
