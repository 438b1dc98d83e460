"""Network partitions of learner and broker, both ways and one way: nothing lost (T22)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kafka.partitioned import CUTS, NO_BROKER

NAMESPACES = ("unshare", "--user", "--map-root-user", "--net")

pytestmark = pytest.mark.kafka


@pytest.mark.long
def test_a_network_cut_both_ways_and_one_way_costs_no_sample_doubles_none_and_ends_no_process(
    tmp_path: Path,
) -> None:
    try:
        probe = subprocess.run(
            [*NAMESPACES, "ip", "link", "add", "a0", "type", "veth"],
            capture_output=True,
            text=True,
            check=False,
        )
        refused = probe.stderr if probe.returncode else ""
    except FileNotFoundError as error:
        refused = str(error)
    if refused:
        pytest.skip(
            f"NOT RUN: no network namespace or no veth pair is to be had here ({refused.strip()}); "
            "nothing was partitioned"
        )
    command = [*NAMESPACES, sys.executable, "-m", "tests.kafka.partitioned", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    if done.returncode == NO_BROKER and not os.environ.get("CI"):
        pytest.skip(f"NOTHING WAS PARTITIONED: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{len(CUTS)} outages"
