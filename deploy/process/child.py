"""Child processes that end when we do, and free ports for them."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import BinaryIO

# Linux: asks the kernel for SIGKILL when the parent dies (PR_SET_PDEATHSIG is 1), then becomes the
# command; argv = parent's pid, command.
LEASH = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)


def spawn(
    command: Sequence[str], log: BinaryIO, *, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a child in a process group of its own, its output in `log`.

    On Linux it ends when we do, however we end.
    """
    leash = [sys.executable, "-I", "-S", "-c", LEASH, str(os.getpid())]
    return subprocess.Popen(
        [*(leash if sys.platform == "linux" else ()), *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        process_group=0,
        env=env,
    )


def free_ports(num: int) -> list[int]:
    """Return ports of 127.0.0.1 on which nobody listens now."""
    with ExitStack() as bound:
        probes = [bound.enter_context(socket.socket()) for _ in range(num)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
