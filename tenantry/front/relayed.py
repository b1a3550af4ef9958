"""Connections to the daemon over the relay, as the front's HTTP client wants them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import Any

import httpcore

from tenantry.http.relay import NOTE


class RelayBackend(httpcore.AsyncNetworkBackend):
    """Makes an HTTP client's connections over the far end of a relay."""

    def __init__(self, far: socket.socket) -> None:
        self._far = far
        self._turn = asyncio.Lock()

    async def connect_unix_socket(
        self,
        path: str,  # noqa: ARG002 - there is none
        timeout: float | None = None,  # noqa: ASYNC109 - as httpcore has it
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 - none apply
    ) -> httpcore.AsyncNetworkStream:
        """Make a connection, waiting where the daemon is slow to take those before it."""
        try:
            mine, theirs = socket.socketpair()
            try:
                mine.setblocking(False)
                async with asyncio.timeout(timeout):
                    await self._pass_on(theirs)
                    reader, writer = await asyncio.open_connection(sock=mine)
            except BaseException:
                mine.close()
                raise
            finally:
                theirs.close()
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("the daemon takes no connection") from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        return _Stream(reader, writer)

    async def _pass_on(self, theirs: socket.socket) -> None:
        async with self._turn:
            while True:
                try:
                    socket.send_fds(self._far, [NOTE], [theirs.fileno()])
                except BlockingIOError:
                    await _writable(self._far)
                else:
                    return


class _Stream(httpcore.AsyncNetworkStream):
    """A connection as httpcore wants it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Read what there is; nothing at the end."""
        try:
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout("the daemon is silent") from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Write it all."""
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()
        except TimeoutError as error:
            raise httpcore.WriteTimeout("the daemon reads nothing") from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        """Close it; what is not sent by now is no whole request."""
        self._writer.transport.abort()

    def get_extra_info(self, info: str) -> Any:
        """Tell whether an idle connection has come to its end."""
        return self._reader.at_eof() if info == "is_readable" else None


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
