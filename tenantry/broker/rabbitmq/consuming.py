"""Deliveries from RabbitMQ: one thread serves the channels of many tenants, on few connections.

A connection has room for a limited number of channels, so there is one per thousand subscriptions.
A queue that does not answer also costs its neighbours their channels: RabbitMQ waits for it for a
minute, then closes the whole connection with an internal error. So a silent queue is left alone on
its connection, and tried again on one of its own until it answers.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import structlog
from pika.exceptions import ConnectionClosedByBroker

from tenantry.broker.adapter import UNFENCED, TermFence
from tenantry.broker.budget import Budget
from tenantry.broker.port import DeliverySink, QueueSpec
from tenantry.broker.rabbitmq.connection import RecoveringConnection, acks_settle_in
from tenantry.broker.rabbitmq.loop import IoLoop
from tenantry.broker.rabbitmq.reading import ReadingConnection
from tenantry.broker.rabbitmq.subscription import RabbitSubscription
from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.loops import Heartbeat

log = structlog.get_logger(__name__)

CHANNELS: Final = 1000
"""Subscriptions per connection; by default RabbitMQ allows 2047 channels, and a new channel may
begin before the old one has ended."""

PATIENCE: Final = 15.0
"""Seconds a queue may take to answer; RabbitMQ itself waits 60 and more."""

STILL: Final = 3.0
"""Seconds since the last answer of any queue after which the queue is slow, not the broker."""

LOOK_EVERY: Final = 1.0
MOST_ALONE: Final = 8
"""Connections for silent queues; more than these share them."""

GAVE_UP: Final = 541
"""INTERNAL_ERROR, with which RabbitMQ closes a connection after waiting for a queue in vain."""

FIRST_SOUND: Final = 4
"""The first version of RabbitMQ in which no message stops dead-lettering. Before it, a header
`x-death` that is not a list of tables ends the process that moves a quorum queue's dead letters,
and with it those of all queues on the node, until the node is restarted; and then again, if the
message is still there."""

_MAJOR: Final = re.compile(r"[0-9]{1,4}")


class PooledConnection:
    """A connection and its members; it is `alone` if it serves only members with silent queues."""

    def __init__(self, name: str, *, alone: bool) -> None:
        self.name = name
        self.alone = alone
        self.room = CHANNELS
        self.members: dict[RabbitSubscription, None] = {}
        self.connection: ReadingConnection | None = None
        self.recovery: RecoveringConnection[ReadingConnection] | None = None

    def add(self, member: RabbitSubscription) -> None:
        """Put a member on this connection."""
        self.members[member] = None
        if self.connection is not None:
            member.connected(self.connection)


class ConnectionPool:
    """All connections. Everything but the properties runs on the loop's thread, or before it."""

    def __init__(
        self, loop: IoLoop, url: str, *, fence: TermFence, tls: Tls, opened: Callable[[], None]
    ) -> None:
        """`opened` is called for each connection that opens."""
        self._loop = loop
        self._url = url
        self._fence = fence
        self._tls = tls
        self._opened = opened
        self._numbers = 0
        self._pool: list[PooledConnection] = []
        self._of: dict[RabbitSubscription, PooledConnection] = {}
        self._reconnects_before = 0
        self._versions = Versions()
        self._make()

    @property
    def connected(self) -> bool:
        """Whether every connection is open, except those of silent queues."""
        return all(
            pooled.connection is not None for pooled in tuple(self._pool) if not pooled.alone
        )

    @property
    def reconnects(self) -> int:
        """How often a connection was opened again after it had been lost."""
        now = sum(
            pooled.recovery.reconnects
            for pooled in tuple(self._pool)
            if pooled.recovery is not None
        )
        return self._reconnects_before + now

    def take(self, member: RabbitSubscription) -> None:
        """Put a member on a connection that has room, unless it is on one already."""
        if member in self._of:
            return
        free = (one for one in self._pool if not one.alone and len(one.members) < one.room)
        self._put(member, next(free, None) or self._make())

    def forget(self, member: RabbitSubscription) -> None:
        """Take a member off its connection, which is closed if it is not needed any more."""
        pooled = self._of.pop(member, None)
        if pooled is not None:
            pooled.members.pop(member, None)
            self._close_if_empty(pooled)

    def _put(self, member: RabbitSubscription, pooled: PooledConnection) -> None:
        self._of[member] = pooled
        pooled.add(member)

    def _make(self, *, alone: bool = False) -> PooledConnection:
        self._numbers += 1
        pooled = PooledConnection(f"consuming {self._numbers}", alone=alone)
        self._pool.append(pooled)
        pooled.recovery = RecoveringConnection(
            self._loop,
            self._url,
            name=pooled.name,
            fence=self._fence,
            tls=self._tls,
            on_open=partial(self._connection_opened, pooled),
            on_closed=partial(self._connection_lost, pooled),
            kind=ReadingConnection,
            linger=lambda connection: acks_settle_in(connection.settled_at),
        )
        return pooled

    def _close_if_empty(self, pooled: PooledConnection) -> None:
        first = next(one for one in self._pool if not one.alone)
        if pooled.members or pooled is first or pooled.recovery is None:
            return
        self._pool.remove(pooled)
        self._reconnects_before += pooled.recovery.reconnects
        pooled.recovery.close()

    def _connection_opened(self, pooled: PooledConnection, connection: ReadingConnection) -> None:
        connection.read_in_large_pieces()
        self._versions.saw(connection.server_properties)
        pooled.connection = connection
        # 0 means that the broker sets no limit.
        pooled.room = min(CHANNELS, max(1, (connection.params.channel_max or 65535) // 2))
        for member in list(pooled.members)[pooled.room :]:
            self._move(member)
        for member in tuple(pooled.members):
            member.connected(connection)
        self._look_soon(pooled, connection)
        self._opened()

    def _connection_lost(
        self, pooled: PooledConnection, error: BaseException | None, reason: str
    ) -> None:
        pooled.connection = None
        silent = [member for member in pooled.members if tuple(member.unanswered)]
        gave_up = isinstance(error, ConnectionClosedByBroker) and error.reply_code == GAVE_UP
        if gave_up:
            for member in silent:
                member.tell_silent()
        for member in tuple(pooled.members):
            member.disconnected(reason)
        if gave_up and silent:
            self._isolate(pooled, silent)

    def _isolate(self, pooled: PooledConnection, silent: list[RabbitSubscription]) -> None:
        """Move each silent member to a connection of its own; an `alone` connection keeps one."""
        for member in silent[1 if pooled.alone else 0 :]:
            pooled.members.pop(member, None)
            alone = [one for one in self._pool if one.alone and one is not pooled]
            if len(alone) < MOST_ALONE:
                self._put(member, self._make(alone=True))
            else:
                self._put(member, min(alone, key=lambda one: len(one.members)))

    # Silent queues.

    def _look_soon(self, pooled: PooledConnection, connection: ReadingConnection) -> None:
        connection.ioloop.call_later(LOOK_EVERY, partial(self._look, pooled, connection))

    def _look(self, pooled: PooledConnection, connection: ReadingConnection) -> None:
        if pooled.connection is not connection or pooled not in self._pool:
            return
        self._look_soon(pooled, connection)
        if pooled.alone:
            for member in tuple(pooled.members):
                if not tuple(member.unanswered) and member.answered_at > member.asked_at:
                    log.info("broker.queue_answers", connection=pooled.name)
                    self._move(member)
            return
        now = time.monotonic()
        waiting = [member for member in pooled.members if tuple(member.unanswered)]
        silent = [member for member in waiting if now - member.asked_at > PATIENCE]
        if silent and now - max(member.answered_at for member in pooled.members) > STILL:
            self._evacuate(pooled, silent)

    def _evacuate(self, pooled: PooledConnection, silent: list[RabbitSubscription]) -> None:
        """Leave silent members alone on a connection that will be closed because of them."""
        queues = [queue for member in silent for queue in member.unanswered]
        log.error(
            "broker.queue_silent",
            queues=queues[:10],
            count=len(queues),
            remedy="see the queue's state at the broker: it may have no leader",
        )
        for member in silent:
            member.tell_silent()
        pooled.alone = True
        if all(one.alone for one in self._pool):
            self._make()
        for member in tuple(pooled.members):
            if member not in silent:
                self._move(member)

    def _move(self, member: RabbitSubscription) -> None:
        """Move a member to a connection that many share."""
        member.leave("it goes on with another connection")
        pooled = self._of.pop(member)
        pooled.members.pop(member, None)
        self.take(member)
        self._close_if_empty(pooled)


class RabbitConsuming:
    """All subscriptions, on as few connections as will do, and one thread.

    The owner calls `run` and `stop`.
    """

    def __init__(
        self,
        url: str,
        fence: TermFence = UNFENCED,
        tls: Tls = SYSTEMS,
        *,
        budget: Budget | None = None,
    ) -> None:
        self._loop = IoLoop()
        self._budget = budget or Budget()
        self._pool = ConnectionPool(
            self._loop,
            url,
            fence=fence,
            tls=tls,
            opened=self._take_up,
        )
        self._subscriptions: set[RabbitSubscription] = set()
        self._new: deque[RabbitSubscription] = deque()

    @property
    def connected(self) -> bool:
        """Whether the broker is connected now."""
        return self._pool.connected

    @property
    def heartbeat(self) -> Heartbeat:
        """The loop's sign of life."""
        return self._loop.heartbeat

    @property
    def reconnects(self) -> int:
        """How often a connection was opened again after it had been lost."""
        return self._pool.reconnects

    def run(self) -> None:
        """Serve every subscription until `stop`; belongs on a thread of its own."""
        self._loop.run()

    def stop(self) -> None:
        """Close the connections once everything settled so far has been sent."""
        self._loop.stop()

    def subscribe(
        self, queues: Sequence[QueueSpec], *, prefetch: int, sink: DeliverySink
    ) -> RabbitSubscription:
        """Consume `queues`, now or as soon as the broker is connected."""
        subscription = RabbitSubscription(
            self._loop,
            queues,
            prefetch=prefetch,
            sink=sink,
            forget=self._forget,
            budget=self._budget,
        )
        self._subscriptions.add(subscription)
        self._new.append(subscription)
        # If no loop runs yet, the first connection that opens takes the subscription up.
        self._loop.call(self._take_up)
        return subscription

    def _take_up(self) -> None:
        while self._new:
            subscription = self._new.popleft()
            if subscription in self._subscriptions:
                self._pool.take(subscription)

    def _forget(self, subscription: RabbitSubscription) -> None:
        self._subscriptions.discard(subscription)
        self._pool.forget(subscription)


class Versions:
    """Warns of faulty versions among a broker's nodes, once per version."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def saw(self, properties: Mapping[str, object] | None) -> None:
        """Check the version that a node reports as a connection opens."""
        version = str((properties or {}).get("version") or "")
        major = _MAJOR.match(version)
        if major is None or version in self._seen:
            return
        self._seen.add(version)
        if int(major[0]) < FIRST_SOUND:
            log.warning(
                "broker.warning",
                version=version,
                means="a message of any tenant's can stop dead-lettering for all tenants "
                "(a forged header x-death), until RabbitMQ is started again",
                remedy="upgrade to RabbitMQ 4.0 or newer where tenants are not to be trusted",
            )
