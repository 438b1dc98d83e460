"""Frozen surfaces change only by decision: doors, series, commands, settings, events, HTTP."""

import difflib

import pytest

from tests.accept_surface import GOLDEN, ROOT, SURFACES, current


@pytest.mark.parametrize("golden", SURFACES)
def test_the_surface_is_the_one_that_was_accepted(golden: str) -> None:
    module, _ = SURFACES[golden]
    if not (ROOT / module).exists():
        pytest.skip(f"{module} does not exist yet")
    file = GOLDEN / golden
    accepted = file.read_text() if file.exists() else ""
    difference = list(
        difflib.unified_diff(
            accepted.splitlines(), current(golden).splitlines(), "accepted", "now", lineterm="", n=1
        )
    )
    if difference:
        pytest.fail(
            f"tests/surface/{golden} and the code differ. "
            "If this is meant: python -m tests.accept_surface, commit the file, "
            "and give CHANGELOG.md a line for whoever relies on it.\n" + "\n".join(difference),
            pytrace=False,
        )


def test_every_golden_file_belongs_to_a_surface() -> None:
    assert {file.name for file in GOLDEN.iterdir()} <= set(SURFACES)
