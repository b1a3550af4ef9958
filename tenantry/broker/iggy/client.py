"""The client library `apache-iggy`, which may be missing, and its errors as the port's.

The server's address and a user are read from `iggy://user:password@host:port`.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Final, Self, TypeVar
from urllib.parse import unquote, urlsplit

from tenantry.broker.adapter import UNFENCED, TermFence
from tenantry.broker.port import BrokerError, BrokerUnavailableError
from tenantry.urls import address, iggy_url

if TYPE_CHECKING:
    from apache_iggy import IggyClient

T = TypeVar("T")

CONNECT_TIMEOUT: Final = 5.0
TIMEOUT: Final = 10.0
"""Seconds the server may take for one request."""

HEARTBEAT: Final = timedelta(seconds=5)
"""By default the server drops a client that it has not heard from for 30 seconds."""

SESSIONS: Final = 4
"""Connections kept for calls; this many calls can be in flight at once."""

WAIT: Final = 30.0
"""Seconds to wait for a free connection."""

LETTING_GO: Final = 0.2
"""Seconds the library's threads get at the end of the process."""

FRESH: Final = 1.0
"""Seconds after a call during which a connection counts as alive without a check."""

_REMEDY: Final = (
    "broker.url is an Iggy server's, and Iggy's client is not installed:"
    " pip install 'tenantry[iggy]'"
)
_REFUSED: Final = "Invalid credentials"

PORT: Final = 8090
"""The port of Iggy's own protocol over TCP; its HTTP API is not used."""

SECURE: Final = "iggys"
"""The scheme of a server with TLS."""


class RefusedError(BrokerError):
    """The server forbids this user the request."""


class CredentialsError(RefusedError):
    """The server has no such user, or another password for it."""


class MissingError(BrokerError):
    """There is no such stream, topic, partition, group or user."""


class ExistsError(BrokerError):
    """An object of that name exists already."""


def library() -> ModuleType:
    """Return the client library. Raises `BrokerError` that says how to install it."""
    try:
        import apache_iggy
    except ImportError as error:
        raise BrokerError(_REMEDY) from error
    _see_its_threads_out()
    return apache_iggy


@cache
def _see_its_threads_out() -> None:
    """Have the interpreter wait, before it ends, for the library's threads.

    They release the objects of an answered request a moment after the answer. A thread that does so
    during the interpreter's shutdown aborts the process, whatever its exit code was to be.
    """
    atexit.register(time.sleep, LETTING_GO)


def error_of(error: BaseException, where: str, source: str = "broker.url") -> BrokerError:
    """Return the port's error for one of the library's, whose kinds differ only by their text."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, TimeoutError):
        return BrokerUnavailableError(f"Iggy at {where} does not answer")
    message = f"Iggy at {where}: {text}"
    if "not found" in text:
        return MissingError(message)
    if "already exists" in text:
        return ExistsError(message)
    if text == "Unauthorized":
        return RefusedError(message)
    if text == _REFUSED:
        return CredentialsError(f"{message}: check user and password in {source}")
    if isinstance(error, (ValueError, TypeError, OverflowError)) or text.startswith(
        ("Invalid", "Too ", "Empty", "Unsupported", "Feature")
    ):
        return BrokerError(message)
    return BrokerUnavailableError(message)


async def connect(access: Access) -> IggyClient:
    """Open a connection, which ends when it is lost: its owner opens the next one."""
    iggy = library()
    try:
        client: IggyClient = iggy.IggyClient(
            iggy.TcpConfig(
                server_address=access.where,
                reconnection=iggy.TcpReconnectionConfig(enabled=False),
                heartbeat_interval=HEARTBEAT,
                tls_enabled=access.secure,
                tls_ca_file=access.ca_file or None,
                nodelay=True,
            )
        )
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await client.connect()
            await client.login_user(access.user, access.password)
    except (RuntimeError, ValueError, TimeoutError) as error:
        found = error_of(error, access.where, access.source)
        raise _unreachable(found, access) from error
    return client


def _unreachable(error: BrokerError, access: Access) -> BrokerError:
    if access.ca_file and "TLS certificate" in str(error):
        return BrokerError(
            f"{error}: broker.ca_file (BROKER_CA_FILE) is {access.ca_file}, which must be a file of"
            " certificates in PEM form"
        )
    if isinstance(error, BrokerUnavailableError):
        # The library does not tell why there is no connection.
        trust = (
            "; or trust its certificate: broker.ca_file (BROKER_CA_FILE) names its authority"
            if access.secure
            else ""
        )
        return BrokerUnavailableError(
            f"Iggy can't be reached at {access.where}: {error}; start it, or correct"
            f" {access.source}{trust}"
        )
    return error


async def disconnect(client: IggyClient) -> None:
    """Log out, if the server is still there."""
    with suppress(RuntimeError, TimeoutError):
        async with asyncio.timeout(1):
            await client.logout_user()


class Session:
    """A connection for blocking calls, used by one thread at a time."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._loop = asyncio.new_event_loop()
        try:
            self._client = self._loop.run_until_complete(connect(access))
        except BaseException:
            self._loop.close()
            raise
        self.used_at = time.monotonic()

    def lives(self) -> bool:
        """Return whether the server still answers; it is asked only after a pause."""
        if time.monotonic() - self.used_at < FRESH:
            return True
        try:
            self.call(lambda client: client.ping(), timeout=CONNECT_TIMEOUT)
        except BrokerError:
            return False
        return True

    def call(self, ask: Callable[[IggyClient], Awaitable[T]], *, timeout: float = TIMEOUT) -> T:
        """Make one request, and wait for its answer. Raises `BrokerError`."""

        async def asked() -> T:
            async with asyncio.timeout(timeout):
                return await ask(self._client)

        try:
            answer = self._loop.run_until_complete(asked())
        except (RuntimeError, ValueError, TypeError, OverflowError, TimeoutError) as error:
            raise error_of(error, self._access.where) from error
        self.used_at = time.monotonic()
        return answer

    def close(self) -> None:
        """Close the connection."""
        with suppress(RuntimeError):
            self._loop.run_until_complete(disconnect(self._client))
        self._loop.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """A server's address, and a user of it."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    secure: bool = False
    ca_file: str = ""
    """The authority to trust, a PEM file; empty: those that the client library trusts."""
    source: str = "broker.url"
    """The setting that the URL is from, for messages."""

    @classmethod
    def of(cls, url: str, *, ca_file: str = "", source: str = "broker.url") -> Self:
        """Read a URL; without a user it means Iggy's root user with its initial password."""
        parts = urlsplit(url)
        return cls(
            host=parts.hostname or "",
            port=parts.port or PORT,
            user=unquote(parts.username or "iggy"),
            password=unquote(parts.password or "iggy"),
            secure=parts.scheme == SECURE,
            ca_file=ca_file,
            source=source,
        )

    @property
    def where(self) -> str:
        """HOST:PORT."""
        return address(self.host, self.port)

    def url_for(self, user: str, password: str) -> str:
        """Return the URL for another user."""
        scheme = SECURE if self.secure else "iggy"
        return iggy_url(scheme=scheme, user=user, password=password, host=self.host, port=self.port)


class Sessions:
    """A few sessions of one user, opened when needed. Callable from any thread.

    A session with an unanswered call is not reused: its answer may still arrive. Nothing is sent
    once the term has lapsed.
    """

    def __init__(self, access: Access, fence: TermFence = UNFENCED) -> None:
        self.access: Final = access
        self._fence = fence
        self._guard = threading.Lock()
        self._free = threading.BoundedSemaphore(SESSIONS)
        self._idle: list[Session] = []
        self.opened = 0
        """How many sessions were opened in all."""

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Lend a session. Raises `BrokerError`."""
        self._fence.check()
        if not self._free.acquire(timeout=WAIT):
            raise BrokerUnavailableError(
                f"Iggy at {self.access.where} is too slow: {SESSIONS} calls are waiting"
            )
        try:
            session = self._take()
            try:
                yield session
            except BrokerUnavailableError:
                session.close()
                raise
            except BrokerError:
                self._keep(session)
                raise
            except BaseException:
                session.close()
                raise
            self._keep(session)
        finally:
            self._free.release()

    def call(self, ask: Callable[[IggyClient], Awaitable[T]], *, timeout: float = TIMEOUT) -> T:
        """Make one request. Raises `BrokerError`."""
        with self.session() as session:
            return session.call(ask, timeout=timeout)

    def close(self) -> None:
        """Close the sessions kept open between calls."""
        with self._guard:
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def _take(self) -> Session:
        while True:
            with self._guard:
                session = self._idle.pop() if self._idle else None
            if session is None:
                self.opened += 1
                return Session(self.access)
            if session.lives():
                return session
            session.close()

    def _keep(self, session: Session) -> None:
        with self._guard:
            self._idle.append(session)
