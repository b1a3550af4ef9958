"""Tenants' channels in memory, on which messages come at the test's command."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tenantry.broker.port import Delivery, DeliverySink, QueueSpec
from tenantry.messages.port import Incoming


class FakeSubscription:
    """A tenant's channel. It keeps what the broker would: unsettled and requeued messages."""

    def __init__(self, queues: Sequence[QueueSpec], sink: DeliverySink) -> None:
        self.queues = queues
        self.sink = sink
        self.generation = 0
        self.next_tag = 1
        self.unsettled: dict[int, Incoming] = {}
        self.requeued: list[Incoming] = []
        self.acked: list[int] = []
        self.rejected: list[Incoming] = []
        self.acks = 0
        self.open = False
        self.consuming = False
        self.resubscribed = 0
        self.widened: list[tuple[int, QueueSpec]] = []
        self.window = 4000
        self._successor: FakeSubscription | None = None
        self._lock = threading.RLock()

    def connect(self) -> None:
        with self._lock:
            self.generation += 1
            self.next_tag = 1
            self.open = self.consuming = True
            self.sink.consuming(self.generation)
            again, self.requeued = self.requeued, []
            if again:
                self.deliver(again, redelivered=True)

    def deliver(self, messages: Sequence[Incoming], *, redelivered: bool = False) -> None:
        with self._lock:
            if not self.consuming:
                self.requeued.extend(messages)
                return
            batch = []
            for message in messages:
                self.unsettled[self.next_tag] = message
                batch.append(Delivery(self.next_tag, redelivered, message))
                self.next_tag += 1
            self.sink.deliveries(self.generation, batch)

    def lose(self, *, missing: bool = False) -> None:
        with self._lock:
            self.open = self.consuming = False
            self.requeued = [*self.unsettled.values(), *self.requeued]
            self.unsettled = {}
            self.sink.lost(self.generation, "as planned", missing=missing)

    def settle(
        self,
        generation: int,
        *,
        rejects: Sequence[int] = (),
        acks: Sequence[int] = (),
        ack_up_to: int | None = None,
    ) -> None:
        with self._lock:
            if generation != self.generation or not self.open:
                return
            self.acks += 1
            for tag in rejects:
                self.rejected.append(self.unsettled.pop(tag))
            for tag in acks:
                del self.unsettled[tag]
                self.acked.append(tag)
            if ack_up_to is not None:
                assert ack_up_to in self.unsettled, "the broker would close the channel"
                for tag in [tag for tag in self.unsettled if tag <= ack_up_to]:
                    self.acked.append(tag)
                    del self.unsettled[tag]

    def renew_prefetch(self, generation: int, queue: QueueSpec) -> None:
        self.widened.append((generation, queue))

    def cancel(self) -> None:
        with self._lock:
            self.consuming = False
            self.sink.cancelled(self.generation)

    def resubscribe(self) -> None:
        with self._lock:
            self.resubscribed += 1
            if self.open:
                self.lose()
            self.connect()

    def close(self) -> None:
        with self._lock:
            self.open = self.consuming = False
            self.requeued = [*self.unsettled.values(), *self.requeued]
            self.unsettled = {}
            if self._successor is not None:
                self._hand_over(self._successor)

    def give_way(self, successor: FakeSubscription) -> None:
        """Leave what is requeued to the tenant's next channel, now and when this one closes."""
        with self._lock:
            self._successor = successor
            self._hand_over(successor)

    def _hand_over(self, successor: FakeSubscription) -> None:
        again, self.requeued = self.requeued, []
        if again:
            successor.deliver(again, redelivered=True)


class FakeBroker:
    """Subscriptions by tenant, the latest of each. `up` tells whether channels open at once."""

    def __init__(self) -> None:
        self.up = True
        self.subscriptions: dict[str, FakeSubscription] = {}
        self.prefetch: dict[str, int] = {}

    def subscribe(
        self, queues: Sequence[QueueSpec], *, prefetch: int, sink: DeliverySink
    ) -> FakeSubscription:
        tenant_id = queues[0].name.removeprefix("tenant_").removesuffix("_queue")
        before = self.subscriptions.get(tenant_id)
        subscription = FakeSubscription(queues, sink)
        if before is not None:
            before.give_way(subscription)
        self.subscriptions[tenant_id] = subscription
        self.prefetch[tenant_id] = prefetch
        if self.up:
            subscription.connect()
        return subscription
