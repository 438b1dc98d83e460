"""Verdict: the next scrape shows the latest one, and nothing in the store can break the page."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry

from learner.store import verdict
from learner.store.blobs import Disk
from learner.telemetry import Telemetry


def scraped(registry: CollectorRegistry) -> tuple[float | None, float | None]:
    names = ("steelyard_verify_last_success_timestamp_seconds", "steelyard_verify_differences")
    seconds, differences = [registry.get_sample_value(name) for name in names]
    return seconds, differences


def test_each_scrape_shows_the_latest_verdict_and_nothing_where_there_is_none(
    tmp_path: Path,
) -> None:
    registry, disk = CollectorRegistry(), Disk()
    Telemetry(registry).watch_verdicts(tmp_path, disk)
    assert scraped(registry) == (0, 0)
    (tmp_path / "control").mkdir()

    def verified(num_differences: int, now_us: int, since: str | None = "v000001") -> None:
        verdict.write(
            tmp_path,
            disk,
            version="v000003",
            since=since,
            num_differences=num_differences,
            now_us=now_us,
        )

    verified(2, 1_500_000, since=None)
    assert scraped(registry) == (0, 2)
    verified(0, 2_500_000)
    assert scraped(registry) == (2.5, 0)
    verified(1, 3_500_000)
    assert scraped(registry) == (2.5, 1)


def test_what_is_no_verdict_counts_as_none(tmp_path: Path) -> None:
    registry, file = CollectorRegistry(), tmp_path / verdict.FILE
    Telemetry(registry).watch_verdicts(tmp_path, Disk())
    file.parent.mkdir()
    for written in (b"", b"{}", b"[" * 70_000, b"\xff", b'{"version":1}'):
        file.write_bytes(written)
        assert scraped(registry) == (0, 0)
    file.unlink()
    file.mkdir()
    assert scraped(registry) == (0, 0)
