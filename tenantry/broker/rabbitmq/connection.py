"""One connection to RabbitMQ, kept open: pika's select loop on a thread, connected for good."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Generic, TypeVar, cast

import pika
import structlog
from pika.exceptions import AMQPError

from tenantry.broker.port import BrokerError
from tenantry.broker.rabbitmq.permit import UNLIMITED, Permit, PermittedConnection
from tenantry.telemetry.heartbeat import Heartbeat

log = structlog.get_logger(__name__)

FIRST_BACKOFF: Final = 0.1
LONGEST_BACKOFF: Final = 3.0
"""Seconds between attempts to connect. Short, so that consuming is back soon after the broker."""

BEAT_EVERY: Final = 1.0
"""Seconds between the loop's signs of life."""

CLOSE_TIMEOUT: Final = 3.0
"""Seconds a closing handshake may take before the loop ends without it."""

OPENING_TIMEOUT: Final = 1.0
"""Seconds a connection in the making is given to open, once it is only to be closed."""


PERMIT_POLL: Final = 0.1
"""Seconds between looks at whether a lapsed permit is good again."""


def parameters(url: str, name: str, permit: Permit = UNLIMITED) -> pika.URLParameters:
    """Turn an AMQP URL into pika's parameters, with every wait bounded.

    Raises `BrokerError` for a URL that pika can't read; the message does not repeat the URL.
    """
    try:
        wanted = pika.URLParameters(url)
    except (ValueError, TypeError, AttributeError) as error:
        raise BrokerError(
            "rabbitmq.url is not an AMQP URL: amqp://user:password@host:5672/"
        ) from error
    wanted.heartbeat = 20
    wanted.socket_timeout = 5
    wanted.stack_timeout = 10
    wanted.connection_attempts = 1
    wanted.blocked_connection_timeout = None
    wanted.client_properties = permit.properties(name)
    return wanted


C = TypeVar("C", bound=PermittedConnection)


class IoLoop(Generic[C]):
    """Runs one connection and brings it back whenever it is lost, with backoff and jitter.

    `run` belongs on a thread of its own; everything the callbacks do happens there. `call` and
    `stop` come from any thread. While `permit` is not valid nothing is sent, and the connection is
    given up, which gives its deliveries back.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        on_open: Callable[[C], None],
        on_closed: Callable[[str], None],
        kind: type[C],
        linger: Callable[[C], float] = lambda _: 0.0,
        permit: Permit = UNLIMITED,
    ) -> None:
        """`linger` gives the seconds an open connection is kept once it is to be closed."""
        self.heartbeat: Final = Heartbeat()
        self._parameters = parameters(url, name, permit)
        self._permit = permit
        self._name = f"tenantry {name}"
        self._on_open = on_open
        self._on_closed = on_closed
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._kind = kind
        self._linger = linger
        self._connection: C | None = None
        self._opened = False
        self._openings = 0
        self._failures = 0

    @property
    def connected(self) -> bool:
        """Whether the connection is open now."""
        return self._opened

    @property
    def reconnects(self) -> int:
        """How often the connection was opened again after it had been lost."""
        return max(0, self._openings - 1)

    def run(self) -> None:
        """Connect, serve and reconnect until `stop`."""
        while not self._stopping.is_set():
            self.heartbeat.beat()
            if not self._permit.valid():
                self._stopping.wait(PERMIT_POLL)
                continue
            self._serve_once()
            if self._stopping.is_set():
                break
            ceiling = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(self._failures, 8))
            self._stopping.wait(ceiling * (0.5 + random.random() / 2))  # noqa: S311
            self._failures += 1

    def stop(self) -> None:
        """Close the connection cleanly, what was sent before included, and end `run`."""
        self._stopping.set()
        self.call(self._close)

    def call(self, fn: Callable[[], None]) -> bool:
        """Run `fn` on the loop's thread soon; False if no loop is running to do so."""
        with self._lock:
            connection = self._connection
            if connection is None:
                return False
            connection.ioloop.add_callback_threadsafe(fn)
            return True

    def _serve_once(self) -> None:
        connection = self._kind(
            self._parameters,
            # pika types its callbacks by the base class; it calls them with this very connection.
            on_open_callback=cast("Any", self._opened_now),
            on_open_error_callback=cast("Any", self._not_opened),
            on_close_callback=cast("Any", self._closed_now),
        )
        connection.permit = self._permit
        with self._lock:
            self._connection = connection
        if self._stopping.is_set():
            # `stop` may have looked before the connection was there to be closed.
            self.call(self._close)
        reason = "the connection's loop failed"
        self._beat(connection)
        try:
            connection.ioloop.start()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            log.exception("broker.loop_failed", connection=self._name)
        finally:
            with self._lock:
                self._connection = None
            if self._opened:
                self._opened = False
                self._on_closed(reason)
            connection.ioloop.close()

    def _beat(self, connection: C) -> None:
        self.heartbeat.beat()
        connection.ioloop.call_later(BEAT_EVERY, partial(self._beat, connection))

    def _close(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if not self._opened:
            # Pika can't be told to stop connecting without failing: it closes once it is open.
            connection.ioloop.call_later(OPENING_TIMEOUT, connection.ioloop.stop)
            return
        delay = self._linger(connection)
        connection.ioloop.call_later(delay + CLOSE_TIMEOUT, connection.ioloop.stop)
        connection.ioloop.call_later(delay, partial(self._say_goodbye, connection))

    @staticmethod
    def _say_goodbye(connection: C) -> None:
        try:
            connection.close(200, "Tenantry stops")
        except AMQPError:
            connection.ioloop.stop()

    def _opened_now(self, connection: C) -> None:
        self._opened = True
        self._openings += 1
        if self._stopping.is_set():
            self._close()
            return
        self._failures = 0
        log.info("broker.connected", connection=self._name)
        self._on_open(connection)

    def _not_opened(self, connection: C, error: BaseException) -> None:
        if not self._stopping.is_set():
            # Said once an outage; an operator who wants every attempt has the level debug.
            say = log.debug if self._failures else log.warning
            say("broker.unreachable", connection=self._name, error=describe(error))
        connection.ioloop.stop()

    def _closed_now(self, connection: C, error: BaseException) -> None:
        self._opened = False
        if not self._stopping.is_set():
            log.warning("broker.connection_lost", connection=self._name, error=describe(error))
        self._on_closed(describe(error))
        connection.ioloop.stop()


def describe(error: object) -> str:
    """Say in one line what pika's exceptions, which nest and are often empty, are about."""
    parts: list[str] = []
    seen = error
    while isinstance(seen, BaseException) and len(parts) < 4:
        parts.append(f"{type(seen).__name__}: {seen}" if str(seen) else type(seen).__name__)
        nested = getattr(seen, "exceptions", None)
        seen = nested[-1] if nested else seen.__cause__
    return " <- ".join(parts) or str(error)
