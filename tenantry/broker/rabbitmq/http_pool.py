"""HTTP/1.1 to one server, over kept connections, as the cost of each call matters.

A new tenant takes a dozen calls of the management API, and a general client takes three times the
processor time for each.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from typing import Final

KEEP: Final = 5.0
"""Seconds an unused connection is kept."""

MOST_KEPT: Final = 16

FAILURES: Final = (OSError, HTTPException, zlib.error)
"""The errors that leave a request unanswered; trying again may help."""


class PoolClosedError(Exception):
    """The pool has been closed by its owner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A server's answer; the content is decompressed."""

    status: int
    content_type: str
    content: bytes


class HttpPool:
    """Makes requests, each on a connection that no other uses meanwhile. Callable from any thread.

    `context` is for https; `headers` go with every request. Neither redirects nor proxies are
    followed.
    """

    def __init__(
        self, host: str, port: int, *, context: ssl.SSLContext | None, headers: dict[str, str]
    ) -> None:
        self._host = host
        self._port = port
        self._context = context
        self._headers = {"Accept-Encoding": "gzip", **headers}
        self._lock = threading.Lock()
        self._kept: list[tuple[float, http.client.HTTPConnection]] = []
        self._used: set[http.client.HTTPConnection] = set()
        self._closed = False

    def close(self) -> None:
        """Close all connections; requests in flight fail."""
        with self._lock:
            self._closed = True
            kept, self._kept = self._kept, []
            used = tuple(self._used)
        for _, connection in kept:
            connection.close()
        for connection in used:
            if (sock := connection.sock) is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str],
        connect_timeout: float | None,
        timeout: float | None,
        before_sending: Callable[[], None],
    ) -> Answer:
        """Make a request, once; `before_sending` is called once there is a connection.

        The timeouts are in seconds: for connecting, and for each step after that. Raises one of
        `FAILURES`, or `PoolClosedError`.
        """
        connection = self._take()
        try:
            if connection.sock is None:
                connection.timeout = connect_timeout
                connection.connect()
            sock = connection.sock
            sock.settimeout(timeout)
            before_sending()
            connection.request(method, path, body=body, headers={**self._headers, **headers})
            response = connection.getresponse()
            content = response.read()
            if response.headers.get("Content-Encoding") == "gzip":
                content = zlib.decompress(content, wbits=zlib.MAX_WBITS | 16)
            answer = Answer(
                status=response.status,
                content_type=response.headers.get("Content-Type", ""),
                content=content,
            )
        except BaseException as error:
            self._give_up(connection)
            if self._closed and isinstance(error, FAILURES):
                raise PoolClosedError from error
            raise
        self._put(connection)
        return answer

    def _take(self) -> http.client.HTTPConnection:
        stale: list[http.client.HTTPConnection] = []
        with self._lock:
            if self._closed:
                raise PoolClosedError
            oldest = time.monotonic() - KEEP
            found = None
            while self._kept and found is None:
                since, connection = self._kept.pop()
                if since >= oldest and not _is_readable(connection):
                    found = connection
                else:
                    stale.append(connection)
            connection = found or self._new()
            self._used.add(connection)
        for one in stale:
            one.close()
        return connection

    def _put(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._used.discard(connection)
            # The server may have asked to close the connection.
            if connection.sock is not None and not self._closed and len(self._kept) < MOST_KEPT:
                self._kept.append((time.monotonic(), connection))
                return
        connection.close()

    def _give_up(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._used.discard(connection)
        connection.close()

    def _new(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(self._host, self._port)
        return http.client.HTTPSConnection(self._host, self._port, context=self._context)


def _is_readable(connection: http.client.HTTPConnection) -> bool:
    """Return whether the server has sent something unasked: that it has closed the connection."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))
