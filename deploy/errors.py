"""Errors of wiring and running, with their exit codes.

DeployError
├── BrokerError               the local Kafka broker
│   ├── BrokerUnavailable     its packages cannot be had; nothing was started (retriable)
│   └── BrokerFailed          it was started, or its packages checked, and something is wrong
├── SettingsError             wrong keys, values or variables, all of them
├── PortTaken                 a port to listen on is in use
├── StoreAbsent               the store of the settings is not there
├── TableRefused              a file of rows cannot be used; names row, column, found, expected
├── Unsafe                    an operator's command was refused: nothing was written
├── UsageError                a command was called with what it cannot use
└── WriteFailed               a command's folder could not be written
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar


class DeployError(Exception):
    """Base of this folder's errors; messages name the remedy."""

    retriable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1  #: of a process that ends with it


class BrokerError(DeployError):
    """Error of the local Kafka broker."""


class BrokerUnavailable(BrokerError):
    """Missing packages: not cached and no network, or the extra is not installed.

    Tests skip on it, loudly.
    """

    retriable = True
    exit_code = 75


class BrokerFailed(BrokerError):
    """Wrong package, or a broker that did not become ready.

    A wrong package differs from its pin. The message holds the end of the broker's own log.
    """


class SettingsError(DeployError):
    """Problems of the settings, one line each: place, key, value, expectation."""

    exit_code = 2

    exit_code = 2

    def __init__(self, problems: Sequence[str]) -> None:
        """Take the lines."""
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class PortTaken(DeployError):
    """Another process listens on the port."""

    def __init__(self, host: str, port: int, key: str, cause: OSError) -> None:
        """Name the address, the setting that chose it, and the system's answer."""
        reason = cause.strerror or str(cause)
        # Python names the address once more.
        reason = reason.partition(" (while attempting")[0]
        remedy = f"Stop what does, or set {key} to another port."
        super().__init__(f"cannot listen on {host}:{port} ({reason}). {remedy}")


class StoreAbsent(DeployError):
    """No store where the settings say; names the folder, the file of settings and the remedy."""

    exit_code = 2

    def __init__(self, root: Path, source: str) -> None:
        """Take the folder, and where the settings come from."""
        remedy = "name the settings of the learner with --config FILE or STEELYARD_CONFIG"
        super().__init__(f"store.root: there is no store in {root} ({source}): {remedy}")


class TableRefused(DeployError):
    """File of rows that cannot be used; names row and column, what was found and expected."""

    exit_code = 2


class Unsafe(DeployError):
    """Refused: it would, or might, lose or double what the guarantee covers.

    Nothing was written.
    """

    exit_code = 3

    exit_code = 3


class UsageError(DeployError):
    """Wrong use of a command; the message names it and what would do."""

    exit_code = 2


class WriteFailed(DeployError):
    """The folder that a command writes could not be written; nothing is left of it."""

    def __init__(self, path: Path, cause: OSError) -> None:
        """Name the folder and the system's answer."""
        reason = os.strerror(cause.errno) if cause.errno else str(cause)
        super().__init__(
            f"{path} cannot be written ({reason}); nothing of it was kept. "
            "Check free space and mode, or name another folder."
        )
