"""`serving.device` and `serving.engine`: refused at the start where they are not there."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.roles.serve import ServingRole
from deploy.settings.tree import Settings
from learner.errors import DeviceMissing, ModelUnsupported


def test_a_device_that_is_not_there_is_refused_before_a_port_is_taken(tmp_path: Path) -> None:
    settings = Settings()
    settings = replace(
        settings,
        serving=replace(settings.serving, device="cuda:97", port=0),
        store=replace(settings.store, root=tmp_path),
    )
    with pytest.raises(DeviceMissing, match=r"serving\.device: got 'cuda:97'.*cpu"):
        ServingRole(settings)


def test_an_engine_that_is_not_installed_is_refused_before_a_port_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    settings = Settings()
    settings = replace(
        settings,
        serving=replace(settings.serving, engine="openvino", port=0),
        store=replace(settings.store, root=tmp_path),
    )
    with pytest.raises(ModelUnsupported, match=r'pip install "steelyard\[openvino\]"'):
        ServingRole(settings)
