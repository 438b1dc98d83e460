"""Several ranks, started by torchrun: with any number and any kill, each event counts once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from consumers.audit import Hasher
from deploy.admin import kafka_commands
from deploy.admin.offsets.plan import ResetRequest
from deploy.admin.offsets.scopes import Scope
from deploy.admin.offsets.targets import Target
from deploy.settings.tree import Settings
from learner.artifact import Store, Version
from learner.store import commands
from tests.kafka.conftest import Cluster
from tests.kafka.learning import (
    NEWCOMER,
    Shop,
    contents,
    early,
    give,
    json_output,
    last_clients,
    open_shop,
    outcomes,
    trained,
    until,
    words,
)

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
                if (
                    found.run_state.world_size == world
                    and trained(found).num >= num_samples
                    and found.epoch >= epoch
                ):
                    return found
            return None

        try:
            return until(look, lambda: self.launcher.poll() is not None, seconds=90)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.log.read_text()[-5000:]}") from error

    def done(self, command_id: int) -> None:
        """Wait until a command has been carried out."""

        def is_done() -> bool | None:
            answer = commands.answered(self.store.root, command_id) or {}
            return answer.get("state") == commands.DONE or None

        until(is_done, lambda: self.launcher.poll() is not None)

    def pids(self) -> list[int]:
        """Return the process ids of the ranks, in any order."""
        children = (
            Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children").read_text().split()
        )
        return [pid for pid in map(int, children) if b"learn" in _command(pid)]


def _command(pid: int) -> bytes:
    """Return the command line of a process, nothing of one that has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


@contextmanager
def ranks(settings: Settings, num_ranks: int, log: Path) -> Iterator[Group]:
    """Run `steelyard learn` in so many ranks; leaving it sends SIGTERM and checks every exit."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(num_ranks),
        "--max_restarts",
        "3",
    ]
    command += [
        "--monitor_interval",
        "0.1",
        "--standalone",
        "--local_addr",
        "127.0.0.1",
        "--no_python",
    ]
    command += [
        sys.executable,
        "-c",
        "from deploy.cli.app import main; main()",
        "learn",
        *words(settings),
    ]
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    with (
        log.open("ab") as written,
        subprocess.Popen(command, stdout=written, stderr=written, env=env) as launcher,
    ):
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
    until(
        lambda: (
            True
            if (now := group.pids()) and not set(now) & set(before) and len(now) == len(before)
            else None
        )
    )


def check(shop: Shop, version: Version) -> None:
    """All of the log, each record once, and the samples that one rank makes of it."""
    assert version.next_offsets == shop.ends
    for (topic, partition), records in shop.log.records.items():
        found = version.manifest["audit"][topic][str(partition)]
        hasher = Hasher(topic, partition)
        assert found["num_records"] == len(records)
        assert found["sum64"] == sum(map(hasher, records)) % (1 << 64)
    assert trained(version) == shop.trained()


def test_two_ranks_of_which_one_is_killed_learn_each_event_once_and_go_back_by_command(
    broker: Cluster, tmp_path: Path
) -> None:
    shop = open_shop(broker, num_events=1200, num_partitions=NUM_PARTITIONS)
    settings, store = shop.at(tmp_path / "store"), Store(tmp_path / "store")
    shop.begin()
    with ranks(settings, 2, tmp_path / "log") as group:
        first = group.version(world=2, num_samples=1)
        kill_one(group)
        shop.end()
        wanted = shop.trained()
        check(shop, group.version(world=2, num_samples=wanted.num, epoch=first.epoch + 1))
        give(settings, version=first.name, mode="anew")
        group.done(1)
        version = group.version(world=2, num_samples=wanted.num)
    assert version.run_state.commands_taken == 1
    check(shop, store.versions()[-1])


@pytest.mark.long
def test_from_one_rank_to_two_to_three_and_back_with_a_kill_between_each_event_counts_once(
    broker: Cluster, tmp_path: Path
) -> None:
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
    assert not store.versions()[-1].run_state.bit_exact, (
        "another number of ranks adds up in another order"
    )


@pytest.fixture(scope="module")
def shop(broker: Cluster) -> Shop:
    return open_shop(broker, num_events=1200, num_partitions=NUM_PARTITIONS)


@pytest.fixture(scope="module")
def learned(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two ranks that have read all of the log and were stopped."""
    folder = tmp_path_factory.mktemp("learned")
    shop.begin()
    with ranks(shop.at(folder / "store"), 2, folder / "log") as group:
        group.version(world=2, num_samples=1)
        shop.end()
        group.version(world=2, num_samples=shop.trained().num)
    check(shop, Store(folder / "store").versions()[-1])
    return folder / "store"


@pytest.fixture
def root(learned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(learned, tmp_path / "store"))


def before_the_command(store: Store, kind: str) -> Version:
    """The last checkpoint before a command was taken: the way back."""
    (taken,) = [found for found in store.manifests() if found.kind == kind]
    return next(version for version in reversed(store.versions()) if version.seq < taken.seq)


@pytest.mark.long
def test_two_ranks_go_back_and_repeat_it_bit_by_bit(shop: Shop, root: Path, tmp_path: Path) -> None:
    settings, store = shop.at(root), Store(root)
    back = early(store)
    with ranks(settings, 2, tmp_path / "log") as group:
        group.version(world=2, num_samples=1, epoch=2)
        group.done(give(settings, version=back.name, mode="as-it-was"))
    after, before = store.versions()[-1], before_the_command(store, "restore")
    assert after.step == before.step > back.step + 5
    assert contents(after) == contents(before)
    assert after.run_state.bit_exact
    assert before.name not in {kept.name for kept in store.lineage(after.name)}
    check(shop, after)


@pytest.mark.long
def test_offsets_moved_back_are_read_again_by_the_ranks_that_own_them_and_count_once(
    shop: Shop, root: Path, tmp_path: Path
) -> None:
    settings, store = shop.at(root), Store(root)
    topic = settings.kafka.topics.exposures
    assert topic is not None
    with ranks(settings, 2, tmp_path / "log") as group:
        group.version(world=2, num_samples=1, epoch=2)
        request = ResetRequest(
            scope=Scope(topics=(topic,)),
            target=Target(name="shift-by", value="-1"),
            execute=True,
            yes=True,
        )
        out, written = json_output()
        assert kafka_commands.reset(settings, out, settings.kafka.group_id, request) == 0
        group.done(written[-1]["order"])
        after = until(
            lambda: next(
                (
                    found
                    for found in store.versions()
                    if found.epoch == 3 and found.next_offsets == shop.ends
                ),
                None,
            )
        )
    before = before_the_command(store, "reset")
    assert outcomes(after) - outcomes(before) == {"duplicate": NUM_PARTITIONS}
    assert trained(after) == trained(before) == shop.trained()
    (reset,) = store.versions()[-1].run_state.resets
    assert reset.offsets == {
        topic: {p: (shop.ends[topic, p], shop.ends[topic, p] - 1) for p in range(NUM_PARTITIONS)}
    }


@pytest.mark.long
def test_who_is_excluded_is_in_nothing_that_two_ranks_trained_on(
    shop: Shop, root: Path, tmp_path: Path
) -> None:
    settings, store = shop.at(root), Store(root)
    without = shop.trained(without=NEWCOMER)
    assert NEWCOMER not in last_clients(NUM_PARTITIONS)
    assert 0 < without.num < shop.trained().num
    listed = tmp_path / "excluded"
    listed.write_text(f"client_id:{NEWCOMER}\n")
    with ranks(settings, 2, tmp_path / "log") as group:
        group.version(world=2, num_samples=1, epoch=2)
        command_id = give(settings, exclude=listed)
        group.done(command_id)
    after = store.versions()[-1]
    assert (trained(after), after.next_offsets) == (without, shop.ends)
    assert outcomes(after)["excluded"] > 0
    assert after.run_state.exclusions is not None
    assert (after.run_state.exclusions.num, after.run_state.exclusions.command) == (1, command_id)
