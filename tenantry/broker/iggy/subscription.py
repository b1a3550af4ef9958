"""A channel on Iggy: generations, tags, and which messages of which partitions they stand for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from tenantry import failpoints
from tenantry.broker.budget import OVERHEAD, Account, Budget
from tenantry.broker.iggy.headers import told
from tenantry.broker.iggy.partition import Partition
from tenantry.broker.port import Delivery, DeliverySink, QueueSpec
from tenantry.messages.port import Incoming

if TYPE_CHECKING:
    from apache_iggy import ReceiveMessage


class Reader(Protocol):
    """The connection that reads for all subscriptions, and its thread."""

    def call(self, job: Callable[[], None]) -> None:
        """Have something done on the thread; at once, where it has ended."""

    def forget(self, subscription: IggySubscription) -> None:
        """Leave it out of everything from now on."""

    def reject(self, partition: Partition, offset: int) -> None:
        """Make a message a dead letter; it is settled once it is one."""

    def settled(self, partition: Partition) -> None:
        """Note that a partition's floor has risen."""


class Span:
    """Deliveries with consecutive tags whose messages have consecutive offsets in a partition."""

    __slots__ = ("apart", "count", "excused", "first", "offset", "partition")

    def __init__(self, first: int, partition: Partition, offset: int, count: int) -> None:
        self.first = first
        self.partition = partition
        self.offset = offset
        self.count = count
        self.apart: set[int] = set()
        """Tags that were settled by themselves."""
        self.excused = False

    def settled(self, count: int) -> None:
        """Count deliveries as settled."""
        self.partition.unsettled -= count
        if self.excused:
            self.partition.excused -= count

    def ranges(self, up_to: int) -> Iterator[tuple[int, int]]:
        """Give the ranges of offsets up to a tag, without what was settled by itself."""
        start = self.first
        for tag in sorted(self.apart):
            if tag > up_to:
                break
            if start < tag:
                yield self._offset(start), self._offset(tag)
            start = tag + 1
        if start <= up_to:
            yield self._offset(start), self._offset(up_to + 1)

    def drop(self, up_to: int) -> None:
        """Leave out the deliveries up to a tag."""
        gone = up_to + 1 - self.first
        self.first += gone
        self.offset += gone
        self.count -= gone
        self.apart = {tag for tag in self.apart if tag > up_to}

    def _offset(self, tag: int) -> int:
        return self.offset + tag - self.first


class IggySubscription:
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
        """`Budget.freed` as it was when a message found no room."""
        self.partitions: tuple[Partition, ...] = ()
        self.retry_at = 0.0
        self._reader = reader
        self._sink = sink
        self._generation = 0
        self._tag = 0
        self._spans: list[Span] = []
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
        """Leave the partitions to others, with what is unsettled, and hear nothing more."""
        self._reader.call(self._close)

    # On the reader's thread.

    @property
    def waits(self) -> bool:
        """Whether its queues are wanted and not held."""
        return self._wanted and not self._missing and not self._open

    @property
    def consumes(self) -> bool:
        """Whether messages are given out."""
        return self._wanted and self._open

    def hungry(self) -> list[Partition]:
        """Give the partitions that may have messages, and credit; those with least first."""
        if not self.consumes:
            return []
        found = [one for one in self.partitions if one.hungry and one.credit(self.prefetch) > 0]
        found.sort(key=lambda one: one.unsettled)
        return found

    def opened(self, partitions: Sequence[Partition]) -> None:
        """Begin a new channel."""
        self._generation += 1
        self._tag = 0
        self.partitions = tuple(partitions)
        for one in partitions:
            one.begin()
        self._open = True
        self._sink.consuming(self._generation)

    def absent(self, reason: str) -> None:
        """Note that a queue is not there: nothing is consumed until `resubscribe`."""
        self._generation += 1
        self._missing = True
        self._sink.lost(self._generation, reason, missing=True)

    def silent(self, queues: Sequence[str]) -> None:
        """Tell that queues can't be had, though they are there."""
        self._sink.silent(queues)

    def deliver(self, partition: Partition, messages: Sequence[ReceiveMessage]) -> bool:
        """Hand over what was polled, as far as there is room; tell whether all of it was."""
        batch: list[Delivery] = []
        topic, number = partition.spec.topic, partition.place.partition
        again, window = partition.redelivered_up_to, partition.window
        take, tag, size = self.account.take, self._tag, 0
        span: Span | None = None
        for message in messages:
            offset = message.offset()
            if offset != partition.next:
                span = None
                if offset > partition.next:
                    # What was between is no more: expired, or deleted.
                    window.settle(partition.next, offset)
            if window.is_settled(offset):
                span = None
                partition.next = offset + 1
                continue
            stamp = message.timestamp()
            read = told(message, own_id(message, topic, number, stamp), published(message, stamp))
            body = message.payload()
            weight = len(body) + read.size + OVERHEAD
            if not take(weight):
                self._tag = tag
                self._hand_over(partition, batch, size)
                return False
            tag += 1
            size += weight
            if span is None:
                span = Span(tag, partition, offset, 0)
                self._spans.append(span)
            span.count += 1
            partition.next = offset + 1
            incoming = Incoming(
                read.id, topic, number, body, read.content_type, read.headers, read.published_at_ms
            )
            batch.append(Delivery(tag, offset < again, incoming))
        self._tag = tag
        self._hand_over(partition, batch, size)
        return True

    def _hand_over(self, partition: Partition, batch: list[Delivery], size: int) -> None:
        if batch:
            partition.unsettled += len(batch)
            partition.note_sizes(len(batch), size)
            self._sink.deliveries(self._generation, batch)
        if partition.window.floor > partition.stored:
            self._reader.settled(partition)

    def lose(self, reason: str, *, missing: bool) -> None:
        """Drop the channel and everything unsettled on it."""
        if not self._open:
            return
        self._shut()
        self._missing = missing
        self._sink.lost(self._generation, reason, missing=missing)

    def _shut(self) -> None:
        self._open = False
        for one in self.partitions:
            one.seen = False
        self.partitions = ()
        self._spans = []
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
        for tag in rejects:
            if (span := self._take(tag)) is not None:
                self._reader.reject(span.partition, span.offset + tag - span.first)
        for tag in acks:
            if (span := self._take(tag)) is not None:
                offset = span.offset + tag - span.first
                self._pass(span.partition, offset, offset + 1)
        if ack_up_to is not None:
            self._settle_up_to(ack_up_to)
        self.account.settle(rejects, acks, ack_up_to)
        failpoints.reach("after_ack")

    def _settle_up_to(self, up_to: int) -> None:
        done = 0
        for span in self._spans:
            if span.first > up_to:
                break
            last = min(up_to, span.first + span.count - 1)
            for start, end in span.ranges(last):
                self._pass(span.partition, start, end)
                span.settled(end - start)
            if last < span.first + span.count - 1:
                span.drop(last)
                break
            done += 1
        del self._spans[:done]

    def _take(self, tag: int) -> Span | None:
        """Settle a delivery by itself; None where it is settled."""
        at = bisect_right(self._spans, tag, key=lambda one: one.first) - 1
        if at < 0:
            return None
        span = self._spans[at]
        if tag >= span.first + span.count or tag in span.apart:
            return None
        span.apart.add(tag)
        span.settled(1)
        return span

    def _pass(self, partition: Partition, start: int, end: int) -> None:
        if partition.window.settle(start, end):
            self._reader.settled(partition)

    def _renew_prefetch(self, generation: int, queue: QueueSpec) -> None:
        if generation != self._generation or not self._open or not self._wanted:
            return
        for span in self._spans:
            if span.partition.spec == queue and not span.excused:
                span.excused = True
                span.partition.excused += span.count - len(span.apart)

    def _cancel(self) -> None:
        self._wanted = False
        self._sink.cancelled(self._generation)

    def _resubscribe(self) -> None:
        self._wanted = True
        self._missing = False
        self.lose("consuming begins again", missing=False)
        self.retry_at = 0.0

    def _close(self) -> None:
        self._wanted = False
        self._shut()
        self._reader.forget(self)


def own_id(message: ReceiveMessage, topic: str, partition: int, stamp: int) -> str:
    """Give the id of a message whose headers name none.

    It is Iggy's own, which is a UUID; else its place, with the time at which it was put there: a
    place is used again once a topic was purged, or made anew.
    """
    number = message.id()
    if not number:
        return f"{topic}.{partition}.{message.offset()}.{stamp}"
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def published(message: ReceiveMessage, stamp: int) -> int:
    """Give the time a message was made at, in milliseconds; else the one it was stored at."""
    made = message.origin_timestamp()
    return (made if 0 < made <= stamp else stamp) // 1000
