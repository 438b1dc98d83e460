"""A run that tested nothing against Kafka says so, also when its workers found out."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import NO_BROKER

ROOT = Path(__file__).parents[1]
SKIPPED = f"""
import pytest


def test_on_kafka() -> None:
    pytest.skip("{NO_BROKER}nothing is cached")


def test_of_another_kind() -> None:
    pytest.skip("no promtool")
"""


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_skip_for_want_of_a_broker_is_said_at_the_end(tmp_path: Path, workers: str) -> None:
    file = tmp_path / "test_skipped.py"
    file.write_text(SKIPPED)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-n", workers]
    command += ["-c", "/dev/null", "--rootdir", str(tmp_path), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    *_, notice, reason, _ = done.stdout.splitlines()
    assert notice.strip("! ") == "NOTHING WAS TESTED AGAINST KAFKA"
    assert reason == "nothing is cached"
