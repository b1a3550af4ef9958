"""Channels of RabbitMQ for calls that wait for one answer at a time: mostly declarations."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy
from typing import Final

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from tenantry.broker.adapter import UNFENCED, TermFence
from tenantry.broker.port import BrokerError, BrokerUnavailableError
from tenantry.broker.rabbitmq.connection import describe, parameters_of_all
from tenantry.broker.rabbitmq.pika_internals import fenced_blocking_connection
from tenantry.broker.rabbitmq.term_fence import client_properties
from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.broker.rabbitmq.tls import problem as tls_problem
from tenantry.urls import Alternatives

CONNECTIONS: Final = 4
"""The most declarations at once, each on a connection of its own."""

WAIT: Final = 30.0
"""Seconds a declaration waits for another one to end."""

BLOCKED_TIMEOUT: Final = 10.0
"""Seconds a declaration waits for a broker that is out of memory or disk."""

CLOCK_TIMEOUTS: Final = 2.0, 5.0
"""Seconds to connect, in each step and in all, if only the broker's clock is to be read."""

_ACCESS_REFUSED: Final = 403
_NOT_FOUND: Final = 404
_LOCKED: Final = 405
_NOT_ALLOWED: Final = 530

KEEP: Final = 3.0
"""Seconds; the broker's heartbeats stay unanswered meanwhile, and it expects one within 16."""


class BlockingChannels:
    """Channels on pika's blocking connections, one per connection. Callable from any thread."""

    def __init__(self, url: str, fence: TermFence = UNFENCED, tls: Tls = SYSTEMS) -> None:
        self._nodes = parameters_of_all(url, "administration", fence, tls)
        for node in self._nodes:
            node.blocked_connection_timeout = BLOCKED_TIMEOUT
        self._fence = fence
        self._clocks = parameters_of_all(url, "clock", fence, tls)
        for clock in self._clocks:
            clock.socket_timeout, clock.stack_timeout = CLOCK_TIMEOUTS
        self.where: Final = " or ".join(f"{node.host}:{node.port}" for node in self._nodes)
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self._kept = KeptConnections()

    @property
    def node(self) -> pika.URLParameters:
        """The node to connect to next: of several, the one that was reached last."""
        return self._nodes.current

    def close_old(self) -> None:
        """Close connections unused for a while; call this every few seconds."""
        self._kept.close_old()

    def close(self) -> None:
        """Close the connections kept open between calls, and keep none from now on."""
        self._kept.close()

    def connect_to_read_the_clock(self, name: str) -> pika.BlockingConnection:
        """Make a connection with this name for the broker, quickly or not at all."""
        called = [copy(clock) for clock in self._clocks]
        for wanted in called:
            wanted.client_properties = client_properties(self._fence, name)
        return self._connect(Alternatives(called))

    @contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        """Open a channel on a connection of its own. Errors become `BrokerError`."""
        self._fence.check()
        if not self._free.acquire(timeout=WAIT):
            raise BrokerUnavailableError(
                f"RabbitMQ at {self.where} is too slow: {CONNECTIONS} declarations are waiting"
            )
        try:
            connection, channel = self._open_channel()
            in_order = False
            try:
                yield channel
                in_order = True
            except (AMQPError, OSError) as error:
                # A connection whose term lapses breaks off by itself: then that is the reason.
                self._fence.check()
                raise self._failed(error) from error
            finally:
                self._keep_or_close(connection, channel, in_order=in_order)
        finally:
            self._free.release()

    def _open_channel(self) -> tuple[pika.BlockingConnection, BlockingChannel]:
        """Open a channel, on a kept connection if one is still good."""
        while (kept := self._kept.take()) is not None:
            try:
                return kept, kept.channel()
            except (AMQPError, OSError):
                close(kept)
                self._fence.check()
        connection = self._connect(self._nodes)
        try:
            return connection, connection.channel()
        except (AMQPError, OSError) as error:
            close(connection)
            self._fence.check()
            raise self._failed(error) from error

    def _keep_or_close(
        self, connection: pika.BlockingConnection, channel: BlockingChannel, *, in_order: bool
    ) -> None:
        if in_order:
            try:
                channel.close()
            except (AMQPError, OSError):
                in_order = False
        if in_order:
            self._kept.keep(connection)
        else:
            close(connection)

    def _connect(self, nodes: Alternatives[pika.URLParameters]) -> pika.BlockingConnection:
        """Connect to the first node that can be reached, or raise the last node's failure."""
        for _ in range(len(nodes) - 1):
            node = nodes.current
            try:
                return self._connect_to(node)
            except BrokerUnavailableError:
                nodes.failed(node)
        return self._connect_to(nodes.current)

    def _connect_to(self, wanted: pika.URLParameters) -> pika.BlockingConnection:
        try:
            return fenced_blocking_connection(wanted, self._fence)
        except (AuthenticationError, ProbableAuthenticationError) as error:
            raise BrokerError(
                f"RabbitMQ at {self.where} refuses user name and password: check rabbitmq.url"
            ) from error
        except ProbableAccessDeniedError as error:
            raise self._no_access() from error
        except ConnectionClosedByBroker as error:
            if error.reply_code in {_ACCESS_REFUSED, _NOT_FOUND, _NOT_ALLOWED}:
                raise self._no_access() from error
            raise self._failed(error) from error
        except (AMQPError, OSError) as error:
            self._fence.check()
            secured = wanted.ssl_options is not None
            reason = tls_problem(error, secured=secured) or (
                f"{describe(error)}; start it, or correct rabbitmq.url"
            )
            raise BrokerUnavailableError(
                f"RabbitMQ can't be reached at {self.where}: {reason}"
            ) from error

    def _no_access(self) -> BrokerError:
        return BrokerError(
            f"RabbitMQ at {self.where} gives no access to the virtual host "
            f"{self.node.virtual_host!r}: it must exist, and the user have rights on it"
        )

    def _failed(self, error: Exception) -> BrokerError:
        if isinstance(error, ChannelClosedByBroker):
            if error.reply_code == _ACCESS_REFUSED:
                return BrokerError(
                    f"the user of rabbitmq.url lacks rights: {reply_text(error)}; it must be "
                    "allowed to configure, write and read everything in its virtual host"
                )
            if error.reply_code == _LOCKED:
                return BrokerUnavailableError(
                    "another daemon is making or removing the same object, try again: "
                    f"{reply_text(error)}"
                )
            return BrokerError(f"RabbitMQ refuses: {reply_text(error)}")
        return BrokerUnavailableError(
            f"the connection to RabbitMQ at {self.where} failed: {describe(error)}"
        )


def reply_text(error: ChannelClosedByBroker) -> str:
    """Return in one line what the broker said when it closed a channel."""
    return re.sub(r"\s+", " ", str(error.reply_text)).strip()[:300]


class KeptConnections:
    """Idle connections, kept for the next declaration. Callable from any thread.

    Opening a connection costs broker and daemon more than most declarations on it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[tuple[float, pika.BlockingConnection]] = []
        self._closed = False

    def take(self) -> pika.BlockingConnection | None:
        """Return a connection for the caller alone, or None; it may be lost without a sign yet."""
        with self._lock:
            return self._kept.pop()[1] if self._kept else None

    def keep(self, connection: pika.BlockingConnection) -> None:
        """Keep a sound connection on which nothing is in progress."""
        with self._lock:
            if not self._closed:
                self._kept.append((time.monotonic(), connection))
                return
        close(connection)

    def close_old(self) -> None:
        """Close connections unused for a while; call this every few seconds."""
        oldest = time.monotonic() - KEEP
        with self._lock:
            old = [one for since, one in self._kept if since < oldest]
            self._kept = [kept for kept in self._kept if kept[0] >= oldest]
        for connection in old:
            close(connection)

    def close(self) -> None:
        """Close all connections, and every one that is to be kept from now on."""
        with self._lock:
            self._closed = True
            kept, self._kept = self._kept, []
        for _, connection in kept:
            close(connection)


def close(connection: pika.BlockingConnection) -> None:
    """Close a connection in any state."""
    with suppress(AMQPError, OSError):
        connection.close()
