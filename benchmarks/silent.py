"""Silent connections beyond the descriptors of a server: is it still answering, what does it log.

    python -m benchmarks.silent [--json] [--connections N] [--descriptors N]

The real server (`deploy.roles.serve`, uvicorn on loopback) in a process of its own that may have so
many descriptors. More connections than that are opened and say nothing; then twenty requests come,
each on a connection of its own. The last line on standard output is one JSON object:

- `answered`: of the twenty, with 200; a connection that is closed before its answer is not.
- `seconds`: from the first request to the last answer.
- `closed_seconds`: until the last silent connection was closed by the server.
- `log_bytes`: that the server wrote meanwhile.
"""

from __future__ import annotations

import argparse
import json
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from functools import partial
from urllib.parse import urlsplit

from benchmarks.overload import warm

NUM_REQUESTS = 20
LONGEST_SECONDS = 120.0
_BODY = b'{"query":"q","documents":["a"]}'
_REQUEST = (
    b"POST /v2/rerank HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


def answered(address: tuple[str, int]) -> bool:
    """Ask once on a new connection; return whether the answer was 200."""
    with suppress(OSError), socket.create_connection(address, timeout=10) as connection:
        connection.sendall(_REQUEST)
        return connection.recv(65536).startswith(b"HTTP/1.1 200")
    return False


def seconds_until_closed(connections: list[socket.socket]) -> float:
    """Return the seconds until the server has closed them all, at most `LONGEST_SECONDS`."""
    began, poll = time.perf_counter(), select.epoll()
    open_ones = {connection.fileno() for connection in connections}
    for number in open_ones:
        poll.register(number, select.EPOLLIN | select.EPOLLRDHUP)
    while open_ones and time.perf_counter() - began < LONGEST_SECONDS:
        for number, _ in poll.poll(1.0):  # whatever comes of a silent connection is its end
            poll.unregister(number)
            open_ones.discard(number)
    return time.perf_counter() - began


def measure(num_connections: int, num_descriptors: int) -> dict[str, float]:
    """Run the server, the silent connections and the requests."""
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        limits = (num_descriptors, num_descriptors)
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.overloading.server", "--capacity", "500"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, limits),
        )
        stack.callback(process.wait)
        stack.callback(process.send_signal, signal.SIGTERM)
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        warm(url)
        already = log.seek(0, 2)
        address = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
        silent = [socket.create_connection(address, timeout=10) for _ in range(num_connections)]
        for connection in silent:
            stack.callback(connection.close)
        began = time.perf_counter()
        num_answered = sum(answered(address) for _ in range(NUM_REQUESTS))
        seconds = time.perf_counter() - began
        closed = seconds_until_closed(silent)
        return {
            "answered": num_answered,
            "seconds": round(seconds, 2),
            "closed_seconds": round(seconds + closed, 1),
            "log_bytes": log.seek(0, 2) - already,
        }


def main() -> None:
    """Run it; print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="nothing but the last line")
    parser.add_argument("--connections", type=int, default=1_100)
    parser.add_argument("--descriptors", type=int, default=1_024)
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = max(arguments.connections + 100, 1_024)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        sys.exit(f"--connections: this process may have {hard} descriptors, {wanted} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if not arguments.json:
        print(f"{arguments.connections} connections, {arguments.descriptors} descriptors")
    print(json.dumps(measure(arguments.connections, arguments.descriptors)))


if __name__ == "__main__":
    main()
