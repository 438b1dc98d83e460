"""Durations and sizes: refused without a unit, read back as written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.settings.units import UNITS


@pytest.mark.parametrize(
    ("suffix", "text", "stored"),
    [
        ("_us", "30s", 30_000_000),
        ("_us", "1.5 s", 1_500_000),
        ("_us", "7d", 604_800_000_000),
        ("_us", "P7D", 604_800_000_000),
        ("_us", "PT1H30M", 5_400_000_000),
        ("_us", "P1W", 604_800_000_000),
        ("_ms", "2s", 2_000),
        ("_seconds", "500ms", 0.5),
        ("_seconds", "PT0.5S", 0.5),
        ("_bytes", "2MB", 2_000_000),
        ("_bytes", "1GiB", 1_073_741_824),
    ],
)
def test_a_quantity_with_its_unit_is_stored_in_the_unit_of_the_field(
    suffix: str, text: str, stored: float
) -> None:
    assert UNITS[suffix].parse(text) == stored


@pytest.mark.parametrize(
    "text", ["30", "", "s", "P", "PT", "P1DT", "-5s", "5 parsecs", "5M", "1e3s", "7d 3h", "PT1H30"]
)
def test_a_number_without_a_known_unit_is_no_duration(text: str) -> None:
    assert UNITS["_us"].parse(text) is None


@pytest.mark.parametrize("text", ["2", "2mb", "2 M", "P2D", "2s"])
def test_a_number_without_a_known_unit_is_no_size(text: str) -> None:
    assert UNITS["_bytes"].parse(text) is None


@pytest.mark.parametrize(
    ("stored", "text"), [(0, "0us"), (604_800_000_000, "7d"), (90_000_000, "90s"), (1, "1us")]
)
def test_a_duration_is_written_as_a_whole_number_of_the_largest_unit(
    stored: int, text: str
) -> None:
    assert UNITS["_us"].format(stored) == text


@given(stored=st.integers(min_value=0, max_value=10**15), suffix=st.sampled_from(sorted(UNITS)))
def test_what_is_written_is_read_back(stored: int, suffix: str) -> None:
    assert UNITS[suffix].parse(UNITS[suffix].format(stored)) == stored
