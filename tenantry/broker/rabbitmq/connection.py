"""A connection to RabbitMQ: how it is opened and kept open, and helpers for its channels."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Generic, TypeVar, cast

import pika
import structlog
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel
from pika.exceptions import AMQPError, AMQPHeartbeatTimeout, ChannelClosedByBroker

from tenantry.broker.adapter import UNFENCED, TermFence
from tenantry.broker.port import BrokerError
from tenantry.broker.rabbitmq.loop import IoLoop
from tenantry.broker.rabbitmq.pika_internals import FencedConnection
from tenantry.broker.rabbitmq.term_fence import client_properties
from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls, causes_of
from tenantry.broker.rabbitmq.tls import problem as tls_problem
from tenantry.urls import Alternatives, alternatives

log = structlog.get_logger(__name__)

FIRST_BACKOFF: Final = 0.1
LONGEST_BACKOFF: Final = 3.0
"""Seconds between attempts to connect. Short, so that consuming is back soon after the broker."""

CLOSE_TIMEOUT: Final = 3.0
"""Seconds a closing handshake may take before the loop ends without it."""

OPENING_TIMEOUT: Final = 1.0
"""Seconds that a connection still being opened may take to open, if it is only to be closed."""

FENCE_POLL: Final = 0.1
"""Seconds between checks whether a lapsed term is valid again."""

HEARTBEAT: Final = 8
"""Seconds, in AMQP's sense: RabbitMQ drops a connection after two to three of them without a byte
from us. Its authors advise 6 to 15; below 5, a busy peer is taken for dead."""

LOOK_EVERY: Final = 1.0

SILENT_AFTER: Final = 2 * HEARTBEAT
"""Looks without a byte received until the broker counts as silent: four heartbeats missed."""

ACKS_SETTLE: Final = 0.3
"""Seconds between the last ack and the end of its channel.

A quorum queue's side of the channel holds acks back while many are in flight, and forgets them when
the channel ends; AMQP has no reply by which it would confirm them. A message whose ack is forgotten
is delivered again, and found to be a duplicate: this pause only makes that rare.
"""

NOT_FOUND: Final = 404


def parameters_of_all(
    url: str, name: str, fence: TermFence = UNFENCED, tls: Tls = SYSTEMS
) -> Alternatives[pika.URLParameters]:
    """Make parameters for each node of an AMQP URL, which may name several nodes of a cluster."""
    return Alternatives([parameters(one, name, fence, tls) for one in alternatives(url)])


def parameters(
    url: str, name: str, fence: TermFence = UNFENCED, tls: Tls = SYSTEMS
) -> pika.URLParameters:
    """Make pika's parameters of an AMQP URL, with every wait bounded.

    Raises `BrokerError` for a URL that pika can't read, without repeating the URL, and for files of
    `tls` that can't be used.
    """
    try:
        wanted = pika.URLParameters(url)
    except (ValueError, TypeError, AttributeError) as error:
        raise BrokerError(
            "rabbitmq.url is not an AMQP URL: amqp://user:password@host:5672/"
        ) from error
    secure(wanted, url, tls)
    wanted.heartbeat = HEARTBEAT
    wanted.socket_timeout = 5
    wanted.stack_timeout = 10
    wanted.connection_attempts = 1
    wanted.blocked_connection_timeout = None
    wanted.client_properties = client_properties(fence, name)
    return wanted


def secure(wanted: pika.URLParameters, url: str, tls: Tls) -> None:
    """Have a connection to an amqps URL trust what `tls` trusts, and show its certificate.

    The URL's own `?ssl_options=`, a feature of pika, holds where `tls` says nothing. Raises
    `BrokerError`.
    """
    if wanted.ssl_options is None or (tls == SYSTEMS and "ssl_options" in url):
        return
    wanted.ssl_options = pika.SSLOptions(tls.context(), wanted.host)


class SilenceWatch:
    """Breaks off an open connection on which nothing arrives. Belongs to the loop's thread.

    RabbitMQ sends something on every connection at least every half heartbeat. pika checks for that
    too, but only once every heartbeat plus 5 s, so that up to twice as long may pass.

    Looks are counted, not seconds: the loop reads before it looks, and does neither while it is
    held up. So a daemon that was busy, or frozen, does not blame the broker for it.
    """

    def __init__(self, ioloop: IOLoop, connection: FencedConnection) -> None:
        self._ioloop = ioloop
        self._connection = connection
        self._received = connection.bytes_received
        self._silent = 0
        ioloop.call_later(LOOK_EVERY, self._look)

    def _look(self) -> None:
        if not self._connection.is_open:
            return
        received = self._connection.bytes_received
        self._silent = self._silent + 1 if received == self._received else 0
        self._received = received
        if self._silent >= SILENT_AFTER:
            seconds = self._silent * LOOK_EVERY
            self._connection.break_off(
                AMQPHeartbeatTimeout(f"the broker has been silent for {seconds:.0f} s")
            )
            return
        self._ioloop.call_later(LOOK_EVERY, self._look)


C = TypeVar("C", bound=pika.SelectConnection)
F = TypeVar("F", bound=FencedConnection)


class RecoveringConnection(Generic[F]):
    """A connection on a loop, reopened whenever it is lost, with backoff and jitter.

    Made before the loop runs, or on its thread; everything but the properties belongs there. While
    `fence` is not valid nothing is sent, and the connection is closed, which gives its deliveries
    back.
    """

    def __init__(
        self,
        loop: IoLoop,
        url: str,
        *,
        name: str,
        on_open: Callable[[F], None],
        on_closed: Callable[[BaseException | None, str], None],
        kind: type[F],
        linger: Callable[[F], float] = lambda _: 0.0,
        fence: TermFence = UNFENCED,
        tls: Tls = SYSTEMS,
    ) -> None:
        """`linger` returns the seconds to wait before an open connection is closed.

        `on_closed` is called when an open connection is lost, with the error, if there was one, and
        the reason in words.
        """
        self._loop = loop
        self._nodes = parameters_of_all(url, name, fence, tls)
        self._node = self._nodes.current
        self._fence = fence
        self._name = f"tenantry {name}"
        self._on_open = on_open
        self._on_closed = on_closed
        self._kind = kind
        self._linger = linger
        self._ioloop: IOLoop | None = None
        self._connection: F | None = None
        self._opened = False
        self._openings = 0
        self._failures = 0
        self._closing = False
        loop.add(self)

    @property
    def connected(self) -> bool:
        """Whether the connection is open now."""
        return self._opened

    @property
    def reconnects(self) -> int:
        """How often the connection was opened again after it had been lost."""
        return max(0, self._openings - 1)

    def begin(self, ioloop: IOLoop) -> None:
        """Connect, and connect again whenever the connection is lost."""
        self._ioloop = ioloop
        self._connect()

    def abandon(self, reason: str) -> None:
        """Record that the loop is gone; the next `begin` connects again."""
        self._ioloop = self._connection = None
        if self._opened:
            self._opened = False
            self._on_closed(None, reason)

    def close(self) -> None:
        """Close cleanly and for good; harmless twice."""
        if self._closing:
            return
        self._closing = True
        ioloop, connection = self._ioloop, self._connection
        if ioloop is None or connection is None:
            self._end()
            return
        if not self._opened:
            # Pika can't stop connecting without an error: the connection is closed once it is open.
            ioloop.call_later(OPENING_TIMEOUT, self._end)
            return
        delay = self._linger(connection)
        ioloop.call_later(delay + CLOSE_TIMEOUT, self._end)
        ioloop.call_later(delay, partial(self._say_goodbye, connection))

    def _connect(self) -> None:
        if self._ioloop is None or self._closing:
            return
        if not self._fence.valid():
            self._ioloop.call_later(FENCE_POLL, self._connect)
            return
        self._node = self._nodes.current
        self._connection = self._kind(
            self._node,
            # pika types its callbacks by the base class; it calls them with this very connection.
            on_open_callback=cast("Any", self._opened_now),
            on_open_error_callback=cast("Any", self._not_opened),
            on_close_callback=cast("Any", self._closed_now),
            custom_ioloop=self._ioloop,
        )
        self._connection.fence = self._fence

    def _connect_later(self) -> None:
        self._nodes.failed(self._node)
        self._connection = None
        if self._closing:
            self._end()
            return
        ceiling = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(self._failures, 8))
        self._failures += 1
        if self._ioloop is not None:
            self._ioloop.call_later(ceiling * (0.5 + random.random() / 2), self._connect)  # noqa: S311

    def _end(self) -> None:
        self._loop.remove(self)

    def _say_goodbye(self, connection: F) -> None:
        try:
            connection.close(200, "Tenantry stops")
        except AMQPError:
            self._end()

    def _opened_now(self, connection: F) -> None:
        self._opened = True
        self._openings += 1
        if self._closing:
            self._say_goodbye(connection)
            return
        self._failures = 0
        if self._ioloop is not None:
            SilenceWatch(self._ioloop, connection)
        log.info("broker.connected", connection=self._name, **self._named())
        self._on_open(connection)

    def _not_opened(self, _connection: F, error: BaseException) -> None:
        if not self._closing:
            # Logged once per outage; the level debug shows every attempt.
            say = log.debug if self._failures else log.warning
            said = {"connection": self._name, "error": describe(error), **self._named()}
            say("broker.unreachable", **said)
        self._connect_later()

    def _closed_now(self, _connection: F, error: BaseException) -> None:
        self._opened = False
        if not self._closing:
            said = {"connection": self._name, "error": describe(error), **self._named()}
            log.warning("broker.connection_lost", **said)
        self._on_closed(error, describe(error))
        self._connect_later()

    def _named(self) -> dict[str, str]:
        """Name the node, if there are several."""
        several = len(self._nodes) > 1
        return {"node": f"{self._node.host}:{self._node.port}"} if several else {}


class DrivenConnection(Generic[C]):
    """A connection whose loop runs on its owner's thread, and only while the owner waits.

    Every wait is bounded. `failed` makes the errors raised, from the reason in words.
    """

    def __init__(
        self,
        wanted: pika.URLParameters,
        kind: type[C],
        *,
        failed: Callable[[str], Exception],
        timeout: float,
    ) -> None:
        """`timeout` is the seconds that the broker may take to answer any request."""
        self.failure: str | None = None
        """Why the connection can't be used any more."""
        self._failed = failed
        self._timeout = timeout
        self._opened = self._closed = self._ending = False
        self._done: Callable[[], bool] = lambda: False
        self.connection: Final = kind(
            wanted,
            # pika types its callbacks by the base class; it calls them with this very connection.
            on_open_callback=cast("Any", self._open_now),
            on_open_error_callback=cast("Any", self._closed_now),
            on_close_callback=cast("Any", self._closed_now),
        )

    @property
    def is_open(self) -> bool:
        """Whether the connection can be used; once lost it stays lost."""
        return self._opened and self.failure is None

    def open(self) -> None:
        """Wait until the connection is open."""
        self.wait(lambda: self._opened)

    def channel(self) -> Channel:
        """Open a channel."""
        channel = self.connection.channel(on_open_callback=lambda _channel: self.wake())
        self.wait(lambda: channel.is_open or channel.is_closed)
        if not channel.is_open:
            raise self.error()
        return channel

    def wait(
        self, done: Callable[[], bool], seconds: float | None = None, *, patient: bool = False
    ) -> None:
        """Serve the connection until `done()`; being late is an error unless `patient`."""
        seconds = self._timeout if seconds is None else seconds
        loop, until = self.connection.ioloop, time.monotonic() + seconds
        self._done = done
        while not done():
            if self.failure is not None:
                raise self.error()
            left = until - time.monotonic()
            if left <= 0:
                if patient:
                    return
                raise self._failed(f"no answer from the broker within {seconds:g} s")
            timer = loop.call_later(left, loop.stop)
            loop.start()
            loop.remove_timeout(timer)

    def error(self) -> Exception:
        """Make the error that says why the connection can't be used any more."""
        return self._failed(self.failure or "the broker closed the channel")

    def wake(self) -> None:
        """Let `wait` check again; every callback ends with this."""
        if self._closed or self.failure is not None or self._done():
            self.connection.ioloop.stop()

    def fail(self, error: BaseException) -> None:
        """Record why the connection can't be used, unless a reason is known or it is closing."""
        if self.failure is None and not self._ending:
            self.failure = describe(error)
        self.wake()

    def close(self, seconds: float) -> None:
        """Close and free the connection, waiting at most so many seconds."""
        connection = self.connection
        self._ending, self.failure = True, None
        try:
            if connection.is_open:
                connection.close()
            if not connection.is_closed:
                self.wait(lambda: self._closed, seconds, patient=True)
        except AMQPError as error:
            log.debug("broker.connection_ended_badly", error=str(error))
        finally:
            connection.ioloop.close()

    def _open_now(self, _connection: C) -> None:
        self._opened = True
        self.wake()

    def _closed_now(self, _connection: C, error: BaseException) -> None:
        self._closed = True
        self.fail(error)


def describe(error: object) -> str:
    """Describe in one line pika's exceptions, which nest and are often empty."""
    secured = tls_problem(error) if isinstance(error, BaseException) else None
    if secured is not None:
        return secured
    inside = causes_of(error) if isinstance(error, BaseException) else ()
    for one in inside:
        if isinstance(one, OSError) and one.strerror:
            return one.strerror[:1].lower() + one.strerror[1:]
    parts: list[str] = []
    seen = error
    while isinstance(seen, BaseException) and len(parts) < 4:
        parts.append(f"{type(seen).__name__}: {seen}" if str(seen) else type(seen).__name__)
        nested = getattr(seen, "exceptions", None)
        seen = nested[-1] if nested else seen.__cause__
    return " <- ".join(parts) or str(error)


def acks_settle_in(settled_at: float) -> float:
    """Return the seconds until acks sent at `settled_at` count as processed."""
    return max(0.0, settled_at + ACKS_SETTLE - time.monotonic())


def is_not_found(error: BaseException) -> bool:
    """Return whether the broker closed a channel for a queue that does not exist."""
    return isinstance(error, ChannelClosedByBroker) and error.reply_code == NOT_FOUND


def passed_by(*_delivery: object) -> None:
    """Stand in for the callback that pika requires; deliveries are read elsewhere."""
    raise AssertionError("a delivery took pika's way")
