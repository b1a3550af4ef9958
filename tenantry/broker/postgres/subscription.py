"""A channel of the embedded broker: the messages given out on it, and which are unsettled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, TypeAlias

from tenantry.broker.budget import OVERHEAD, OWN, Budget
from tenantry.broker.polled import PolledSubscription, Reader
from tenantry.broker.port import Delivery, DeliverySink, QueueSpec
from tenantry.broker.postgres.reading import QueueReading
from tenantry.messages.headers import JsonHeaders
from tenantry.messages.port import Incoming

Row: TypeAlias = tuple[int, int, int, str | None, str | None, str | None, bytes, int, int, int]
"""The queue's place in the fetch, then the message's number, time of publishing, id, content type,
headers (JSON that is not parsed on this thread), body, bytes in all; then two transactions."""

Part: TypeAlias = tuple[QueueReading, Sequence[Row]]
"""A queue, and what was fetched of it."""

Place: TypeAlias = tuple[QueueReading, int]
"""A message's queue and its number."""


FEW: Final = 25
FEW_SIZE: Final = 4096
"""Messages, and bytes of each on average, that are few."""


class QueueReader(Reader, Protocol):
    """The connection that reads for all subscriptions, and its thread."""

    def give_back(self, readings: Sequence[QueueReading]) -> None:
        """Release queues to other readers."""

    def acknowledge(self, places: Sequence[Place]) -> None:
        """Remove messages from their queues."""

    def reject(self, places: Sequence[Place]) -> None:
        """Make messages dead letters."""


class PostgresSubscription(PolledSubscription[QueueReading, QueueReader]):
    """One tenant's channel: it maps each tag to a message's queue and number."""

    def __init__(
        self,
        reader: QueueReader,
        queues: Sequence[QueueSpec],
        *,
        prefetch: int,
        sink: DeliverySink,
        budget: Budget,
    ) -> None:
        super().__init__(reader, queues, prefetch=prefetch, sink=sink, budget=budget)
        self.fetched_at = 0.0
        self.brought = 0
        """How many messages the latest fetch brought."""
        self._brought_bytes = 0
        self._unsettled: dict[int, Place] = {}
        self._excused: set[int] = set()

    @property
    def has_few(self) -> bool:
        """Whether it had few messages the latest time, and may have as many again."""
        return (
            self.brought <= FEW
            and self._brought_bytes <= FEW * FEW_SIZE
            and len(self._unsettled) <= FEW
            and self.account.room >= OWN
        )

    def in_hand(self, readings: Iterable[QueueReading]) -> list[int]:
        """List the numbers of the unsettled messages of some queues."""
        wanted = {reading.id for reading in readings}
        return [seq for reading, seq in self._unsettled.values() if reading.id in wanted]

    def counts(self) -> Counter[str]:
        """Count the unsettled messages, by queue."""
        return Counter({one.spec.name: one.unsettled for one in self.held if one.unsettled})

    def deliver(self, parts: Sequence[Part]) -> None:
        """Hand what a fetch has brought, if anything, to the sink, queue by queue."""
        self.brought = sum(len(rows) for _, rows in parts)
        self._brought_bytes = sum(row[7] for _, rows in parts for row in rows)
        if not parts:
            return
        batch: list[Delivery] = []
        tag = self._tag
        unsettled, count_in = self._unsettled, self.account.add
        for reading, rows in parts:
            topic, partition = reading.spec.topic, reading.spec.partition
            known = reading.redelivered_up_to
            for _, seq, published_at, identity, content_type, headers, body, size, _, _ in rows:
                tag += 1
                unsettled[tag] = (reading, seq)
                count_in(size + OVERHEAD)
                message = Incoming(
                    identity or None,
                    topic,
                    partition,
                    body,
                    content_type,
                    None if headers is None else JsonHeaders(headers),
                    published_at,
                    seq,
                )
                batch.append(Delivery(tag, seq <= known, message))
            reading.unsettled += len(rows)
        self._tag = tag
        self._sink.deliveries(self._generation, batch)

    def _shut(self) -> None:
        super()._shut()
        self._unsettled = {}
        self._excused = set()

    def _give_back(self, held: Sequence[QueueReading]) -> None:
        self._reader.give_back(held)

    def _settle_tags(
        self, rejects: Sequence[int], acks: Sequence[int], ack_up_to: int | None
    ) -> None:
        if rejects:
            self._reader.reject(self._settled(rejects))
        done = self._settled(acks)
        if ack_up_to is not None:
            rest = []
            for tag in self._unsettled:
                if tag > ack_up_to:
                    break
                rest.append(tag)
            done += self._settled(rest)
        if done:
            self._reader.acknowledge(done)

    def _settled(self, tags: Iterable[int]) -> list[Place]:
        places = []
        for tag in tags:
            place = self._unsettled.pop(tag, None)
            if place is None:
                continue
            places.append(place)
            place[0].unsettled -= 1
            if self._excused and tag in self._excused:
                self._excused.discard(tag)
                place[0].excused -= 1
        return places

    def _excuse(self, queue: QueueSpec) -> None:
        for tag, (reading, _) in self._unsettled.items():
            if reading.spec == queue and tag not in self._excused:
                self._excused.add(tag)
                reading.excused += 1
