"""A network that can be cut and slowed down: a TCP proxy between two parts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from citystream.settings import LOCALHOST

CHUNK = 256 * 1024


class Proxy:
    """Forwards what comes to ``port`` to another port of this machine, in a thread of its own."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._delay = 0.0
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._passes = asyncio.Event()
        self._passes.set()
        self._answers = asyncio.Event()
        self._answers.set()
        self._last_request: Callable[[bytes], bool] | None = None
        self.withheld = threading.Event()
        self.slowed = 0
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._server = self._call(asyncio.start_server(self._serve, LOCALHOST, 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Let nothing through any more; connections stay open and new ones are not answered."""
        self._loop.call_soon_threadsafe(self._passes.clear)

    def mend(self) -> None:
        """Let everything through again: what was held back first."""
        self._delay = 0.0
        self._last_request = None
        self._loop.call_soon_threadsafe(self._passes.set)
        self._loop.call_soon_threadsafe(self._answers.set)

    def reset(self) -> None:
        """Break every connection there is."""
        self._call(self._reset())

    def slow(self, seconds: float) -> None:
        """Hold back every answer for so long; ``slowed`` counts them."""
        self.slowed = 0
        self._delay = seconds

    def withhold(self, last: Callable[[bytes], bool]) -> None:
        """Let requests through, but no answer any more once a chunk came that is the last request to be answered.

        ``withheld`` is set from then on.
        """
        self.withheld.clear()
        self._last_request = last

    def close(self) -> None:
        """End."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _reset(self) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _close(self) -> None:
        self._server.close()
        await self._reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._passes.wait()
            there_reader, there_writer = await asyncio.open_connection(LOCALHOST, self._target)
            ways = [
                asyncio.ensure_future(self._forward(reader, there_writer, answers=False)),
                asyncio.ensure_future(self._forward(there_reader, writer, answers=True)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                there_writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                if answers and self._delay:
                    await asyncio.sleep(self._delay)
                    self.slowed += 1
                if not answers and self._last_request is not None and self._last_request(data):
                    self._answers.clear()
                    self.withheld.set()
                await self._passes.wait()
                if answers:
                    await self._answers.wait()
                writer.write(data)
                await writer.drain()
