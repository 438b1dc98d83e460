"""Device, engine and precision of a server: refused here where this machine has not what is set."""

from __future__ import annotations

from deploy.settings.config import ServingConfig


def check_products(config: ServingConfig) -> None:
    """Refuse what cannot serve here, before a port is taken.

    torch is only loaded where a setting differs from its default.

    Raises:
        DeviceMissing: the device is not there.
        ModelUnsupported: the engine is not installed, or the processor has no such products.
    """
    if config.engine != "torch":
        from learner.engines.registry import passes_of

        learned = config.precision == "learned"  # known by a version alone
        passes_of(config.engine, "float32" if learned else config.precision)
    elif config.precision == "int8":
        from learner.passes.int8 import check_processor

        check_processor()
    if config.device != "cpu":
        from learner.passes.device import check_device

        check_device(config.device, setting="serving.device")
