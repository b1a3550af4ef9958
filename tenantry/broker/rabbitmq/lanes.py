"""Which subscription is on which connection: few connections, and no bad neighbours.

A connection has room for so many channels, so there is one more for every thousand. And a queue
that does not answer costs its neighbours theirs: RabbitMQ waits for it a minute, then closes the
whole connection with an internal error. So one that keeps silent is left alone on its connection,
and tried again on one of its own until it answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Protocol

import structlog
from pika.exceptions import ConnectionClosedByBroker

from tenantry.broker.adapter import TermFence
from tenantry.broker.rabbitmq.connection import RecoveringConnection
from tenantry.broker.rabbitmq.loop import IoLoop
from tenantry.broker.rabbitmq.reading import ReadingConnection
from tenantry.broker.rabbitmq.tls import Tls

log = structlog.get_logger(__name__)

CHANNELS: Final = 1000
"""Subscriptions a connection; by default RabbitMQ allows 2047 channels, and a new one may begin
before an old one has ended."""

PATIENCE: Final = 15.0
"""Seconds a queue may take to answer; RabbitMQ's own are 60 and more."""

STILL: Final = 3.0
"""Seconds without any answer after which it is the queue that is slow, not the broker."""

LOOK_EVERY: Final = 1.0
MOST_ALONE: Final = 8
"""Connections for silent queues; more than these share them."""

GAVE_UP: Final = 541
"""INTERNAL_ERROR: what RabbitMQ closes a connection with whose queue it has waited for in vain."""


class Rider(Protocol):
    """What is on a connection: a subscription."""

    asked_at: float
    """When it last asked its queues to be consumed."""
    answered_at: float

    @property
    def unanswered(self) -> Iterable[str]:
        """Its queues that have not answered; none of one that consumes, or does not want to."""

    def connected(self, connection: ReadingConnection) -> None:
        """Consume on this connection."""

    def disconnected(self, reason: str) -> None:
        """Note that the connection is gone."""

    def tell_silent(self) -> None:
        """Tell its owner which queues do not answer."""

    def leave(self, reason: str) -> None:
        """Give up the channel, to go on with another connection."""


class Lane:
    """A connection and those who are on it."""

    def __init__(self, name: str, *, alone: bool) -> None:
        self.name = name
        self.alone = alone
        self.room = CHANNELS
        self.riders: dict[Rider, None] = {}
        self.connection: ReadingConnection | None = None
        self.link: RecoveringConnection[ReadingConnection] | None = None

    def add(self, rider: Rider) -> None:
        """Take somebody on."""
        self.riders[rider] = None
        if self.connection is not None:
            rider.connected(self.connection)


class Lanes:
    """All lanes. Everything but the properties belongs on the loop's thread, or before it runs."""

    def __init__(
        self,
        loop: IoLoop,
        url: str,
        *,
        fence: TermFence,
        tls: Tls,
        opened: Callable[[], None],
        linger: Callable[[float], float],
    ) -> None:
        """`opened` hears of each connection that opens; `linger` is for `RecoveringConnection`."""
        self._loop = loop
        self._url = url
        self._fence = fence
        self._tls = tls
        self._opened = opened
        self._linger = linger
        self._numbers = 0
        self._lanes: list[Lane] = []
        self._of: dict[Rider, Lane] = {}
        self._reconnects_before = 0
        self._make()

    @property
    def connected(self) -> bool:
        """Whether every connection is open but those of silent queues."""
        return all(lane.connection is not None for lane in tuple(self._lanes) if not lane.alone)

    @property
    def reconnects(self) -> int:
        """How often a connection was opened again after it had been lost."""
        now = sum(lane.link.reconnects for lane in tuple(self._lanes) if lane.link is not None)
        return self._reconnects_before + now

    def take(self, rider: Rider) -> None:
        """Put somebody on a lane that has room; harmless if they are on one."""
        if rider in self._of:
            return
        free = (one for one in self._lanes if not one.alone and len(one.riders) < one.room)
        self._put(rider, next(free, None) or self._make())

    def forget(self, rider: Rider) -> None:
        """Take somebody off their lane; one that is not needed any more is closed."""
        lane = self._of.pop(rider, None)
        if lane is not None:
            lane.riders.pop(rider, None)
            self._close_if_empty(lane)

    def _put(self, rider: Rider, lane: Lane) -> None:
        self._of[rider] = lane
        lane.add(rider)

    def _make(self, *, alone: bool = False) -> Lane:
        self._numbers += 1
        lane = Lane(f"consuming {self._numbers}", alone=alone)
        self._lanes.append(lane)
        lane.link = RecoveringConnection(
            self._loop,
            self._url,
            name=lane.name,
            fence=self._fence,
            tls=self._tls,
            on_open=partial(self._lane_opened, lane),
            on_closed=partial(self._lane_closed, lane),
            kind=ReadingConnection,
            linger=lambda connection: self._linger(connection.settled_at),
        )
        return lane

    def _close_if_empty(self, lane: Lane) -> None:
        first = next(one for one in self._lanes if not one.alone)
        if lane.riders or lane is first or lane.link is None:
            return
        self._lanes.remove(lane)
        self._reconnects_before += lane.link.reconnects
        lane.link.close()

    def _lane_opened(self, lane: Lane, connection: ReadingConnection) -> None:
        connection.read_in_large_pieces()
        lane.connection = connection
        # 0 means that the broker sets no limit.
        lane.room = min(CHANNELS, max(1, (connection.params.channel_max or 65535) // 2))
        for rider in list(lane.riders)[lane.room :]:
            self._move(rider)
        for rider in tuple(lane.riders):
            rider.connected(connection)
        self._look_soon(lane, connection)
        self._opened()

    def _lane_closed(self, lane: Lane, error: BaseException | None, reason: str) -> None:
        lane.connection = None
        silent = [rider for rider in lane.riders if tuple(rider.unanswered)]
        gave_up = isinstance(error, ConnectionClosedByBroker) and error.reply_code == GAVE_UP
        if gave_up:
            for rider in silent:
                rider.tell_silent()
        for rider in tuple(lane.riders):
            rider.disconnected(reason)
        if gave_up and silent:
            self._isolate(lane, silent)

    def _isolate(self, lane: Lane, silent: list[Rider]) -> None:
        """Give each silent one a connection of its own; the one it is on, if it is alone there."""
        for rider in silent[1 if lane.alone else 0 :]:
            lane.riders.pop(rider, None)
            alone = [one for one in self._lanes if one.alone and one is not lane]
            if len(alone) < MOST_ALONE:
                self._put(rider, self._make(alone=True))
            else:
                self._put(rider, min(alone, key=lambda one: len(one.riders)))

    # Silent queues.

    def _look_soon(self, lane: Lane, connection: ReadingConnection) -> None:
        connection.ioloop.call_later(LOOK_EVERY, partial(self._look, lane, connection))

    def _look(self, lane: Lane, connection: ReadingConnection) -> None:
        if lane.connection is not connection or lane not in self._lanes:
            return
        self._look_soon(lane, connection)
        if lane.alone:
            for rider in tuple(lane.riders):
                if not tuple(rider.unanswered) and rider.answered_at > rider.asked_at:
                    log.info("broker.queue_answers", connection=lane.name)
                    self._move(rider)
            return
        now = time.monotonic()
        waiting = [rider for rider in lane.riders if tuple(rider.unanswered)]
        silent = [rider for rider in waiting if now - rider.asked_at > PATIENCE]
        if silent and now - max(rider.answered_at for rider in lane.riders) > STILL:
            self._evacuate(lane, silent)

    def _evacuate(self, lane: Lane, silent: list[Rider]) -> None:
        """Leave silent ones alone on a connection that will be closed because of them."""
        queues = [queue for rider in silent for queue in rider.unanswered]
        log.error(
            "broker.queue_silent",
            queues=queues[:10],
            count=len(queues),
            remedy="see the queue's state at the broker: it may have no leader",
        )
        for rider in silent:
            rider.tell_silent()
        lane.alone = True
        if all(one.alone for one in self._lanes):
            self._make()
        for rider in tuple(lane.riders):
            if rider not in silent:
                self._move(rider)

    def _move(self, rider: Rider) -> None:
        """Put somebody on a lane of the many."""
        rider.leave("it goes on with another connection")
        lane = self._of.pop(rider)
        lane.riders.pop(rider, None)
        self.take(rider)
        self._close_if_empty(lane)
