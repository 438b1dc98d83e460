"""What can go wrong while wiring and running, drawn as a tree; each class says `retriable`.

DeployError
├── BrokerError               about the Kafka that we start ourselves
│   ├── BrokerUnavailable     its packages cannot be had here: nothing was started
│   └── BrokerFailed          it was started, or its packages looked at, and something is wrong
├── SettingsError             keys, values or variables that are wrong, all of them
├── PortTaken                 a port that we should listen on is in use
├── Unsafe                    an operator's command was refused: nothing was written (exit code 3)
└── UsageError                a command was called with what it cannot use
"""

from collections.abc import Sequence


class DeployError(Exception):
    """Base of this folder's errors; the message says what, where and what to do."""

    retriable = False
    exit_code = 1


class BrokerError(DeployError):
    """About the Kafka that we start ourselves."""


class BrokerUnavailable(BrokerError):
    """The packages cannot be had: not cached and no network, or the extra is not installed. Tests skip on it, loudly."""

    retriable = True
    exit_code = 75


class BrokerFailed(BrokerError):
    """A package differs from its pin, or the broker did not become ready; holds the end of the broker's own log."""


class SettingsError(DeployError):
    """What is wrong with the settings, all at once: one line each with place, key, value and expectation."""

    exit_code = 2

    def __init__(self, problems: Sequence[str]) -> None:
        """Take the lines."""
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class PortTaken(DeployError):
    """Somebody else listens where we should."""

    def __init__(self, host: str, port: int, key: str, cause: OSError) -> None:
        """Name the address, the setting that chose it, and the system's answer."""
        why = (cause.strerror or str(cause)).partition(" (while attempting")[
            0
        ]  # where Python names the address once more
        super().__init__(
            f"cannot listen on {host}:{port} ({why}). Stop what does, or set {key} to another port."
        )


class Unsafe(DeployError):
    """What was asked for would lose or double what the guarantee covers, or it cannot be known that it would not; nothing was written."""

    exit_code = 3


class UsageError(DeployError):
    """A command was called with what it cannot use; names it and what would do."""

    exit_code = 2
