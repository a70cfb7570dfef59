"""A store that is far: a TCP proxy of our own before a real one, which delays and can be cut.

Owns: the delay of every request, the cut. Must not know: HTTP, what is stored. Replies are not
delayed again: one request costs the delay once, as a round trip does. Bandwidth is not limited.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any

PIECE_BYTES = 1 << 18


class FarProxy:
    """Listens on 127.0.0.1 and passes everything on to `port` there, in a thread of its own."""

    def __init__(self, port: int, *, delay_seconds: float = 0.0) -> None:
        self.delay_seconds = delay_seconds
        self.requests = 0
        """Pieces that clients sent: about one for each request."""
        self.port = 0
        self._upstream = port
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FarProxy:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def cut(self) -> None:
        """The store is out of reach: connections break, new ones are refused."""
        self._is_cut = True
        self._run(self._drop())

    def mend(self) -> None:
        """The store can be reached again."""
        self._is_cut = False

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=PIECE_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        await self._drop()
        current = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drop(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(
            "127.0.0.1", self._upstream, limit=PIECE_BYTES
        )
        mine = {writer, far_writer}
        self._writers |= mine
        try:
            await asyncio.gather(
                self._pass_requests(reader, far_writer), _pass_on(far_reader, writer)
            )
        except OSError:
            pass  # either end hung up, or the store was cut off
        finally:
            self._writers -= mine
            for each in mine:
                each.transport.abort()

    async def _pass_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Pass on what comes, each piece `delay_seconds` after it came."""
        waiting: deque[tuple[float, bytes]] = deque()
        arrived = asyncio.Event()
        sender = asyncio.create_task(self._send_when_due(waiting, arrived, writer))
        try:
            while data := await reader.read(PIECE_BYTES):
                self.requests += 1
                waiting.append((self._loop.time() + self.delay_seconds, data))
                arrived.set()
        finally:
            waiting.append((0.0, b""))
            arrived.set()
            with suppress(OSError):
                await sender

    async def _send_when_due(
        self,
        waiting: deque[tuple[float, bytes]],
        arrived: asyncio.Event,
        writer: asyncio.StreamWriter,
    ) -> None:
        while True:
            while not waiting:
                arrived.clear()
                await arrived.wait()
            due, data = waiting.popleft()
            if not data:
                writer.transport.abort()
                return
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            writer.write(data)
            await writer.drain()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(PIECE_BYTES):
        writer.write(data)
        await writer.drain()
    writer.transport.abort()
