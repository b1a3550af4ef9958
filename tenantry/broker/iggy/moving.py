"""Reads the messages on an Iggy server that were not stored, for a move to another broker.

The move reads as a daemon does, as a member of the daemon's consumer group, and the group's offset
passes what has moved. The streams stay, with everything in their logs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from tenantry.broker.iggy.administration import IggyAdministration
from tenantry.broker.iggy.consuming import IggyConsuming
from tenantry.broker.iggy.dead_letters import IggyDeadLetters
from tenantry.broker.iggy.passwords import PREFIX
from tenantry.broker.moving import MESSAGES, Batch, amqp_headers
from tenantry.broker.port import (
    BrokerUnavailableError,
    Delivery,
    Outgoing,
    QueueSpec,
    Subscription,
    TenantTopology,
)
from tenantry.database.pool import Database
from tenantry.messages.headers import UnfitHeaders

PATIENCE: Final = 10.0
"""Seconds without a message, while some are ready, after which the move stops waiting."""

LOOK_EVERY: Final = 0.1

_TENANTS: Final = """
SELECT id, state -> 'topics', state -> 'partitions', state -> 'topic_partitions',
       state -> 'ordered'
FROM tenantry.tenants WHERE lifecycle <> 'deleted' ORDER BY id
"""


class IggyReading:
    """A tenant's partitions (`tenantry.broker.moving.Reading`), and their delivery sink."""

    def __init__(self, tenant: TenantTopology, administration: IggyAdministration) -> None:
        self._tenant = tenant
        self._administration = administration
        self._subscription: Subscription
        self._queues = {(one.topic, one.partition): one for one in tenant.queues()}
        self._news = threading.Condition()
        self._arrived: deque[Delivery] = deque()
        self._generation = 0
        self._failure = ""
        self._given: Sequence[Delivery] = ()
        self._closed: set[QueueSpec] = set()
        self.left = 0

    def next(self) -> Batch | None:
        """See `Reading.next`."""
        while (run := self._run()) is not None:
            queue = self._queue_of(run[0])
            if not self._stays(run[0]):
                self._given = run
                messages = [_outgoing(self._tenant.exchange, queue, one) for one in run]
                return Batch(messages, queue.ordered)
            self._leave(queue, len(run))
        return None

    def settle(self, refused: Sequence[bool]) -> None:
        """See `Reading.settle`."""
        gone = [one.tag for one, no in zip(self._given, refused, strict=True) if not no]
        self._subscription.settle(self._generation, acks=gone)
        if any(refused):
            self._leave(self._queue_of(self._given[0]), refused.count(True))

    def _leave(self, queue: QueueSpec, count: int) -> None:
        """Leave messages in place, and let others come all the same."""
        self.left += count
        if queue.ordered:
            self._closed.add(queue)
        self._subscription.renew_prefetch(self._generation, queue)

    def _run(self) -> list[Delivery] | None:
        """Wait for messages, and return some of one queue, or None once there are none left.

        Either all of them move, or all stay.
        """
        until = time.monotonic() + PATIENCE
        while True:
            with self._news:
                if not self._arrived:
                    self._news.wait(LOOK_EVERY)
                if self._failure:
                    raise BrokerUnavailableError(self._failure)
                if self._arrived:
                    return self._cut()
            counts = self._administration.queue_counts().get(self._tenant.tenant_id)
            if counts is None or not counts.ready:
                with self._news:
                    return self._cut() if self._arrived else None
            if time.monotonic() > until:
                if self.left:
                    # The messages that stay fill the memory for messages in flight: no others come.
                    self.left += counts.ready
                    return None
                raise BrokerUnavailableError(
                    f"Iggy counts messages of tenant {self._tenant.tenant_id}, and delivers none"
                )

    def _cut(self) -> list[Delivery]:
        first = self._arrived[0]
        queue, stays = self._queue_of(first), self._stays(first)
        run: list[Delivery] = []
        while self._arrived and len(run) < MESSAGES:
            one = self._arrived[0]
            if self._queue_of(one) != queue or self._stays(one) != stays:
                break
            run.append(self._arrived.popleft())
        return run

    def _stays(self, delivery: Delivery) -> bool:
        """Return whether a message stays: its headers were not all read, or one before it stays."""
        unfit = isinstance(delivery.message.headers, UnfitHeaders)
        return unfit or self._queue_of(delivery) in self._closed

    def _queue_of(self, delivery: Delivery) -> QueueSpec:
        return self._queues[delivery.message.topic, delivery.message.partition]

    # Called by the subscription, on its thread.

    def begin(self, subscription: Subscription) -> None:
        """Set the subscription whose deliveries come here."""
        self._subscription = subscription

    def consuming(self, generation: int) -> None:
        """See `DeliverySink.consuming`."""
        with self._news:
            self._generation = generation

    def deliveries(self, generation: int, batch: list[Delivery]) -> None:
        """See `DeliverySink.deliveries`."""
        with self._news:
            if generation == self._generation:
                self._arrived.extend(batch)
                self._news.notify_all()

    def cancelled(self, generation: int) -> None:
        """See `DeliverySink.cancelled`."""

    def lost(self, generation: int, reason: str, *, missing: bool) -> None:  # noqa: ARG002
        """See `DeliverySink.lost`: a move that broke off is begun again."""
        self._fail(reason)

    def silent(self, queues: Sequence[str]) -> None:
        """See `DeliverySink.silent`."""
        self._fail(f"{queues[0]} can't be read: is a daemon running?")

    def _fail(self, reason: str) -> None:
        with self._news:
            self._failure = reason
            self._news.notify_all()


class Nothing:
    """The reading of a tenant without messages."""

    left = 0

    def next(self) -> None:
        """See `Reading.next`."""

    def settle(self, refused: Sequence[bool]) -> None:
        """See `Reading.settle`: nothing was given."""


class IggySource:
    """An Iggy server (`tenantry.broker.moving.Source`), beside a database without a daemon."""

    hashes: Final = PREFIX

    def __init__(
        self, database: Database, administration: IggyAdministration, consuming: IggyConsuming
    ) -> None:
        """The caller runs `consuming`."""
        self.dead_letters: Final = IggyDeadLetters(database)
        self._database = database
        self._administration = administration
        self._consuming = consuming

    def tenants(self) -> Sequence[TenantTopology]:
        """See `Source.tenants`: the tenants that are not deleted and have a stream."""
        with self._database.connection() as connection:
            rows = connection.execute(_TENANTS).fetchall()
        there = self._administration.queue_counts()
        return [
            TenantTopology(
                tenant_id=tenant_id,
                topics=tuple(topics),
                partitions=partitions,
                topic_partitions=tuple(topic_partitions or ()),
                ordered=tuple(ordered or ()),
            )
            for tenant_id, topics, partitions, topic_partitions, ordered in rows
            if tenant_id in there
        ]

    @contextmanager
    def read(self, tenant: TenantTopology) -> Iterator[IggyReading | Nothing]:
        """See `Source.read`."""
        counts = self._administration.queue_counts().get(tenant.tenant_id)
        if counts is None or not counts.ready + counts.unsettled:
            yield Nothing()
            return
        reading = IggyReading(tenant, self._administration)
        subscription = self._consuming.subscribe(tenant.queues(), prefetch=MESSAGES, sink=reading)
        reading.begin(subscription)
        try:
            yield reading
        finally:
            subscription.close()


def _outgoing(exchange: str, queue: QueueSpec, delivery: Delivery) -> Outgoing:
    message = delivery.message
    return Outgoing(
        exchange=exchange,
        routing_key=queue.routing_key,
        body=message.body,
        message_id=message.id,
        content_type=message.content_type,
        headers={"timestamp_in_ms": message.published_at_ms, **amqp_headers(message.headers or {})},
    )
