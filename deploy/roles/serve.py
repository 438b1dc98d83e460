"""The role `serve`: answers over HTTP until a signal or `stop`."""

from __future__ import annotations

import logging
import signal
import socket
from threading import current_thread, main_thread

from deploy.errors import PortTaken
from deploy.process.observability import new_registry
from deploy.process.pauses import exempt_what_is_loaded, hand_over_often
from deploy.roles.connections import Connections
from deploy.roles.http_server import BoundedServer
from deploy.roles.products import check_products
from deploy.settings.tree import Settings
from learner.artifact import Store
from serving.admission import Admission
from serving.app import SCORING_PATHS, create
from serving.inference.batcher import Batcher
from serving.inference.slot import Slot
from serving.rollout.gate import Gate
from serving.rollout.watcher import Store as VersionStore
from serving.rollout.watcher import Watcher
from serving.service import EngineInfo
from serving.telemetry import Telemetry

log = logging.getLogger("steelyard.serving")


class ServingRole:
    """One replica: takes its port when made, serves in `run`, ends by a signal or `stop`."""

    def __init__(self, settings: Settings, *, store: VersionStore | None = None) -> None:
        """Wire the parts and take the port; nothing runs yet.

        Args:
            settings: of the process.
            store: of the versions; left out, that of the settings.

        Raises:
            PortTaken: another process listens there.
            DeviceMissing, ModelUnsupported: device, processor or engine cannot do what is set.
        """
        check_products(settings.serving)
        config = settings.serving
        store = store or Store(
            settings.store.root,
            device=config.device,
            precision=config.precision,
            engine=config.engine,
        )
        telemetry, slot = Telemetry(new_registry()), Slot()
        self._root = settings.store.root
        self._engine = EngineInfo.installed(config.engine, config.precision)
        self._batcher = Batcher(config.batcher, telemetry)
        self._watcher = Watcher(
            store,
            slot,
            telemetry,
            config.watcher,
            replayed=self._batcher.replayed,
            when_idle=self._batcher.when_idle,
            first_loaded=exempt_what_is_loaded,
            gate=Gate(config.gate),
            server=f"{socket.gethostname()}:{config.port}",
        )
        app = create(
            store=store,
            slot=slot,
            batcher=self._batcher,
            watcher=self._watcher,
            telemetry=telemetry,
            limits=config.limits,
            cors_config=config.cors,
            engine=self._engine,
        )
        patience = config.batcher.deadline_seconds + config.connections.body_seconds
        admit = Admission(
            self._batcher.admit, slot, telemetry, SCORING_PATHS, cors_config=config.cors
        )
        connections = Connections(config.connections, answer_seconds=patience, admit=admit)
        self._server = BoundedServer(app, connections, drain_seconds=config.drain_seconds)
        try:
            self._socket = socket.create_server((config.host, config.port))
        except OSError as error:
            raise PortTaken(config.host, config.port, "serving.port", error) from error
        self.url = f"http://{config.host}:{self._socket.getsockname()[1]}"

    def run(self) -> None:
        """Serve until stopped; then drain: no new connections, answer those in flight, end threads.

        Raises:
            KeyboardInterrupt: it was SIGINT; everything has ended in good order.
        """
        where = {"url": self.url, "store": str(self._root)}
        log.info("listening", extra=where | self._engine.to_json())
        hand_over_often()
        self._batcher.start()
        self._watcher.start()
        try:
            if current_thread() is main_thread():
                # a shell's background job inherits SIGINT ignored
                signal.signal(signal.SIGINT, signal.default_int_handler)
                # uvicorn ends by SIGTERM, then raises it once more: that one is ours
                signal.signal(signal.SIGTERM, lambda *_: None)
            self._server.run(sockets=[self._socket])
        finally:
            self._watcher.close()
            self._batcher.close()
            self._socket.close()

    def stop(self) -> None:
        """End `run`; from any thread."""
        self._server.should_exit = True


def run(settings: Settings) -> None:
    """Serve until a signal."""
    ServingRole(settings).run()
