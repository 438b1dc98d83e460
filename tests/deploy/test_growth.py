"""Partitions added under a learner that dies around it: each record once, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from deploy.roles.start import counts_of
from deploy.verification.relearn import relearn
from learner.artifact import Store
from tests.consumers.shop import TOPICS, partition_of
from tests.deploy.whole import SETTINGS, Shop, live, trained, versions
from tests.fakes.disk import Call, Crash, Die, Fault, FaultyDisk
from tests.fakes.log import Log

FIRST = 60  # records that are written before the topics grow


@dataclass
class Growing:
    """The log of a shop whose topics grow from 2 to 4 partitions once its beginning was read."""

    whole: Shop = field(default_factory=lambda: Shop.invented(3, 120))
    log: Log = field(default_factory=lambda: Log([(t, p) for t in TOPICS for p in range(2)]))
    grown: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        records = [r for of_one in self.whole.log.records.values() for r in of_one]
        records.sort(key=lambda r: (r.timestamp_us < 0, r.timestamp_us))
        # Of two copies in two partitions, the one that is read first counts: that is no matter here
        self.left = list({(r.topic, r.key, r.value): r for r in reversed(records)}.values())[::-1]
        self._write(FIRST, 2)

    def _write(self, num: int, count: int) -> None:
        now, self.left = self.left[:num], self.left[num:]
        for r in now:
            client = (r.key or b"").decode()
            last = client.startswith("end-")  # some close the windows of each partition
            numbers = range(count) if last else [partition_of(client, count)]
            for p in numbers if not last or client.startswith("end-0-") else ():
                value = r.value if not last else (r.value or b"").replace(b"end-0-", b"end-%d-" % p)
                self.log.append(r.topic, p, value, key=r.key, timestamp_us=r.timestamp_us)

    def each(self, reader: Log) -> None:
        if self.left and reader.exhausted:
            for topic in TOPICS:
                self.log.grow(topic, 4)
            self._write(len(self.left), 4)
            self.grown()


def test_every_record_counts_once_wherever_the_learner_dies_while_topics_grow(
    tmp_path: Path,
) -> None:
    calls, at = list[Call](), list[int]()

    def counted(call: Call) -> Fault | None:
        calls.append(call)
        return None

    growing = Growing(grown=lambda: at.append(len(calls)))
    live(tmp_path / "whole", growing.log, FaultyDisk(counted), 1, each=growing.each)
    wanted = trained(tmp_path / "whole")
    assert wanted[0] == growing.whole.trained[0], "the names of samples have their partitions"
    for index in range(at[0], min(at[0] + 100, len(calls)), 25):
        root, again, number = tmp_path / str(index), Growing(), [0]

        def dies(call: Call, number: list[int] = number, index: int = index) -> Fault | None:
            number[0] += 1
            return Die("after") if number[0] == index else None

        with pytest.raises(Crash):
            live(root, again.log, FaultyDisk(dies), 1, each=again.each)
        live(root, again.log, FaultyDisk(), 2, each=again.each)
        assert trained(root) == wanted, index
        first, *_, last = versions(root)
        assert counts_of(last) == dict.fromkeys(TOPICS, 4)
        learned = relearn(SETTINGS, Store(root), again.log.reader(), first, last)
        assert not [each for each in learned if each.differs], index


@pytest.mark.parametrize("run_ahead", [False, True])
def test_a_checkpoint_follows_at_once_and_learning_again_goes_across(
    tmp_path: Path, run_ahead: bool
) -> None:
    growing = Growing()
    settings = replace(SETTINGS, learner=replace(SETTINGS.learner, run_ahead=run_ahead))
    live(tmp_path, growing.log, FaultyDisk(), 1, settings=settings, each=growing.each)
    store = Store(tmp_path)
    counts = [(counts_of(version) or {})["clicks"] for version in store.versions()]
    assert set(counts) == {2, 4}
    assert counts == sorted(counts)
    first, *others = store.versions()
    passed = list(relearn(SETTINGS, store, growing.log.reader(), first, others[-1]))
    assert [each.version for each in passed] == [version.name for version in others]
    assert not [each for each in passed if each.differs]
