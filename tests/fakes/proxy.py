"""A TCP proxy between client and broker: slow, reset, half closed or silent, as a test says."""

from __future__ import annotations

import asyncio
import socket
import struct
from threading import Thread
from types import TracebackType
from typing import Literal, Self

Fault = Literal["reset", "half-close", "silence"]


class Proxy:
    """Forwards bytes to `target` on 127.0.0.1; the faults are set while it runs."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.delay_seconds = 0.0  # before each chunk
        self.chunk_bytes = 65536
        self.fault: Fault | None = None
        self.fault_after_bytes = 0  # of what the broker sends on one connection
        self.num_faults_left = 0
        self.num_connections = 0
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._run, name="proxy", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def clear(self) -> None:
        """Forward faithfully from now on."""
        self.delay_seconds, self.chunk_bytes = 0.0, 65536
        self.fault, self.num_faults_left = None, 0

    def __enter__(self) -> Self:
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        starting = asyncio.start_server(self._serve, sock=listening)
        self._server = self._loop.run_until_complete(starting)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_forever()

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.num_connections += 1
        try:
            upstream, broker = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        try:
            await asyncio.gather(self._up(reader, broker), self._down(upstream, writer))
        except OSError:
            pass
        finally:
            writer.transport.abort()
            broker.transport.abort()

    async def _up(self, client: asyncio.StreamReader, broker: asyncio.StreamWriter) -> None:
        while data := await client.read(65536):
            broker.write(data)
            await broker.drain()
        broker.write_eof()

    async def _down(self, broker: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        num_bytes = 0
        while data := await broker.read(self.chunk_bytes):
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            num_bytes += len(data)
            due = num_bytes > self.fault_after_bytes and self.num_faults_left > 0
            if self.fault is not None and due:
                self.num_faults_left -= 1
                client.write(data[: len(data) // 2])  # a frame that is torn
                await client.drain()
                await self._break(self.fault, broker, client)
                return
            client.write(data)
            await client.drain()
        client.write_eof()

    async def _break(
        self, fault: Fault, broker: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        if fault == "reset":
            connection = client.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.transport.abort()
            raise ConnectionResetError
        if fault == "half-close":
            client.write_eof()
        while await broker.read(65536):  # and nobody hears it
            pass
