"""Apache Kafka on several nodes of this machine, for tests in which leaders move."""

import shutil
import tempfile
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.broker.node import HEAP, Broker
from deploy.process.child import free_ports

SMALL_HEAP = ("-Xms64m", "-Xmx192m", *HEAP[2:])


class BrokerCluster:
    """Nodes (three by default), each broker and controller; topics have a replica on each."""

    def __init__(
        self, num_nodes: int = 3, *, heap: Sequence[str] = SMALL_HEAP, start_seconds: float = 300
    ) -> None:
        """Take what it needs; `start` does the work."""
        self._folder = Path(tempfile.mkdtemp(prefix="steelyard-kafka-"))
        ports = free_ports(2 * num_nodes)
        addresses = list(zip(ports[::2], ports[1::2], strict=True))
        voters = [f"{n}@127.0.0.1:{control}" for n, (_, control) in enumerate(addresses, start=1)]
        majority = str(num_nodes // 2 + 1)
        common = {
            "controller.quorum.voters": ",".join(voters),
            "min.insync.replicas": majority,
            "transaction.state.log.min.isr": majority,
            # A dead leader is replaced after the session, by default 9 s.
            "broker.heartbeat.interval.ms": "1000",
            "broker.session.timeout.ms": "5000",
        }
        for topic in ("offsets.topic", "transaction.state.log", "default"):
            common[f"{topic}.replication.factor"] = str(num_nodes)
        cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self.nodes = []
        for n, (client, control) in enumerate(addresses, start=1):
            listeners = f"PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{control}"
            node = Broker(
                self._folder / str(n),
                port=client,
                start_seconds=start_seconds,
                heap=heap,
                cluster_id=cluster_id,
                properties={"node.id": str(n), "listeners": listeners, **common},
            )
            self.nodes.append(node)

    @property
    def bootstrap_servers(self) -> str:
        """`host:port` of all nodes, separated by commas."""
        return ",".join(node.bootstrap_servers for node in self.nodes)

    def start(self) -> Self:
        """Start all nodes, then wait for each: a node answers once it has found a majority.

        Raises:
            BrokerUnavailable: the packages cannot be had here.
            BrokerFailed: a node ended, or did not answer in time.
        """
        try:
            for node in self.nodes:
                node.launch()
            for node in self.nodes:
                node.wait()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Kill all nodes and remove their data. Safe to repeat."""
        for node in self.nodes:
            node.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

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
