"""Environment variables that are settings: `STEELYARD_LEARNER__SEED` is `learner.seed`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

#: Names a file of settings, for every command.
CONFIG = "STEELYARD_CONFIG"

_PREFIX = "STEELYARD_"
_SERVICE_LINK = re.compile(
    r"(_[A-Z0-9]+)*_"
    r"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9]+)*|PORT_[0-9]+_[A-Z]+(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_PORT = re.compile(r"(_[A-Z0-9]+)*_PORT")


def variable(key: str) -> str:
    """Return the name of a key's variable."""
    return f"{_PREFIX}{key.replace('.', '__').upper()}"


def settings_in(env: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield (variable, key, text) of every variable that sets a key, sorted by name."""
    for name in sorted(env):
        if name.startswith(_PREFIX) and name != CONFIG and not _is_service_link(name, env[name]):
            yield name, name.removeprefix(_PREFIX).replace("__", ".").lower(), env[name]


def _is_service_link(name: str, text: str) -> bool:
    """Recognise what Kubernetes sets wherever a service has our name."""
    rest = name.removeprefix(_PREFIX.removesuffix("_"))
    if _SERVICE_LINK.fullmatch(rest):
        return True
    return _SERVICE_PORT.fullmatch(rest) is not None and "://" in text
