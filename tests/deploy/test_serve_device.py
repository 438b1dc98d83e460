"""`serving.device` and `serving.engine`: refused at the start where they are not there."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.roles.serve import ServingRole
from deploy.settings.tree import Settings
from learner.errors import DeviceMissing, ModelUnsupported


def serving(root: Path, **changed: Any) -> Settings:
    settings = Settings()
    return replace(
        settings,
        serving=replace(settings.serving, port=0, **changed),
        store=replace(settings.store, root=root),
    )


def test_a_device_that_is_not_there_is_refused_before_a_port_is_taken(tmp_path: Path) -> None:
    with pytest.raises(DeviceMissing, match=r"serving\.device: got 'cuda:97'.*cpu"):
        ServingRole(serving(tmp_path, device="cuda:97"))


def test_an_engine_that_is_not_installed_is_refused_before_a_port_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelUnsupported, match=r'pip install "steelyard\[openvino\]"'):
        ServingRole(serving(tmp_path, engine="openvino"))
