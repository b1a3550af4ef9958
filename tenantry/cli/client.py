"""The daemon's HTTP API over its control socket."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

import httpx

from tenantry.cli import exact
from tenantry.cli.output import ApiError, CommandError, DaemonUnreachableError
from tenantry.unixpath import addressed

TIMEOUT: Final = 60.0
"""Seconds an answer may take where a call says nothing else: a command waits for its effect."""

CONNECT_TIMEOUT: Final = 5.0
PAGE: Final = 500


class ControlClient:
    """Calls the API on the Unix socket at `path`. Every call ends within its timeout."""

    def __init__(self, path: Path, *, timeout: float = TIMEOUT) -> None:
        self.path = path
        self._timeout = timeout
        self._addressed = ExitStack()
        self._http: httpx.Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call makes another."""
        self._http = None
        self._addressed.close()

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str | int] | None = None,
        timeout: float | None = None,
    ) -> tuple[int, Any]:
        """Make one call and give its status and decoded body, whatever the status.

        Raises `DaemonUnreachableError`, or `CommandError` where no answer comes in time.
        """
        wait = self._timeout if timeout is None else timeout
        http = self._http or self._reach()
        try:
            answer = http.request(
                method,
                path,
                params=params,
                timeout=httpx.Timeout(wait, connect=CONNECT_TIMEOUT),
                json=body,  # None sends no body
            )
        except httpx.TimeoutException as error:
            raise CommandError(f"no answer from the daemon within {wait:g} s") from error
        except httpx.TransportError as error:
            self.close()
            raise DaemonUnreachableError(
                f"the daemon at {self.path} closed the connection before it answered"
            ) from error
        return answer.status_code, _decoded(answer)

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str | int] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Make one call and give its body. Raises as `send`, and `ApiError` on a problem."""
        status, decoded = self.send(method, path, body, params=params, timeout=timeout)
        if status >= httpx.codes.BAD_REQUEST:
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
        """Give a paged collection's items one by one, at most `limit`.

        In a `sparse` one a page may be empty though more follow. `seen` is told of each page.
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
        """Tell who listens on the socket, as the kernel knows it; None where it can't tell."""
        if not hasattr(socket, "SO_PEERCRED"):
            return None
        try:
            with self._connect() as probe:
                size = struct.calcsize("3i")
                raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        except OSError:
            return None
        pid: int = struct.unpack("3i", raw)[0]
        return pid or None  # 0: it lives in another process namespace

    def _reach(self) -> httpx.Client:
        """Try the socket before the HTTP client does, which hides the reason and leaks sockets."""
        try:
            self._connect().close()
            uds = self._addressed.enter_context(addressed(self.path))
        except PermissionError as error:
            raise DaemonUnreachableError(
                f"no permission to use the control socket {self.path}: ask for its group"
            ) from error
        except OSError as error:
            raise DaemonUnreachableError(
                f"no daemon answers at {self.path}: start it with `tenantry run`"
            ) from error
        self._http = self._addressed.enter_context(
            httpx.Client(
                # There is no TLS on a Unix socket: nothing to verify, and no certificates to load.
                transport=httpx.HTTPTransport(uds=uds, verify=False),
                base_url="http://localhost",
                trust_env=False,
            )
        )
        return self._http

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


def tenant_path(tenant_id: str, *rest: str) -> str:
    """Give the path of a tenant's resource, safe for whatever the user typed."""
    return "/".join(["/tenants", quote(tenant_id, safe=""), *rest])


def describe_problem(status: int, body: object) -> str:
    """Put a problem document into one line."""
    if not isinstance(body, dict):
        return f"the daemon answered with status {status}"
    detail, title = body.get("detail"), body.get("title")
    text = detail if isinstance(detail, str) and detail else title
    line = " ".join(str(text or f"the daemon answered with status {status}").split())
    return "".join(char if char.isprintable() else "?" for char in line)


def _decoded(answer: httpx.Response) -> Any:
    if not answer.content:
        return None
    try:
        return exact.loads(answer.content.decode())
    except ValueError:
        if answer.is_success:
            raise CommandError("the daemon's answer is no JSON") from None
        return None
