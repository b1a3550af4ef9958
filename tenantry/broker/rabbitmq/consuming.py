"""Deliveries from RabbitMQ: one thread for the channels of many tenants."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tenantry.broker.adapter import UNFENCED, TermFence
from tenantry.broker.budget import Budget
from tenantry.broker.port import DeliverySink, QueueSpec
from tenantry.broker.rabbitmq.connection_pool import ConnectionPool
from tenantry.broker.rabbitmq.loop import IoLoop
from tenantry.broker.rabbitmq.subscription import RabbitSubscription
from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.loops import Heartbeat


class RabbitConsuming:
    """All subscriptions, on as few connections as will do, and one thread.

    `run` and `stop` are the owner's to call.
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
        # Where no loop runs yet, the first connection that opens will find it.
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
