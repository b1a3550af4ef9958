"""A channel of the embedded broker: generations, tags, what is unsettled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol, TypeAlias

from tenantry import failpoints
from tenantry.broker.budget import OVERHEAD, Account, Budget
from tenantry.broker.port import Delivery, DeliverySink, QueueSpec
from tenantry.broker.postgres.reading import QueueReading
from tenantry.messages.headers import JsonHeaders
from tenantry.messages.port import Incoming

Row: TypeAlias = tuple[int, int, int, str | None, str | None, str | None, bytes, int, int, int]
"""The queue's place, number, time of publishing, id, content type, headers (JSON that is not
read on this thread), body, bytes in all; transactions."""

Place: TypeAlias = tuple[QueueReading, int]
"""A message's queue and its number."""


class Reader(Protocol):
    """The connection that reads for all subscriptions, and its thread."""

    def call(self, job: Callable[[], None]) -> None:
        """Have something done on the thread; at once, where it has ended."""

    def open(self, subscription: PostgresSubscription) -> None:
        """Take its queues up, now or as soon as they can be had."""

    def give_back(self, readings: Sequence[QueueReading]) -> None:
        """Leave queues to others."""

    def forget(self, subscription: PostgresSubscription) -> None:
        """Leave it out of everything from now on."""

    def acknowledge(self, places: Sequence[Place]) -> None:
        """Remove messages from their queues."""

    def reject(self, places: Sequence[Place]) -> None:
        """Make messages dead letters."""


class PostgresSubscription:
    """One tenant's channel. Its fields belong to the reader's thread; the public calls go there."""

    def __init__(
        self,
        reader: Reader,
        queues: Sequence[QueueSpec],
        *,
        prefetch: int,
        sink: DeliverySink,
        budget: Budget,
    ) -> None:
        self.queues = tuple(queues)
        self.prefetch = prefetch
        self.account = Account(budget)
        self.waits_for_room = -1
        """`Budget.freed` as it was when a message was too large for what is a tenant's own."""
        self.readings: tuple[QueueReading, ...] = ()
        self.retry_at = 0.0
        self.fetched_at = 0.0
        self._reader = reader
        self._sink = sink
        self._generation = 0
        self._tag = 0
        self._unsettled: dict[int, Place] = {}
        self._excused: set[int] = set()
        self._open = False
        self._wanted = True
        self._missing = False

    # From any thread.

    @property
    def window(self) -> int:
        """See `Subscription.window`."""
        return self.prefetch

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
        self._reader.call(settle)

    def renew_prefetch(self, generation: int, queue: QueueSpec) -> None:
        """Count what is unsettled of a queue no longer against its prefetch."""
        self._reader.call(partial(self._renew_prefetch, generation, queue))

    def cancel(self) -> None:
        """Stop deliveries; the sink hears `cancelled`."""
        self._reader.call(self._cancel)

    def resubscribe(self) -> None:
        """Consume again, on a new channel."""
        self._reader.call(self._resubscribe)

    def close(self) -> None:
        """Give the queues back, with what is unsettled in them, and hear nothing more."""
        self._reader.call(self._close)

    # On the reader's thread.

    @property
    def waits(self) -> bool:
        """Whether its queues are wanted and not held."""
        return self._wanted and not self._missing and not self._open

    @property
    def hungry(self) -> Iterator[QueueReading]:
        """The queues that may have messages, and credit for them."""
        if self._open and self._wanted:
            yield from (one for one in self.readings if one.hungry and one.credit > 0)

    def in_hand(self, readings: Iterable[QueueReading]) -> list[int]:
        """List the numbers of what is unsettled of some queues."""
        wanted = {reading.id for reading in readings}
        return [seq for reading, seq in self._unsettled.values() if reading.id in wanted]

    def counts(self) -> Counter[str]:
        """Count what is unsettled, by queue."""
        return Counter({one.spec.name: one.unsettled for one in self.readings if one.unsettled})

    def opened(self, readings: Sequence[QueueReading]) -> None:
        """Begin a new channel on queues that are held now."""
        self._generation += 1
        self._tag = 0
        self.readings = tuple(readings)
        self._open = True
        self._sink.consuming(self._generation)

    def absent(self, queue: str) -> None:
        """Note that a queue is not there: nothing is consumed until `resubscribe`."""
        self._generation += 1
        self._missing = True
        self._sink.lost(self._generation, f"there is no queue {queue!r}", missing=True)

    def deliver(self, parts: Sequence[tuple[QueueReading, Sequence[Row]]]) -> None:
        """Hand over what was fetched, queue by queue."""
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

    def lose(self, reason: str, *, missing: bool) -> None:
        """Drop the channel and everything unsettled on it."""
        if not self._open:
            return
        self._shut()
        self._missing = missing
        self._sink.lost(self._generation, reason, missing=missing)

    def _shut(self) -> None:
        self._open = False
        self.readings = ()
        self._unsettled = {}
        self._excused = set()
        self.account.clear()
        self.waits_for_room = -1

    def _settle(
        self,
        generation: int,
        rejects: Sequence[int],
        acks: Sequence[int],
        ack_up_to: int | None,
    ) -> None:
        if generation != self._generation or not self._open:
            return
        failpoints.reach("before_ack")
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
        self.account.settle(rejects, acks, ack_up_to)
        failpoints.reach("after_ack")

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

    def _renew_prefetch(self, generation: int, queue: QueueSpec) -> None:
        if generation != self._generation or not self._open or not self._wanted:
            return
        for tag, (reading, _) in self._unsettled.items():
            if reading.spec == queue and tag not in self._excused:
                self._excused.add(tag)
                reading.excused += 1

    def _cancel(self) -> None:
        self._wanted = False
        self._sink.cancelled(self._generation)

    def _resubscribe(self) -> None:
        self._wanted = True
        self._missing = False
        held = self.readings
        self.lose("consuming begins again", missing=False)
        self._reader.give_back(held)
        self._reader.open(self)

    def _close(self) -> None:
        self._wanted = False
        held = self.readings
        self._shut()
        self._reader.forget(self)
        self._reader.give_back(held)
