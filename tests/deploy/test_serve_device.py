"""`serving.device`: refused at the start where it is not there, and given to the versions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.roles.serve import ServingRole
from deploy.settings.tree import Settings
from learner.errors import DeviceMissing


def test_a_device_that_is_not_there_is_refused_before_a_port_is_taken(tmp_path: Path) -> None:
    settings = Settings()
    settings = replace(
        settings,
        serving=replace(settings.serving, device="cuda:97", port=0),
        store=replace(settings.store, root=tmp_path),
    )
    with pytest.raises(DeviceMissing, match=r"serving\.device: got 'cuda:97'.*cpu"):
        ServingRole(settings)
