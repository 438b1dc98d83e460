"""Checks that what the settings ask for is installed, and can be had on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

from deploy.doctor.check_result import CheckResult
from deploy.doctor.machine import MACHINE
from deploy.roles.products import check_products
from deploy.settings.config import ServingConfig
from deploy.settings.tree import Settings
from learner.errors import LearnerError
from learner.extras import install_line

ASKING: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("learner.tuning", lambda name: name.startswith(("lora", "ia3")), "peft"),
    ("learner.privacy.noise_multiplier", lambda noise: noise > 0, "opacus"),
    ("tracking.to", lambda tracker: tracker == "tensorboard", "tensorboard"),
    ("tracking.to", lambda tracker: tracker == "wandb", "wandb"),
    ("serving.engine", lambda engine: engine == "openvino", "openvino"),
)
"""(setting, whether its value asks for a package, that package); `learner.model` is a check of its
own."""


def examine_extras(settings: Settings) -> Iterator[CheckResult]:
    """Check that every package is installed that a setting asks for."""
    for key, asks, package in ASKING:
        value = reduce(getattr, key.split("."), settings)
        if not asks(value):
            continue
        if importlib.util.find_spec(package) is None:
            text = f"{key}: {value} needs {package}, which is not installed"
            yield CheckResult.fail(MACHINE, text, install_line(package))
        else:
            yield CheckResult.ok(MACHINE, f"{key}: {value}: {package} is installed")


def examine_products(config: ServingConfig) -> Iterator[CheckResult]:
    """Check what `serve` refuses at its start: device, engine and precision."""
    asked = f"serving.device: {config.device}, engine: {config.engine}"
    asked = f"{asked}, precision: {config.precision}"
    try:
        check_products(config)
    except ImportError:  # the role that needs the extra says so
        return
    except LearnerError as error:
        if isinstance(error.__cause__, ImportError):  # `examine_extras` has named it
            return
        yield CheckResult.fail(MACHINE, str(error), "change the setting that it names")
    else:
        yield CheckResult.ok(MACHINE, asked)
