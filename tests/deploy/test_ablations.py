"""Ablations: saved apart, state and offsets count some samples twice or never."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from learner.artifact import Version
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.store.manifest import CheckpointMetadata, RunState
from tests.deploy.whole import Shop, live, trained
from tests.fakes.disk import Crash, Die, FaultyDisk, at

Make = Callable[[Path, Disk, Callable[[], float]], Checkpointer]


class Apart(Checkpointer):
    """Saves parameters before joins and next offsets, or after; each save as safe as ours."""

    offsets_first = False

    def __init__(self, root: Path, disk: Disk, clock: Callable[[], float]) -> None:
        super().__init__(root, disk, clock)
        self._before: tuple[Mapping[str, bytes], CheckpointMetadata] | None = None

    def save(
        self, files: Mapping[str, bytes], cut: CheckpointMetadata, run_state: RunState | None = None
    ) -> Version:
        files_before, cut_before = self._before or (files, cut)
        older, newer = (files, files_before) if self.offsets_first else (files_before, files)
        place = cut if self.offsets_first else cut_before
        half = {
            name: (older if name.startswith(("training/part-", "training/rank-")) else newer)[name]
            for name in files
        }
        super().save(
            half,
            msgspec.structs.replace(
                cut, offsets=place.offsets, journal=place.journal, audit=place.audit
            ),
            run_state,
        )
        self._before = files, cut
        return super().save(files, cut, run_state)


class OffsetsFirst(Apart):
    offsets_first = True


def numbers(root: Path, shop: Shop, make: Make, when: range) -> list[int]:
    """Return the surplus of samples (below zero: lost) for a crash behind each of these calls."""
    found = []
    for index in when:
        where = root / f"{index}"
        with contextlib.suppress(Crash):
            live(
                where,
                shop.log,
                FaultyDisk(at(index, Die("after"))),
                1,
                checkpointer=make,
                keep_tail=False,
            )
        live(where, shop.log, FaultyDisk(), 2, checkpointer=make, keep_tail=False)
        number, sum64 = trained(where)
        assert number != shop.trained[0] or sum64 == shop.trained[1]
        found.append(number - shop.trained[0])
    return found


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop.invented(5, 120)


WHEN = range(210, 390, 37)


def test_one_checkpoint_of_all_counts_each_sample_once(shop: Shop, tmp_path: Path) -> None:
    assert set(numbers(tmp_path, shop, Checkpointer, WHEN)) == {0}


def test_parameters_saved_before_next_offsets_count_samples_twice(
    shop: Shop, tmp_path: Path
) -> None:
    found = numbers(tmp_path, shop, Apart, WHEN)
    assert max(found) > 0


def test_next_offsets_saved_before_parameters_lose_samples(shop: Shop, tmp_path: Path) -> None:
    found = numbers(tmp_path, shop, OffsetsFirst, WHEN)
    assert min(found) < 0
