"""Serving loads whole versions only, by names that cannot be paths."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from learner.artifact import Corrupt, FormatUnknown, Store, VersionMissing
from tests.learner.saving import cut, files, owner, rewrite, saved

Damage = Callable[[Path], None]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def remove(path: Path) -> None:
    path.unlink()


def swap(path: Path) -> None:
    """Put the same file of the version before in its place."""
    before = path.parent.parent / path.parent.name.replace("3", "2") / path.name
    path.write_bytes(before.read_bytes())


def relink(path: Path) -> None:
    """The right bytes, but behind a link."""
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


DAMAGES: list[Damage] = [flip, truncate, extend, remove, swap, relink]


def test_an_empty_or_missing_store_has_no_versions(tmp_path: Path) -> None:
    store = Store(tmp_path / "missing")
    assert (store.announced(), store.versions(), store.aliases()["champion"]) == (None, [], None)
    with pytest.raises(VersionMissing, match="none yet"):
        store.version("v000002")


def test_a_version_tells_what_its_manifest_says(tmp_path: Path) -> None:
    saved(tmp_path, 3, 4)
    version = Store(tmp_path).version("v000003")
    assert (version.name, version.seq, version.step, version.num_samples) == ("v000003", 3, 4, 128)
    assert version.event_time_us == 1_700_000_004_000_000
    assert version.created_us == 1_700_000_100_000_000
    assert version.next_offsets == {("clicks", 0): 40, ("clicks", 1): 44, ("exposures", 0): 400}
    assert version.path == tmp_path / "blobs" / "000001-00000003"
    assert [found.name for found in Store(tmp_path).versions()] == ["v000002", "v000003"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: Damage) -> None:
    _, version = saved(tmp_path, 1, 2)
    store = Store(tmp_path)
    damage(version.path / "model.safetensors")
    digests = r"expected sha256 [0-9a-f]{64}, 5000 bytes, found "
    with pytest.raises(
        Corrupt, match=rf"blobs/000001-00000003/model\.safetensors: {digests}"
    ) as raised:
        store.verify(version)
    assert raised.value.expected != raised.value.found
    with pytest.raises(Corrupt, match=r"model\.safetensors"):
        store.read(version, "model.safetensors")
    with pytest.raises(Corrupt, match=r"model\.safetensors"):  # before anything is parsed
        store.load(version)
    store.verify(store.version("v000002"))


def test_a_folder_behind_a_link_is_refused(tmp_path: Path) -> None:
    (version,) = saved(tmp_path / "store", 1)
    version.path.rename(tmp_path / "elsewhere")
    version.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Corrupt, match="symbolic link"):
        Store(tmp_path / "store").verify(version)


def test_a_damaged_manifest_is_refused_by_name_and_the_others_stay(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    store = Store(tmp_path)
    flip(tmp_path / "man" / "M-00000003")
    with pytest.raises(Corrupt, match="man/M-00000003"):
        store.version("v000003")
    assert [version.name for version in store.versions()] == ["v000002"]


def test_a_manifest_under_another_number_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    first, second = tmp_path / "man" / "M-00000002", tmp_path / "man" / "M-00000003"
    second.unlink()
    second.hardlink_to(first)
    with pytest.raises(Corrupt, match="expected the manifest of v000003, found that of v000002"):
        Store(tmp_path).version("v000003")


def test_a_commit_mark_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (version,) = saved(tmp_path, 1)
    mark = tmp_path / "man" / "M-00000002"
    mark.unlink()
    mark.symlink_to(version.path / "manifest.json")
    with pytest.raises(Corrupt, match="symbolic link"):
        Store(tmp_path).version("v000002")


@pytest.mark.parametrize(
    "path", ["../../../etc/passwd", "/etc/passwd", "blobs/000001-00000002/../../control/x"]
)
def test_a_forged_manifest_opens_nothing_outside_its_folder(tmp_path: Path, path: str) -> None:
    (version,) = saved(tmp_path, 1)
    rewrite(tmp_path, version, files={path: {"sha256": "0" * 64, "size": 1}})
    with pytest.raises(Corrupt, match="normalised paths"):
        Store(tmp_path).version("v000002")


def test_a_version_of_an_unknown_format_is_refused(tmp_path: Path) -> None:
    (version,) = saved(tmp_path, 1)
    rewrite(tmp_path, version, format=3)
    with pytest.raises(FormatUnknown, match="format: expected one of 1, 2, got 3"):
        Store(tmp_path).version("v000002")


def test_a_version_of_a_later_format_hides_no_other(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (later,) = saved(tmp_path, 3)
    rewrite(tmp_path, later, format=99)
    store = Store(tmp_path)
    assert later.name not in {version.name for version in store.readable()}
    assert store.readable()
    with pytest.raises(VersionMissing, match="v000099"):
        store.version("v000099")


def test_a_version_whose_parent_was_exchanged_is_refused(tmp_path: Path) -> None:
    first, second = saved(tmp_path, 1, 2)
    rewrite(tmp_path, first, samples=7)
    with pytest.raises(Corrupt, match="parent v000002"):
        Store(tmp_path).verify(second)


@pytest.mark.parametrize(
    "name", ["v000010", "v1", "../man/M-00000002", "v000002/", "@champion", "@nobody", "", "@"]
)
def test_a_name_that_is_no_version_is_refused_and_the_known_ones_are_named(
    tmp_path: Path, name: str
) -> None:
    saved(tmp_path, 1, 2)
    with pytest.raises(VersionMissing, match="v000002, v000003"):
        Store(tmp_path).version(name)


def test_fresh_events_are_those_of_all_versions_in_between(tmp_path: Path) -> None:
    checkpointer = owner(tmp_path)
    for step, fresh in enumerate([((10, 1), (20, 2)), ((20, 3),), ((30, 4),)], start=1):
        checkpointer.save(files(step), cut(step, fresh_events=fresh))
    store = Store(tmp_path)
    assert store.fresh_events("v000002", "v000004") == [(20, 3), (30, 4)]
    assert store.fresh_events(None, "v000004") == [(10, 1), (20, 5), (30, 4)]
    assert store.fresh_events("v000004", "v000004") == []
    assert store.fresh_events("v000004", "v000002") == []  # a rollback makes nothing fresh
    (tmp_path / "man" / "M-00000002").unlink()
    assert store.fresh_events(None, "v000004") == [(20, 3), (30, 4)]
    with pytest.raises(VersionMissing):
        store.fresh_events(None, "v000005")


def test_a_fence_is_the_newest_manifest_but_no_version(tmp_path: Path) -> None:
    first, second = saved(tmp_path, 1, 2)
    owner(tmp_path)
    store = Store(tmp_path)
    newest = store.newest()
    assert newest is not None
    assert (newest.name, newest.kind) == ("v000004", "fence")
    assert (newest.parent, newest.files) == (second.name, {})
    assert (newest.step, newest.next_offsets) == (second.step, second.next_offsets)
    assert newest.timeline[-1].end is None
    assert [version.name for version in store.versions()] == [first.name, second.name]
    kinds = [found.kind for found in store.manifests()]
    assert kinds == ["fence", "checkpoint", "checkpoint", "fence"]
    for no_version in (store.version, lambda name: list(store.lineage(name))):
        with pytest.raises(VersionMissing, match=r"v000002, v000003 \(2 in all\)"):
            no_version("v000004")
    assert [version.name for version in store.lineage(second.name)] == [second.name, first.name]
    flip(tmp_path / "man" / "M-00000004")
    assert (store.newest() or first).name == second.name
    assert Store(tmp_path / "missing").newest() is None
