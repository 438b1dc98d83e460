"""Aliases move as a whole, by gate or operator, and survive every crash."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from learner.artifact import Corrupt, Store, StoreFailed, VersionMissing
from learner.store.aliases import ALIASES
from tests.fakes.disk import Crash, Die, Fail, FaultyDisk, at, on
from tests.learner.saving import saved


def names(**changes: str) -> dict[str, str | None]:
    return {**dict.fromkeys(ALIASES), **changes}


@pytest.mark.parametrize(
    "written", [b"", b"[]", b'{"version":"../x"}', b'{"version":null}', b"[" * 70_000]
)
def test_a_damaged_announcement_is_refused(tmp_path: Path, written: bytes) -> None:
    saved(tmp_path, 1)
    (tmp_path / "control" / "announced.json").write_bytes(written)
    with pytest.raises(Corrupt, match=r"control/announced\.json"):
        Store(tmp_path).announced()


def test_promoting_moves_champion_and_previous_and_twice_is_once(tmp_path: Path) -> None:
    first, second = saved(tmp_path, 1, 2)
    store = Store(tmp_path)
    store.promote(first)
    assert store.aliases() == names(champion="v000002")
    store.promote(second)
    store.promote(second)
    assert store.aliases() == names(champion="v000003", previous="v000002")
    assert store.version("@champion").name == "v000003"
    assert store.version("@previous").name == "v000002"


def test_what_an_operator_promotes_is_pinned_until_it_is_the_announced_version(
    tmp_path: Path,
) -> None:
    first, second, third = saved(tmp_path, 1, 2, 3)
    store = Store(tmp_path)
    store.promote(third)
    store.promote(first, by_operator=True)
    assert store.aliases() == names(pinned="v000002", champion="v000002", previous="v000004")
    store.promote(second)
    assert store.aliases()["champion"] == "v000002", "only an operator moves it away from a pin"
    store.promote(third, by_operator=True)
    assert store.aliases() == names(champion="v000004", previous="v000002")


def test_a_challenger_is_named_without_moving_the_champion(tmp_path: Path) -> None:
    first, second = saved(tmp_path, 1, 2)
    store = Store(tmp_path)
    store.promote(first)
    store.promote(second, alias="challenger", by_operator=True)
    assert store.aliases() == names(champion="v000002", challenger="v000003")


def test_a_version_that_is_gone_is_not_promoted(tmp_path: Path) -> None:
    first, _ = saved(tmp_path, 1, 2)
    (tmp_path / "man" / "M-00000002").unlink()
    with pytest.raises(VersionMissing):
        Store(tmp_path).promote(first)
    assert Store(tmp_path).aliases()["champion"] is None


def test_aliases_are_the_old_or_the_new_ones_wherever_promote_dies_or_fails(tmp_path: Path) -> None:
    first, second = saved(tmp_path, 1, 2)
    healthy = FaultyDisk()
    Store(tmp_path, disk=healthy).promote(first)
    for index in range(len(healthy.calls)):
        (tmp_path / "control" / "aliases.json").unlink()
        Store(tmp_path).promote(first)
        disk = FaultyDisk(at(index, Die("middle")))
        with pytest.raises(Crash):
            Store(tmp_path, disk=disk).promote(second)
        disk.lose_power(data=True, names=True)
        assert Store(tmp_path).aliases()["champion"] in ("v000002", "v000003")
    Store(tmp_path).promote(first)
    with pytest.raises(StoreFailed, match=r"promote failed with ENOSPC"):
        Store(tmp_path, disk=FaultyDisk(on("write", 0, Fail(errno.ENOSPC)))).promote(second)
    assert Store(tmp_path).aliases()["champion"] == "v000002"


def test_aliases_that_are_paths_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / "control" / "aliases.json").write_bytes(b'{"champion":"../../x"}')
    with pytest.raises(Corrupt, match="champion"):
        Store(tmp_path).version("@champion")
