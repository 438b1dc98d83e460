"""How long the worst request bodies hold up all other requests.

    python -m benchmarks.hold [--json] [--repeat N]

The real server on loopback, with a scorer that does nothing. One connection asks `/livez` again and
again while another sends one body of the kind that costs most to read, as large as the default
limits allow. Of each body: the longest of those answers, the median over the repetitions, in
milliseconds. A machine with other work adds its own pauses; `calm` is a small request for
comparison. The last line on standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import statistics
import subprocess
import sys
import time
from threading import Thread
from urllib.parse import urlsplit

LIVE = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
NUM_BYTES = 1_999_000
#: As many values as the default limits allow, and less than `NUM_BYTES` of them.
NUM_VALUES = 21_000


def _repeated(piece: bytes) -> bytes:
    return piece * (NUM_BYTES // len(piece))


def _list(item: bytes) -> bytes:
    return b",".join([item] * min(NUM_VALUES, NUM_BYTES // (len(item) + 1)))


def bodies() -> dict[str, tuple[str, bytes]]:
    """Return path and body by name."""
    text = b'{"query":"q","documents":["%s"]}'
    attribute = b'{"query":"q","documents":[{"text":"a","x":%s}]}'
    names = b",".join(b'"%d":1e300' % number for number in range(NUM_VALUES))
    found = {
        "calm": text % b"a",
        "plain text": text % _repeated(b"a"),
        "escaped quotes": text % _repeated(b'\\"'),
        "escaped letters": text % _repeated(b"\\u4e2d"),
        "escaped quotes, query": b'{"query":"%s","documents":["a"]}' % _repeated(b'\\"'),
        "escaped quotes, unknown": b'{"x":"%s","query":"q","documents":["a"]}' % _repeated(b'\\"'),
        "escaped quotes, documents": text % b'","'.join([b'\\"' * 1900] * 512),
        "spaces": b'{"query":"q","documents":[%s"a"]}' % _repeated(b" "),
        "one long number": attribute % _repeated(b"1"),
        "numbers such as 1e300": attribute % (b"[%s]" % _list(b"1e300")),
        "numbers with 90 digits": attribute % (b"[%s]" % _list(b"1." + b"7" * 80 + b"e-300")),
        "integers with 90 digits": attribute % (b"[%s]" % _list(b"7" * 90)),
        "empty objects": attribute % (b"[%s]" % _list(b"{}")),
        "attributes": b'{"query":"q","documents":[{"text":"a",%s}]}' % names,
        "nested": attribute % (b"[" * 900_000 + b"]" * 900_000),
        "top_n of numbers": b'{"query":"q","documents":["a"],"top_n":[%s]}' % _list(b"1e300"),
        "texts given back": b'{"query":"q","documents":["%s"],"return_documents":true}'
        % _repeated(b'\\"'),
        "model": b'{"query":"q","documents":["a"],"model":"%s"}' % _repeated(b"\\u0001"),
        "64 KiB of 1e300": attribute % (b"[%s]" % b",".join([b"1e300"] * 10_900)),
    }
    asks = {name: ("/v2/rerank", body) for name, body in found.items()}
    asks["texts"] = ("/rerank", b'{"query":"q","texts":["%s"]}' % _repeated(b'\\"'))
    return asks


def ask(address: tuple[str, int], path: str, body: bytes) -> bytes:
    """Send one request; return the first line of its answer."""
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(head.encode() + body)
        return connection.recv(65536).split(b"\r\n")[0]


def longest_ping(address: tuple[str, int], path: str, body: bytes) -> float:
    """Return the longest answer to `/livez` in milliseconds while a body is read."""
    longest = 0.0
    with socket.create_connection(address, timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(LIVE)
        connection.recv(65536)
        thread = Thread(target=ask, args=(address, path, body))
        thread.start()
        while thread.is_alive():
            sent = time.perf_counter()
            connection.sendall(LIVE)
            connection.recv(65536)
            longest = max(longest, time.perf_counter() - sent)
        thread.join()
    return 1e3 * longest


def main() -> None:
    """Measure every body; the last line is the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="nothing but the last line")
    parser.add_argument("--repeat", type=int, default=9)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "benchmarks.overloading.server", "--capacity", "100000"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    parts = urlsplit(server.stdout.readline().strip())
    address = (str(parts.hostname), int(parts.port or 0))
    found: dict[str, float] = {}
    try:
        while b"200" not in (first := ask(address, *bodies()["calm"])):
            assert b"503" in first, first
        for name, (path, body) in bodies().items():
            status = ask(address, path, body).split()[1].decode()
            longest = [longest_ping(address, path, body) for _ in range(arguments.repeat)]
            found[name] = round(statistics.median(longest), 1)
            if not arguments.json:
                print(f"{found[name]:7.1f} ms  {name} ({status})", flush=True)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
