"""Refusals on record in a store: one file each, whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.artifact import Refusal, Store, StoreFailed
from learner.store import refusals
from learner.store.blobs import Disk
from tests.learner.saving import saved


def refusal(number: int) -> Refusal:
    return Refusal(version=f"v{number:06d}", reason="finite: x", server="shop-1:8080", at_us=7)


def test_a_refusal_is_read_by_others_until_it_is_withdrawn(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    store, other = Store(tmp_path), Store(tmp_path)
    assert other.refusal("v000002") is None
    store.withdraw_refusal("v000002")
    for _ in range(2):
        store.refuse(refusal(2))
    assert other.refusal("v000002") == refusal(2)
    assert other.refusal("v000003") is None
    other.withdraw_refusal("v000002")
    assert store.refusal("v000002") is None


def test_refusals_of_the_oldest_versions_are_forgotten_beyond_a_hundred(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    store = Store(tmp_path)
    for number in range(1, refusals.NUM_KEPT + 3):
        store.refuse(refusal(number))
    assert [store.refusal(f"v{number:06d}") is None for number in (1, 2, 3)] == [True, True, False]


def test_the_version_after_999_999_is_newer_than_those_before_it(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    store = Store(tmp_path)
    (tmp_path / refusals.FOLDER).mkdir()
    (tmp_path / refusals.FOLDER / ".another-server-writes.tmp").touch()
    for number in range(1_000_001 - refusals.NUM_KEPT, 1_000_002):
        store.refuse(refusal(number))
    assert store.refusal("v1000001") == refusal(1_000_001)
    assert store.refusal(f"v{1_000_001 - refusals.NUM_KEPT:06d}") is None
    assert (tmp_path / refusals.FOLDER / ".another-server-writes.tmp").exists()


def test_a_record_that_may_not_be_read_is_an_error_and_no_leave(tmp_path: Path) -> None:
    class Forbidden(Disk):
        def open(self, root: Path, relative: str) -> int:
            raise PermissionError(13, "Permission denied", relative)

    saved(tmp_path, 1)
    Store(tmp_path).refuse(refusal(2))
    with pytest.raises(PermissionError):
        Store(tmp_path, disk=Forbidden()).refusal("v000002")


NO_DATE = b'{"version":"v000002","reason":"x","server":"x","at":%d}'


@pytest.mark.parametrize(
    "damage",
    [b"", b"{}", b"\xff", b"[" * 10_000, NO_DATE % -1, NO_DATE % 10**18, NO_DATE % 10**30],
)
def test_a_damaged_record_refuses_nothing(tmp_path: Path, damage: bytes) -> None:
    saved(tmp_path, 1)
    store = Store(tmp_path)
    store.refuse(refusal(2))
    (tmp_path / refusals.FOLDER / "v000002.json").write_bytes(damage)
    assert store.refusal("v000002") is None


def test_a_store_that_cannot_be_written_to_is_an_error_that_names_the_step(tmp_path: Path) -> None:
    store = Store(tmp_path / "never made")
    with pytest.raises(StoreFailed, match="step refuse"):
        store.refuse(refusal(2))
