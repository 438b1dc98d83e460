"""A learner that stands still though records wait exits 75; the next one counts each once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.process.lifecycle import STALLED
from deploy.settings.tree import Settings
from learner.artifact import Store
from tests.consumers.shop import MALFORMED
from tests.kafka.conftest import Harmed
from tests.kafka.learning import Learner, Shop, open_shop, trained, until, words
from tests.kafka.reading import small

LEARN = ("-c", "from deploy.cli.app import main; main()", "learn")
STALL_SECONDS = 5.0  #: the least that there is


@pytest.fixture(scope="module")
def shop(harmed: Harmed) -> Shop:
    """All of it is on the broker before anybody learns.

    Without dead letters: one that is not acknowledged would end a learner as well.
    """
    shop = open_shop(harmed, num_events=1500)
    shop.written = [write for write in shop.written if write[2] not in MALFORMED]
    shop.end()
    return shop


def slow(shop: Shop, root: Path, port: int) -> Settings:
    """A learner that takes the log in small bites, by way of a port."""
    settings = shop.at(root, batch_size=32)
    servers = f"127.0.0.1:{port}"
    options = small(
        servers, max_poll_records=10, max_partition_fetch_bytes=4_000, fetch_max_bytes=8_000
    ).options
    return replace(
        settings,
        kafka=replace(
            settings.kafka,
            bootstrap_servers=servers,
            stall_seconds=STALL_SECONDS,
            options=options,
        ),
    )


@contextmanager
def process(
    settings: Settings, command: Sequence[str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as written:
        child = subprocess.Popen(
            [sys.executable, *command, *words(settings)],
            stdout=written,
            stderr=written,
        )
        try:
            yield child
        finally:
            child.kill()
            child.wait()


def learn_the_rest(settings: Settings, shop: Shop) -> None:
    """The one that is started next: nothing was lost, nothing counts twice."""
    before = Store(settings.store.root).versions()[-1]
    with Learner(settings) as learner:
        learner.version(lambda version: trained(version).num >= shop.trained().num)
    after = Store(settings.store.root).versions()[-1]
    assert (trained(after), after.next_offsets) == (shop.trained(), shop.ends)
    assert after.epoch == before.epoch + 1


@pytest.mark.long
def test_a_learner_that_reads_nothing_though_records_wait_exits_75_and_the_next_learns_all_once(
    harmed: Harmed, shop: Shop, tmp_path: Path
) -> None:
    settings, store, log = (
        slow(shop, tmp_path / "store", harmed.proxy.port),
        Store(tmp_path / "store"),
        tmp_path / "log",
    )
    try:
        with process(settings, LEARN, log) as child:
            until(
                lambda: True if any(found.step for found in store.versions()) else None,
                lambda: child.poll() is not None,
            )
            harmed.proxy.fault, harmed.proxy.num_faults_left = (
                "silence",
                1 << 30,
            )  # a black hole, also for the new consumer
            until(child.poll)
            assert child.returncode == STALLED, log.read_text()
    finally:
        harmed.proxy.clear()
    text = log.read_text()
    assert "a new consumer is needed" in text
    assert "the process ends" in text
    assert store.versions()[-1].next_offsets != shop.ends
    learn_the_rest(replace(settings, kafka=shop.at(settings.store.root).kafka), shop)


def test_a_learner_whose_step_never_returns_exits_75_and_the_next_one_learns_each_event_once(
    harmed: Harmed, shop: Shop, tmp_path: Path
) -> None:
    settings, log = slow(shop, tmp_path / "store", harmed.node.port), tmp_path / "log"
    settings = replace(
        settings, learner=replace(settings.learner, step_timeout_seconds=STALL_SECONDS)
    )
    with process(settings, ("-m", "tests.kafka.stuck"), log) as child:
        until(child.poll)
        assert child.returncode == STALLED, log.read_text()
    assert Store(settings.store.root).versions()[-1].step <= 5
    learn_the_rest(settings, shop)
