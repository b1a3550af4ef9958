"""HTTP/1.1 by hand on a connection that is kept: a tenth of what a whole client costs a request.

It sends what it is given, byte by byte: a client of more manners would refuse to.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPResponse, RemoteDisconnected
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.waiting import DEADLINE


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered; the names of headers in small letters, the last of a name counts."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes


class PlainHttp:
    """A client of one address, a Unix socket's path or a host and port. For one thread."""

    def __init__(self, address: Path | tuple[str, int]) -> None:
        self._address = address
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; the next request makes another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ask(
        self,
        method: str,
        target: bytes,
        headers: Iterable[tuple[bytes, bytes]] = (),
        content: bytes | None = None,
    ) -> Answer:
        """Send a request and read its answer to the end.

        `Host` and `Content-Length` are added where `headers` have none. Raises `OSError` and
        `http.client.HTTPException` where no answer comes.
        """
        given = list(headers)
        names = {name.lower() for name, _ in given}
        if b"host" not in names:
            given.append((b"Host", b"localhost"))
        if content is not None and b"content-length" not in names:
            given.append((b"Content-Length", str(len(content)).encode()))
        lines = [method.encode() + b" " + target + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in given]
        request = b"\r\n".join(lines) + b"\r\n\r\n" + (content or b"")
        if self._socket is not None and not _is_readable(self._socket):
            # Whatever a server says before it is asked is its farewell: then it is asked anew.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, RemoteDisconnected):
                return self._exchange(self._socket, method, request)
        self.close()
        self._socket = self._connected()
        return self._exchange(self._socket, method, request)

    def _exchange(self, connected: socket.socket, method: str, request: bytes) -> Answer:
        # It may be answered before all of it has been sent: then that is what counts.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connected.sendall(request)
        try:
            with contextlib.closing(HTTPResponse(connected, method=method)) as response:
                response.begin()
                body = response.read()
                headers = {name.lower(): value for name, value in response.getheaders()}
                if response.will_close:
                    self.close()
        except BaseException:
            self.close()
            raise
        return Answer(response.status, headers, body)

    def _connected(self) -> socket.socket:
        if not isinstance(self._address, Path):
            connected = socket.create_connection(self._address, timeout=DEADLINE)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connected
        connected = socket.socket(socket.AF_UNIX)
        try:
            connected.settimeout(DEADLINE)
            connected.connect(str(self._address))
        except OSError:
            connected.close()
            raise
        return connected


def _is_readable(connected: socket.socket) -> bool:
    return bool(select.select([connected], [], [], 0)[0])
