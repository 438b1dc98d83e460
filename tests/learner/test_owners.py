"""Owners as real processes under real signals: the store tells one history (T08)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.learner.fast import finish
from tests.learner.owners import LOG, Moment, Owner, Report, Storm, made_by, of_later

MOMENTS = {
    "its claim": Moment("listdir", "/man"),
    "its fence": Moment("link", "man/M-"),
    "its own segment": Moment("create", "journal/"),
    "a journal record": Moment("write", "journal/", 9),
    "the first file of a version": Moment("write", "blobs/", 4),
    "the manifest's name": Moment("rename", "manifest.json", 1),
    "the commit mark": Moment("link", "manifest.json", 2),
    "the mark is durable": Moment("fsync_folder", "/man", 3),
    "a version is announced": Moment("rename", "announced.json", 2),
    "an old version goes": Moment("rename", "trash/", 1),
}
LIVES_ON = Moment("link", "manifest.json", 3)


@pytest.mark.parametrize("successor", [LIVES_ON, None], ids=["at work", "done"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_owner_woken_after_it_has_a_successor_exits_75_and_touches_nothing_of_it(
    tmp_path: Path, moment: str, successor: Moment | None
) -> None:
    root = tmp_path / "store"
    with Owner(root, 1, moment=MOMENTS[moment]) as zombie:
        zombie.wait_until_stopped()
        assert zombie.is_stopped
        with Owner(root, 2, moment=successor) as heir:
            if successor is None:
                assert heir.join() == (0, "")
            else:
                heir.wait_until_stopped()
                assert heir.is_stopped
            before, own = of_later(root, zombie.epoch), made_by(root, zombie.epoch)
            assert len(before) > 10
            zombie.wake()
            code, message = zombie.join()
            assert (code, message[:6]) == (75, "Fenced"), message
            assert of_later(root, 1) == before
            assert made_by(root, 1) == own
            heir.wake()
            assert heir.join() == (0, "")
    finish(root, LOG)


def stormy(root: Path, seed: int) -> Report:
    try:
        with Storm(root, seed) as storm:
            report = storm.run()
        for code, message in report.ended:
            assert (code, message[:6]) in ((0, ""), (75, "Fenced")), message
        finish(root, LOG)
    except AssertionError as error:
        raise AssertionError(f"the storm of seed {seed}: {error}") from error
    return report


@pytest.mark.parametrize(
    ("first", "num"), [(0, 20), pytest.param(1000, 120, marks=pytest.mark.long)]
)
def test_processes_that_are_stopped_woken_and_killed_at_any_time_leave_one_history(
    tmp_path: Path, first: int, num: int
) -> None:
    report = [stormy(tmp_path / f"{seed}", seed) for seed in range(first, first + num)]
    assert sum(each.stops for each in report) > 4 * num
    assert sum(each.kills for each in report) > num
    assert sum(each.zombies for each in report) > num // 4
    assert sum(code == 75 for each in report for code, _ in each.ended) > num // 2
