"""Several ranks, started by torchrun: whatever their number and whoever of them is killed, each event counts once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from consumers.audit import Hasher
from deploy import operators, orders, replay
from deploy.settings import Settings
from learner.artifact import Store, Version
from tests.kafka.conftest import Cluster
from tests.kafka.learning import Shop, open_shop, told, trained, until, words

NUM_PARTITIONS = 3


@dataclass(frozen=True)
class Group:
    """Ranks that run, and the torchrun that starts them again."""

    launcher: subprocess.Popen[bytes]
    store: Store
    log: Path

    def version(self, *, world: int, num_samples: int, epoch: int = 0) -> Version:
        """Wait for a checkpoint of so many ranks with at least so many samples."""

        def look() -> Version | None:
            for found in self.store.versions()[-1:]:
                if found.standing.world_size == world and trained(found).num >= num_samples and found.epoch >= epoch:
                    return found
            return None

        try:
            return until(look, lambda: self.launcher.poll() is not None, seconds=90)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.log.read_text()[-5000:]}") from error

    def pids(self) -> list[int]:
        """Of the ranks, in no order."""
        children = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children").read_text().split()
        return [pid for pid in map(int, children) if b"learn" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@contextmanager
def ranks(settings: Settings, num_ranks: int, log: Path) -> Iterator[Group]:
    """Run `steelyard learn` in so many ranks; leaving it sends SIGTERM, and every rank must end in good order."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(num_ranks), "--max_restarts", "3"]
    command += ["--monitor_interval", "0.1", "--standalone", "--local_addr", "127.0.0.1", "--no_python"]
    command += [sys.executable, "-c", "from deploy.cli import main; main()", "learn", *words(settings)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with log.open("ab") as written, subprocess.Popen(command, stdout=written, stderr=written, env=env) as launcher:
        try:
            yield Group(launcher, Store(settings.store.root), log)
        finally:
            launcher.send_signal(signal.SIGTERM)
            try:
                launcher.wait(60)
            except subprocess.TimeoutExpired:
                launcher.kill()
                raise


def kill_one(group: Group) -> None:
    """SIGKILL to one rank: the others cannot go on without it, and all are started again."""
    before = group.pids()
    os.kill(before[-1], signal.SIGKILL)
    until(lambda: True if (now := group.pids()) and not set(now) & set(before) and len(now) == len(before) else None)


def check(shop: Shop, version: Version) -> None:
    """All of the log, each record once, and the samples that one rank makes of it."""
    assert version.next_offsets == shop.ends
    for (topic, partition), records in shop.log.records.items():
        found = version.manifest["audit"][topic][str(partition)]
        hasher = Hasher(topic, partition)
        assert found["num_records"] == len(records)
        assert found["sum64"] == sum(map(hasher, records)) % (1 << 64)
    assert trained(version) == shop.trained()


def test_two_ranks_of_which_one_is_killed_learn_each_event_once_and_go_back_by_order(broker: Cluster, tmp_path: Path) -> None:
    shop = open_shop(broker, num_events=1200, num_partitions=NUM_PARTITIONS)
    settings, store = shop.at(tmp_path / "store"), Store(tmp_path / "store")
    shop.begin()
    with ranks(settings, 2, tmp_path / "log") as group:
        early = group.version(world=2, num_samples=1)
        kill_one(group)
        shop.end()
        wanted = shop.trained()
        check(shop, group.version(world=2, num_samples=wanted.num, epoch=early.epoch + 1))
        out, _ = told()
        request = replay.Request(version=early.name, mode="anew", execute=True, yes=True)
        assert operators.replay(settings, out, request, learn="steelyard learn") == 0
        until(lambda: True if (orders.answered(store.root, 1) or {}).get("state") == orders.DONE else None)
        version = group.version(world=2, num_samples=wanted.num)
    assert version.standing.orders_taken == 1
    check(shop, store.versions()[-1])


@pytest.mark.long
def test_from_one_rank_to_two_to_three_and_back_with_a_kill_between_each_event_counts_once(broker: Cluster, tmp_path: Path) -> None:
    shop = open_shop(broker, num_events=3000, num_partitions=NUM_PARTITIONS)
    settings, store = shop.at(tmp_path / "store"), Store(tmp_path / "store")
    num = 0
    for number, num_ranks in enumerate((1, 2, 3)):
        shop.begin(1 / (4 - number))
        with ranks(settings, num_ranks, tmp_path / "log") as group:
            found = group.version(world=num_ranks, num_samples=num + 1)
            if num_ranks == 2:
                kill_one(group)
                group.version(world=2, num_samples=num + 1, epoch=found.epoch + 1)
        num = trained(store.versions()[-1]).num
    with ranks(settings, 1, tmp_path / "log") as group:
        shop.end()
        check(shop, group.version(world=1, num_samples=shop.trained().num))
    assert not store.versions()[-1].standing.bit_exact, "another number of ranks adds up in another order"
