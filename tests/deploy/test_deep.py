"""Learning again: a learner that crashed leaves what the journal gives; differences are named."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.settings.tree import Settings
from deploy.verification.journal_steps import Unlearnable
from deploy.verification.relearn import relearn
from learner.artifact import Corrupt, Store
from learner.errors import LogRewritten
from tests.deploy.whole import SETTINGS, Shop, live, trained, versions
from tests.fakes.disk import Crash, Die, FaultyDisk, at
from tests.fakes.log import Log
from weighting.config import WeigherConfig


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop.invented(3, 260)


def crashed(root: Path, shop: Shop, **options: object) -> None:
    """Lives that die at some call each, and one that comes to the end."""
    for number, index in enumerate((190, 260, 60, 333, 25)):
        with pytest.raises(Crash):
            live(root, shop.log, FaultyDisk(at(index, Die("after"))), number)
    live(root, shop.log, FaultyDisk(), 99, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def store(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("deep") / "store"
    crashed(root, shop)
    return Store(root)


def test_every_version_of_a_learner_that_crashed_has_the_bytes_of_one_that_did_not(
    store: Store, shop: Shop
) -> None:
    first, *_, last = store.versions()
    assert trained(store.root) == shop.trained
    assert last.epoch == 6
    passed = list(relearn(SETTINGS, store, shop.log.reader(max_records=40), first, last))
    assert [each.version for each in passed] == [version.name for version in store.versions()[1:]]
    assert not [each for each in passed if each.differs]
    half = store.versions()[len(passed) // 2]
    assert not [
        each for each in relearn(SETTINGS, store, shop.log.reader(), half, last) if each.differs
    ]


def test_a_version_may_be_cut_while_another_batch_is_ready(tmp_path: Path) -> None:
    shop = Shop.invented(3, 60)
    small = replace(
        SETTINGS, learner=replace(SETTINGS.learner, batch_size=4, publish_every_seconds=0.01)
    )
    live(tmp_path, shop.log, FaultyDisk(), 5, settings=small, named=small)
    store = Store(tmp_path)
    first, *others = store.versions()
    for until in others[::4]:
        passed = list(relearn(small, store, shop.log.reader(), first, until))
        assert [each.version for each in passed] == [
            version.name for version in others if version.seq <= until.seq
        ]
        assert not [each for each in passed if each.differs]


def test_a_learner_with_other_random_numbers_after_a_crash_is_found_out(
    shop: Shop, tmp_path: Path
) -> None:
    other = replace(SETTINGS, learner=replace(SETTINGS.learner, seed=1))
    crashed(tmp_path, shop, settings=other)
    first, *_, last = versions(tmp_path)
    passed = list(relearn(SETTINGS, Store(tmp_path), shop.log.reader(), first, last))
    differs = [each for each in passed if each.differs]
    assert 0 < len(differs) < len(passed)
    assert "model.safetensors" in differs[-1].differs
    assert "training/part-0.msgpack" not in differs[-1].differs


def test_a_learner_of_the_default_size_that_crashed_is_equal_too(tmp_path: Path) -> None:
    """No variable of the environment limits its threads, and its cache of prefixes is lost."""
    usual = replace(
        SETTINGS,
        learner=replace(
            SETTINGS.learner,
            model="random:2x384",
            tuning="top:1",
            batch_size=320,
            threads=2,
        ),
    )
    shop = Shop.invented(4, 700)
    for number, index in enumerate((60, 45, 40)):
        disk = FaultyDisk(at(index, Die("after")))
        with pytest.raises(Crash):
            live(tmp_path, shop.log, disk, number, settings=usual, named=usual)
    live(tmp_path, shop.log, FaultyDisk(), 99, settings=usual, named=usual)
    first, *others = versions(tmp_path)
    assert others[-1].epoch == 4
    assert others[-1].step > 3
    passed = list(relearn(usual, Store(tmp_path), shop.log.reader(), first, others[-1]))
    assert [each.version for each in passed] == [version.name for version in others]
    assert not [each for each in passed if each.differs]


def test_a_learner_whose_estimators_learn_per_batch_and_that_crashed_is_equal_too(
    shop: Shop, tmp_path: Path
) -> None:
    """It goes on from a store of one whose estimators learned list by list."""
    per_batch = replace(SETTINGS, weighting=WeigherConfig(update_per="batch", exponent=1.0))
    with pytest.raises(Crash):
        live(tmp_path, shop.log, FaultyDisk(at(300, Die("after"))), 0)
    before = versions(tmp_path)[-1]
    named: dict[str, Settings] = {"settings": per_batch, "named": per_batch}
    for number, index in enumerate((300, 190)):
        disk, tail = FaultyDisk(at(index, Die("after"))), number > 0
        with pytest.raises(Crash):
            live(tmp_path, shop.log, disk, number, **named, keep_tail=tail)  # type: ignore[arg-type]
    live(tmp_path, shop.log, FaultyDisk(), 99, **named)  # type: ignore[arg-type]
    assert trained(tmp_path) == shop.trained
    _, *others = [version for version in versions(tmp_path) if version.seq > before.seq]
    passed = list(relearn(per_batch, Store(tmp_path), shop.log.reader(), others[0], others[-1]))
    assert len(passed) > 2
    assert not [each for each in passed if each.differs]


def rewritten(log: Log) -> Log:
    changed = Log(log.records, max_records=40)
    for tp, records in log.records.items():
        for record in records:
            again = tp == ("exposures", 0) and record.offset == 20
            changed.append(
                *tp,
                records[21].value if again else record.value,
                key=record.key,
                timestamp_us=record.timestamp_us,
            )
    return changed


def test_a_log_that_was_changed_is_not_learned(store: Store, shop: Shop) -> None:
    first, *_, last = store.versions()
    with pytest.raises(LogRewritten):
        list(relearn(SETTINGS, store, rewritten(shop.log), first, last))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (replace(SETTINGS, learner=replace(SETTINGS.learner, lr=2e-4)), "under other settings"),
        (replace(SETTINGS, learner=replace(SETTINGS.learner, threads=8)), "under other settings"),
    ],
)
def test_what_would_rightly_be_other_bytes_is_refused(
    store: Store, shop: Shop, settings: object, why: str
) -> None:
    first, *_, last = store.versions()
    with pytest.raises(Unlearnable, match=why):
        list(relearn(settings, store, shop.log.reader(), first, last))  # type: ignore[arg-type]


def test_a_journal_that_does_not_lead_there_is_named(
    store: Store, shop: Shop, tmp_path: Path
) -> None:
    root = shutil.copytree(store.root, tmp_path / "store")
    first, *_, last = versions(root)
    assert last.journal is not None
    segment = root / "journal" / last.journal.segment
    segment.write_bytes(segment.read_bytes()[:-3])
    with pytest.raises(Corrupt, match=f"journal/{last.journal.segment}"):
        list(relearn(SETTINGS, Store(root), shop.log.reader(), first, last))
