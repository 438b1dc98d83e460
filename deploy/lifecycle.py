"""How a process that stays ends: what a signal does."""

from __future__ import annotations

import os
import signal
import sys
from typing import Protocol

from deploy.errors import BrokerFailed


class Node(Protocol):
    """A child process that we wait for."""

    @property
    def pid(self) -> int | None:
        """Its process id, None when it does not run."""

    def log_tail(self) -> str:
        """The end of its log."""


def until_ended(node: Node) -> None:
    """Wait for SIGTERM (exit 0) or SIGINT (exit 130); the caller's context manager then stops the node.

    Raises:
        BrokerFailed: the node ended by itself; holds the end of its log.
    """
    assert node.pid is not None, "start it first"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.waitid(os.P_PID, node.pid, os.WEXITED | os.WNOWAIT)
    raise BrokerFailed(f"Apache Kafka (process {node.pid}) ended by itself. Its log ends:\n{node.log_tail()}")
