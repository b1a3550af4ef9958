"""The daemon's HTTP API over its control socket."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from errno import ECONNABORTED
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

from tenantry import exact
from tenantry.cli.output import ApiError, CommandError, DaemonUnreachableError
from tenantry.unixpath import addressed

TIMEOUT: Final = 60.0
"""Seconds an answer may take by default: the daemon answers a command after its effect."""

CONNECT_TIMEOUT: Final = 5.0
PAGE: Final = 500
_LONGEST_TRACE: Final = 512


class ControlClient:
    """Calls the API on the Unix socket at `path`, from any thread; each call has a timeout."""

    def __init__(self, path: Path, *, timeout: float = TIMEOUT) -> None:
        self.path = path
        self._timeout = timeout
        self._kept: deque[_Connection] = deque()
        self._busy: set[_Connection] = set()
        self._aborted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the kept connections; the next call makes another."""
        while self._kept:
            self._kept.pop().close()

    def abort(self) -> None:
        """Make calls that are under way on other threads, and all later calls, fail at once."""
        self._aborted = True
        for connection in self._busy.copy():
            connection.end()

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str | int] | None = None,
        timeout: float | None = None,
    ) -> tuple[int, Any]:
        """Make one call and return its status and decoded body, whatever the status.

        Raises `DaemonUnreachableError`, or `CommandError` if no answer comes in time.
        """
        wait = self._timeout if timeout is None else timeout
        connection = self._reach()
        target = f"{path}?{urlencode(params)}" if params else path
        sent = None if body is None else json.dumps(body).encode()
        headers = _trace() | ({} if sent is None else {"Content-Type": "application/json"})
        self._busy.add(connection)
        try:
            if self._aborted:
                raise OSError(ECONNABORTED, "the call was given up")  # noqa: TRY301
            connection.sock.settimeout(wait)
            connection.request(method, target, body=sent, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
        except TimeoutError as error:
            connection.close()
            raise CommandError(f"no answer from the daemon within {wait:g} s") from error
        except (OSError, HTTPException) as error:
            connection.close()
            raise DaemonUnreachableError(
                f"the daemon at {self.path} closed the connection before it answered"
            ) from error
        except BaseException:
            connection.close()
            raise
        finally:
            self._busy.discard(connection)
        self._kept.append(connection)
        return answer.status, _decoded(answer.status, content)

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str | int] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Make one call and return its body. Raises as `send` does, and `ApiError` on a problem."""
        status, decoded = self.send(method, path, body, params=params, timeout=timeout)
        if status >= HTTPStatus.BAD_REQUEST:
            raise ApiError(status, describe_problem(status, decoded))
        return decoded

    def pages(
        self,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        limit: int | None = None,
        timeout: float | None = None,
        sparse: bool = False,
        seen: Callable[[dict[str, Any]], object] = lambda _: None,
    ) -> Iterator[dict[str, Any]]:
        """Yield a paged collection's items one by one, at most `limit`.

        In a `sparse` collection a page may be empty though more follow. `seen` is called with each
        page.
        """
        query: dict[str, str | int] = dict(params or {})
        given = 0
        while limit is None or given < limit:
            query["limit"] = PAGE if limit is None else min(PAGE, limit - given)
            page = self.call("GET", path, params=query, timeout=timeout)
            seen(page)
            yield from page["data"]
            given += len(page["data"])
            cursor = page.get("next_cursor")
            # Some collections (events) always name a cursor, so that a reader can come back.
            if not cursor or not (page["data"] or sparse):
                return
            query["cursor"] = cursor

    def daemon_pid(self) -> int | None:
        """Return the id of the process that listens on the socket; None if it can't be found."""
        if not hasattr(socket, "SO_PEERCRED"):
            return None
        try:
            with self._connect() as probe:
                size = struct.calcsize("3i")
                raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        except OSError:
            return None
        pid: int = struct.unpack("3i", raw)[0]
        return pid or None  # 0: the process is in another process namespace

    def _reach(self) -> _Connection:
        """Return a kept connection that the daemon has not closed, or a new one."""
        with suppress(IndexError):
            while True:
                kept = self._kept.pop()
                if kept.is_quiet():
                    return kept
                kept.close()
        try:
            return _Connection(self._connect())
        except PermissionError as error:
            raise DaemonUnreachableError(
                f"no permission to use the control socket {self.path}: ask for its group"
            ) from error
        except OSError as error:
            raise DaemonUnreachableError(
                f"no daemon answers at {self.path}: start it with `tenantry run`"
            ) from error

    def _connect(self) -> socket.socket:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.settimeout(CONNECT_TIMEOUT)
            with addressed(self.path) as address:
                probe.connect(address)
        except BaseException:
            probe.close()
            raise
        return probe


def _trace() -> dict[str, str]:
    """Return the headers of the trace that the environment names, if it names one."""
    given = {name: os.environ.get(name.upper(), "") for name in ("traceparent", "tracestate")}
    return {
        name: value
        for name, value in given.items()
        if 0 < len(value) <= _LONGEST_TRACE and value.isascii() and value.isprintable()
    }


class _Connection(HTTPConnection):
    """HTTP on a socket that is connected already; it is not connected again once it is closed."""

    sock: socket.socket

    def __init__(self, sock: socket.socket) -> None:
        super().__init__("localhost")
        self.auto_open = 0
        self.sock = sock

    def end(self) -> None:
        """Make another thread's wait on this connection fail."""
        sock = self.sock
        with suppress(OSError):  # it has ended by itself
            if sock is not None:
                sock.shutdown(socket.SHUT_RDWR)

    def is_quiet(self) -> bool:
        """Tell whether it is open, and the daemon has neither sent data unasked nor closed it."""
        return self.sock is not None and not select.select([self.sock], [], [], 0)[0]


def tenant_path(tenant_id: str, *rest: str) -> str:
    """Return the path of a tenant's resource, safe whatever the user typed as the id."""
    return "/".join(["/tenants", quote(tenant_id, safe=""), *rest])


def describe_problem(status: int, body: object) -> str:
    """Put a problem document into one line."""
    if not isinstance(body, dict):
        return f"the daemon answered with status {status}"
    detail, title = body.get("detail"), body.get("title")
    text = detail if isinstance(detail, str) and detail else title
    line = " ".join(str(text or f"the daemon answered with status {status}").split())
    return "".join(char if char.isprintable() else "?" for char in line)


def _decoded(status: int, content: bytes) -> Any:
    if not content:
        return None
    try:
        return exact.loads(content.decode())
    except ValueError:
        if status < HTTPStatus.MULTIPLE_CHOICES:
            raise CommandError("the daemon's answer is no JSON") from None
        return None
