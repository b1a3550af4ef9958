"""Tenants' dead-letter queues on RabbitMQ, browsed from the oldest message on.

A browser consumes without acknowledging. So it meets each message once, and messages that are not
removed return to their place when it ends, even if this process dies. It runs its connection's loop
on the caller's thread, and only while it waits for something.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, Final, cast

import pika
import structlog
from pika.channel import Channel
from pika.frame import Method

from tenantry.broker import topology as layout
from tenantry.broker.adapter import UNFENCED, TermFence
from tenantry.broker.budget import weight
from tenantry.broker.port import (
    BrokerUnavailableError,
    DeadLettersBusyError,
    Delivery,
    QueuedDeadLetter,
)
from tenantry.broker.rabbitmq.connection import (
    DrivenConnection,
    acks_settle_in,
    is_not_found,
    parameters_of_all,
    passed_by,
)
from tenantry.broker.rabbitmq.reading import ReadingConnection
from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.broker.rabbitmq.wire import BROKERS_HEADERS
from tenantry.domain import names
from tenantry.messages.port import Incoming

log = structlog.get_logger(__name__)

BATCH_BYTES: Final = 8 * 1024 * 1024
"""Bytes of messages given at once, except for the last one's."""

FIRST_PREFETCH: Final = 5
GROWS: Final = 4
PREFETCH: Final = 5_000
"""Messages held on the first channel, and at most on any. A browser that holds more continues on
another channel: that one holds as many as fit into `PREFETCH_BYTES` by the mean size seen, and at
most `GROWS` times as many as the last."""

PREFETCH_BYTES: Final = 32 * 1024 * 1024
"""RabbitMQ reads all that a consumer may hold from its disk at once, and keeps it in memory."""

ANSWER_TIMEOUT: Final = 10.0
"""Seconds the broker may take to answer."""

QUIET_SECONDS: Final = 2.0
"""After so long without a byte, the rest of the counted messages is held by another consumer."""

COUNT_SECONDS: Final = 1.0
HEARTBEAT: Final = 180
"""Seconds; long, as the browser's caller may wait for the database between two steps."""


UNKNOWN: Final = "unknown"
"""The reason of a message without one: a client has put it into the queue directly."""


class WholeReadingConnection(ReadingConnection):
    """Keeps all properties of the delivery that is being read, on each channel."""

    largest_table = 2**32
    """The broker writes about deaths in the headers table, which is read whatever its size."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._properties: dict[int, bytes] = {}
        super().__init__(*arguments, **keywords)

    def take_properties(self, channel: int) -> bytes:
        """Return the properties of the delivery that a receiver has just been given."""
        return self._properties.pop(channel)

    def _header(self, channel: int, data: bytes, at: int, stop: int) -> None:
        self._properties[channel] = data[at + 12 : stop]
        super()._header(channel, data, at, stop)


class RabbitDeadLetterBrowser:
    """Browses (`tenantry.broker.port.DeadLetterBrowser`) on a connection of its own."""

    def __init__(
        self, wanted: pika.URLParameters, tenant_id: str, fence: TermFence = UNFENCED
    ) -> None:
        self.gone = False
        self.complete = False
        self._tenant_id = tenant_id
        self._queue = names.dead_letter_queue_name(tenant_id)
        self._missing = False
        self._channels: list[Channel] = []
        self._held = 0
        self._holds: Counter[int] = Counter()
        self._window = 0
        self._seen = self._seen_bytes = 0
        self._tag = ""
        self._counted: int | None = None
        self._arrived: deque[tuple[Channel, Delivery, bytes]] = deque()
        self._given: list[tuple[Channel, int]] = []
        self._there = self._left = self._removed = 0
        self._settled_at = 0.0
        where = f"{wanted.host}:{wanted.port}"
        self._driven: Final = DrivenConnection(
            wanted,
            WholeReadingConnection,
            failed=lambda reason: BrokerUnavailableError(
                f"the connection to RabbitMQ at {where} failed: {reason}"
            ),
            timeout=ANSWER_TIMEOUT,
        )
        self._connection: Final = self._driven.connection
        self._connection.fence = fence

    def next(self, most: int) -> list[QueuedDeadLetter]:
        """See `DeadLetterBrowser.next`."""
        most = min(most, self._left)
        arrived = self._arrived
        while len(arrived) < most and sum(_size(*one) for one in arrived) < BATCH_BYTES:
            if self._held >= self._window:
                self._consume()
            before = len(arrived)
            self._wait_for_more()
            if len(arrived) == before:
                log.info("broker.dead_letters_elsewhere", tenant=self._tenant_id, count=self._left)
                self.complete = False
                most = self._left = before
        batch: list[QueuedDeadLetter] = []
        self._given = []
        size = 0
        while arrived and len(batch) < most and size < BATCH_BYTES:
            channel, delivery, properties = arrived.popleft()
            self._given.append((channel, delivery.tag))
            size += _size(channel, delivery, properties)
            batch.append(queued_dead_letter(self._tenant_id, delivery.message, properties))
        self._left -= len(batch)
        return batch

    def remove(self, indexes: Collection[int]) -> None:
        """See `DeadLetterBrowser.remove`."""
        for index in indexes:
            channel, tag = self._given[index]
            if not self._driven.is_open or not channel.is_open:
                raise self._driven.error()
            channel.basic_ack(tag)
            self._held -= channel is self._channels[-1]
            self._holds[channel.channel_number] -= 1
        self._removed += len(indexes)
        self._settled_at = time.monotonic()

    # The beginning and the end.

    def open(self) -> None:
        """Connect, count, and begin to consume."""
        self._driven.open()
        self._connection.read_in_large_pieces()
        self._open_channel()
        self._count()
        self.complete = True
        if self._missing:
            return
        self._there = self._left = self._counted or 0
        if self._left:
            self._consume()

    def _consume(self) -> None:
        """Consume on another channel; the messages held on the previous one stay there."""
        opened = len(self._channels)
        if self._held:
            # One consumer at a time, so that messages come in their order.
            self._cancel()
            self._open_channel()
        channel = self._channels[-1]
        self._held = 0
        self._window = self._next_window()
        self._tag = f"dead-letters-{self._tenant_id}-{opened}"
        receiver = ("default", 0, partial(self._take, channel), None)
        self._connection.receive(channel.channel_number, self._tag, receiver)
        # Without a prefetch a quorum queue gives 2,000 messages; any prefetch is a limit.
        channel.basic_qos(prefetch_count=self._window)
        channel.basic_consume(self._queue, cast("Any", passed_by), consumer_tag=self._tag)

    def _cancel(self) -> None:
        self._channels[-1].basic_cancel(self._tag, callback=self._cancelled)
        self._driven.wait(lambda: not self._tag)

    def _next_window(self) -> int:
        """Return how many messages the next channel may hold."""
        if not self._seen:
            return FIRST_PREFETCH
        fits = PREFETCH_BYTES * self._seen // self._seen_bytes
        return max(1, min(PREFETCH, fits, GROWS * max(1, self._window)))

    def _wait_for_more(self) -> None:
        """Wait for the next message, as long as bytes of it arrive."""
        more = partial(self._more_than, len(self._arrived))
        received = -1
        while not more() and received != self._connection.bytes_received:
            received = self._connection.bytes_received
            self._driven.wait(more, QUIET_SECONDS, patient=True)

    def end(self, *, well: bool) -> None:
        """Give back the messages not removed; if all went `well`, check that the rest is gone."""
        # Deliveries in flight still arrive, and are dropped.
        for channel in self._channels:
            self._connection.forget(channel.channel_number)
        try:
            if well and not self._missing and (self._removed or len(self._channels) > 1):
                self._settle()
        finally:
            self._driven.close(ANSWER_TIMEOUT)

    def _settle(self) -> None:
        """Wait for the acks to settle, give everything else back, and count the queue again."""
        self._arrived.clear()
        settled_in = acks_settle_in(self._settled_at)
        if settled_in > 0:
            self._driven.wait(lambda: False, settled_in, patient=True)
        self._give_back()
        if self._removed:
            # If other messages have arrived meanwhile, `gone` stays False, which loses nothing.
            self.gone = self._counts(lambda count: count == self._there - self._removed)

    def _give_back(self) -> None:
        """Close the channels, so that their messages return to the queue in their order.

        Each channel is given time to do so: messages returned by two at once get mixed. Nothing is
        delivered anew meanwhile.
        """
        if self._tag:
            self._cancel()
        used, self._channels = self._channels, []
        self._open_channel()
        for channel in used[:-1]:
            self._count()
            back = (self._counted or 0) + self._holds[channel.channel_number]
            channel.close()
            self._counts(lambda count, back=back: count >= back)  # type: ignore[misc]
        for channel in used[-1:]:
            channel.close()

    def _counts(self, expected: Callable[[int], bool]) -> bool:
        """Count repeatedly, for a while, until the count is as expected."""
        until = time.monotonic() + COUNT_SECONDS
        while True:
            self._count()
            if expected(self._counted or 0):
                return True
            if time.monotonic() > until:
                return False
            self._driven.wait(lambda: False, 0.05, patient=True)

    def _open_channel(self) -> None:
        channel = self._driven.channel()
        channel.add_on_close_callback(self._channel_closed)
        self._channels.append(channel)

    def _count(self) -> None:
        self._counted = None
        self._channels[-1].queue_declare(self._queue, passive=True, callback=self._declared)
        self._driven.wait(lambda: self._counted is not None or self._missing)

    def _more_than(self, before: int) -> bool:
        return len(self._arrived) > before

    # Callbacks.

    def _channel_closed(self, channel: Channel, error: Exception) -> None:
        if channel not in self._channels:
            return
        if is_not_found(error):
            self._missing = True
            self._driven.wake()
        else:
            self._driven.fail(error)

    def _cancelled(self, _frame: object) -> None:
        self._tag = ""
        self._driven.wake()

    def _declared(self, frame: Method[Any]) -> None:
        self._counted = int(frame.method.message_count)
        self._driven.wake()

    def _take(self, channel: Channel, delivery: Delivery) -> None:
        self._held += 1
        self._holds[channel.channel_number] += 1
        properties = self._connection.take_properties(channel.channel_number)
        self._seen += 1
        self._seen_bytes += _size(channel, delivery, properties)
        self._arrived.append((channel, delivery, properties))
        self._driven.wake()


class RabbitDeadLetters:
    """Dead-letter queues (`tenantry.broker.port.DeadLetters`) of the broker at `url`."""

    def __init__(self, url: str, fence: TermFence = UNFENCED, tls: Tls = SYSTEMS) -> None:
        self._nodes = parameters_of_all(url, "dead letters", fence, tls)
        for node in self._nodes:
            node.heartbeat = HEARTBEAT
        self._fence = fence
        self._guard = threading.Lock()
        self._browsed: set[str] = set()

    @contextmanager
    def browse(self, tenant_id: str) -> Iterator[RabbitDeadLetterBrowser]:
        """See `DeadLetters.browse`."""
        with self._guard:
            if tenant_id in self._browsed:
                raise DeadLettersBusyError(
                    f"the dead letters of tenant {tenant_id!r} are being replayed or discarded"
                )
            self._browsed.add(tenant_id)
        try:
            browser = self._open(tenant_id)
            well = False
            try:
                yield browser
                well = True
            finally:
                browser.end(well=well)
        finally:
            with self._guard:
                self._browsed.discard(tenant_id)

    def _open(self, tenant_id: str) -> RabbitDeadLetterBrowser:
        """Open a browser at the first node that accepts, or raise the last node's failure."""
        for left in range(len(self._nodes) - 1, -1, -1):
            node = self._nodes.current
            browser = RabbitDeadLetterBrowser(node, tenant_id, self._fence)
            try:
                browser.open()
            except BaseException as error:
                browser.end(well=False)
                self._nodes.failed(node)
                if left and isinstance(error, BrokerUnavailableError):
                    continue
                raise
            break
        return browser


def queued_dead_letter(tenant_id: str, message: Incoming, properties: bytes) -> QueuedDeadLetter:
    """Make a browser's result of a message in the tenant's dead-letter queue."""
    headers = message.headers or {}
    own = {name: value for name, value in headers.items() if not name.startswith(BROKERS_HEADERS)}
    death = _last_death(headers)
    # Use the newest death, which only the broker can have written: a client may have sent headers
    # of these names itself, and then `x-first-death-queue` is the client's, or is missing.
    died_in = death.get("queue", headers.get(layout.FIRST_DEATH_QUEUE))
    topic, partition = names.place_in(tenant_id, died_in)
    reason, time = death.get("reason"), death.get("time")
    return QueuedDeadLetter(
        message=message._replace(topic=topic, partition=partition, headers=own or None),
        reason=reason if isinstance(reason, str) and reason else UNKNOWN,
        died_at=time if isinstance(time, datetime) else None,
        properties=properties,
    )


def _last_death(headers: Mapping[str, object]) -> Mapping[str, object]:
    """Return the newest death, which stands first."""
    deaths = headers.get("x-death")
    first = deaths[0] if isinstance(deaths, list) and deaths else None
    return first if isinstance(first, dict) else {}


def _size(_channel: Channel, delivery: Delivery, properties: bytes) -> int:
    return weight(len(delivery.message.body), len(properties))
