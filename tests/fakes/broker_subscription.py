"""A channel of the broker in memory: prefetch, tags, settling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tenantry.broker.budget import Budget
from tenantry.broker.polled import PolledSubscription, Reader
from tenantry.broker.port import Delivery, DeliverySink, Outgoing, QueueSpec
from tenantry.messages.port import Incoming


@dataclass(slots=True)
class QueuedMessage:
    """A message in a queue, or taken off it and not settled yet."""

    outgoing: Outgoing
    redelivered: bool = False


@dataclass(slots=True)
class MemoryQueue:
    """A queue that is read, and how much of it is in hand."""

    spec: QueueSpec
    prefetch: int
    unsettled: int = 0
    excused: int = 0
    hungry: bool = True

    @property
    def credit(self) -> int:
        """How many more deliveries the prefetch allows."""
        return self.prefetch - self.unsettled + self.excused


class MemoryReader(Reader, Protocol):
    """What a channel asks of its broker, on the thread that runs it."""

    @property
    def connected(self) -> bool: ...
    def missing(self, queues: Sequence[QueueSpec]) -> str | None: ...
    def take(self, name: str, limit: int) -> Sequence[QueuedMessage]: ...
    def give_back(self, messages: Sequence[tuple[str, QueuedMessage]]) -> None: ...
    def dead_letter(self, name: str, message: QueuedMessage) -> None: ...
    def take_up(self, subscription: MemorySubscription) -> None: ...


class MemorySubscription(PolledSubscription[MemoryQueue, MemoryReader]):
    """One channel, and the messages that are unsettled on it."""

    def __init__(
        self,
        reader: MemoryReader,
        queues: Sequence[QueueSpec],
        *,
        prefetch: int,
        sink: DeliverySink,
    ) -> None:
        super().__init__(reader, queues, prefetch=prefetch, sink=sink, budget=Budget())
        self._unsettled: dict[int, tuple[MemoryQueue, QueuedMessage]] = {}
        self._excused: set[int] = set()

    def unsettled_queues(self) -> list[str]:
        """Name the queue of each unsettled delivery."""
        return [queue.spec.name for queue, _ in list(self._unsettled.values())]

    def reads(self, name: str) -> bool:
        """Whether a queue is among those of this subscription."""
        return any(one.name == name for one in self.queues)

    def take_up(self) -> None:
        """Open the channel, if it is wanted and can be."""
        if not self.waits or not self._reader.connected:
            return
        missing = self._reader.missing(self.queues)
        if missing is not None:
            self.absent(f"no queue {missing!r}")
            return
        self.opened([MemoryQueue(spec, self.prefetch) for spec in self.queues])
        self.fetch()

    def fetch(self) -> None:
        """Take messages off the queues, as far as the prefetch allows, and deliver them."""
        if not self.consumes:
            return
        batch: list[Delivery] = []
        for queue in self.held:
            for message in self._reader.take(queue.spec.name, queue.credit):
                self._tag += 1
                self._unsettled[self._tag] = (queue, message)
                queue.unsettled += 1
                batch.append(
                    Delivery(self._tag, message.redelivered, _incoming(queue.spec, message))
                )
        if batch:
            self._sink.deliveries(self._generation, batch)

    def _settle_tags(
        self, rejects: Sequence[int], acks: Sequence[int], ack_up_to: int | None
    ) -> None:
        for tag in rejects:
            rejected = self._settled(tag)
            if rejected is not None:
                self._reader.dead_letter(*rejected)
        for tag in acks:
            self._settled(tag)
        if ack_up_to is not None:
            for tag in [tag for tag in self._unsettled if tag <= ack_up_to]:
                self._settled(tag)
        self.fetch()

    def _settled(self, tag: int) -> tuple[str, QueuedMessage] | None:
        found = self._unsettled.pop(tag, None)
        if found is None:
            return None
        queue, message = found
        queue.unsettled -= 1
        if tag in self._excused:
            self._excused.discard(tag)
            queue.excused -= 1
        return queue.spec.name, message

    def _excuse(self, queue: QueueSpec) -> None:
        for tag, (held, _) in self._unsettled.items():
            if held.spec == queue and tag not in self._excused:
                self._excused.add(tag)
                held.excused += 1
        self.fetch()

    def _shut(self) -> None:
        super()._shut()
        unsettled, self._unsettled = self._unsettled, {}
        self._excused = set()
        self._reader.give_back(
            [(queue.spec.name, message) for queue, message in unsettled.values()]
        )

    def _resubscribe(self) -> None:
        super()._resubscribe()
        self._reader.take_up(self)


def _incoming(spec: QueueSpec, message: QueuedMessage) -> Incoming:
    outgoing = message.outgoing
    return Incoming(
        id=outgoing.message_id,
        topic=spec.topic,
        partition=spec.partition,
        body=outgoing.body,
        content_type=outgoing.content_type,
        headers=outgoing.headers,
        published_at_ms=None,
    )
