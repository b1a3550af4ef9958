"""A channel of the broker in memory: prefetch, tags, generations, settling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from tenantry.broker.port import Delivery, DeliverySink, Outgoing, QueueSpec
from tenantry.messages.port import Incoming


@dataclass(slots=True)
class QueuedMessage:
    """A message in a queue, or taken off it and not settled yet."""

    outgoing: Outgoing
    redelivered: bool = False


class Queues(Protocol):
    """What a channel asks of its broker, on the thread that runs it."""

    @property
    def connected(self) -> bool: ...
    def post(self, job: Callable[[], None]) -> None: ...
    def missing(self, queues: Sequence[QueueSpec]) -> str | None: ...
    def take(self, name: str, limit: int) -> Sequence[QueuedMessage]: ...
    def give_back(self, messages: Sequence[tuple[str, QueuedMessage]]) -> None: ...
    def dead_letter(self, name: str, message: QueuedMessage) -> None: ...
    def forget(self, subscription: MemorySubscription) -> None: ...


class MemorySubscription:
    """One channel. What is not `settle`, `cancel`, `resubscribe`, `close` is the broker's."""

    def __init__(
        self,
        broker: Queues,
        queues: Sequence[QueueSpec],
        *,
        prefetch: int,
        sink: DeliverySink,
    ) -> None:
        self._broker = broker
        self._queues = tuple(queues)
        self._prefetch = prefetch
        self._sink = sink
        self._generation = 0
        self._tag = 0
        self._unsettled: dict[int, tuple[str, QueuedMessage]] = {}
        self._excused: set[int] = set()
        self._open = False
        self._wanted = True
        self._missing = False
        self._closed = False

    @property
    def window(self) -> int:
        """See `Subscription.window`."""
        return self._prefetch

    def settle(
        self,
        generation: int,
        *,
        rejects: Sequence[int] = (),
        acks: Sequence[int] = (),
        ack_up_to: int | None = None,
    ) -> None:
        """Reject some tags, ack some, ack the rest up to one."""
        settle = partial(self._settle, generation, tuple(rejects), tuple(acks), ack_up_to)
        self._broker.post(settle)

    def renew_prefetch(self, generation: int, queue: QueueSpec) -> None:
        """Count what is unsettled of a queue no longer against its prefetch."""
        self._broker.post(partial(self._renew_prefetch, generation, queue.name))

    def unsettled_queues(self) -> list[str]:
        """Name the queue of each unsettled delivery."""
        return [name for name, _ in list(self._unsettled.values())]

    def cancel(self) -> None:
        """Stop deliveries; the sink hears `cancelled`."""
        self._broker.post(self._cancel)

    def resubscribe(self) -> None:
        """Consume again, on a new channel."""
        self._broker.post(self._resubscribe)

    def close(self) -> None:
        """Give back what is unsettled and hear nothing more."""
        self._broker.post(self._close)

    def consumes(self, name: str) -> bool:
        """Whether a queue is among those of this subscription."""
        return any(one.name == name for one in self._queues)

    def take_up(self) -> None:
        """Open the channel, if it is wanted and can be."""
        if self._open or self._closed or self._missing or not self._wanted:
            return
        if not self._broker.connected:
            return
        self._generation += 1
        self._tag = 0
        self._excused.clear()
        missing = self._broker.missing(self._queues)
        if missing is not None:
            self._missing = True
            self._sink.lost(self._generation, f"no queue {missing!r}", missing=True)
            return
        self._open = True
        self._sink.consuming(self._generation)
        self.fetch()

    def fetch(self) -> None:
        """Take messages off the queues, as far as the prefetch allows, and deliver them."""
        if not self._open or not self._wanted:
            return
        unsettled = Counter(
            name for tag, (name, _) in self._unsettled.items() if tag not in self._excused
        )
        batch: list[Delivery] = []
        for spec in self._queues:
            for message in self._broker.take(spec.name, self._prefetch - unsettled[spec.name]):
                self._tag += 1
                self._unsettled[self._tag] = (spec.name, message)
                batch.append(Delivery(self._tag, message.redelivered, _incoming(spec, message)))
        if batch:
            self._sink.deliveries(self._generation, batch)

    def lose(self, reason: str, *, missing: bool) -> None:
        """Lose the channel: what is unsettled goes back to its queues."""
        if not self._open:
            return
        self._missing = missing
        self._shut()
        self._sink.lost(self._generation, reason, missing=missing)

    def _shut(self) -> None:
        self._open = False
        unsettled, self._unsettled = self._unsettled, {}
        self._broker.give_back(list(unsettled.values()))

    def _renew_prefetch(self, generation: int, queue: str) -> None:
        if generation != self._generation or not self._open:
            return
        self._excused.update(tag for tag, (name, _) in self._unsettled.items() if name == queue)
        self.fetch()

    def _settle(
        self, generation: int, rejects: Sequence[int], acks: Sequence[int], ack_up_to: int | None
    ) -> None:
        if generation != self._generation or not self._open:
            return
        for tag in rejects:
            rejected = self._unsettled.pop(tag, None)
            if rejected is not None:
                self._broker.dead_letter(*rejected)
        for tag in acks:
            self._unsettled.pop(tag, None)
        if ack_up_to is not None:
            for tag in [tag for tag in self._unsettled if tag <= ack_up_to]:
                del self._unsettled[tag]
        self.fetch()

    def _cancel(self) -> None:
        self._wanted = False
        self._sink.cancelled(self._generation)

    def _resubscribe(self) -> None:
        self._wanted = True
        self._missing = False
        self.lose("consuming begins again", missing=False)
        self.take_up()

    def _close(self) -> None:
        self._wanted = False
        self._closed = True
        self._broker.forget(self)
        if self._open:
            self._shut()


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
