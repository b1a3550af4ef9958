"""A channel on Iggy: the messages given out on it, and their tags."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from tenantry.broker.budget import OVERHEAD, Budget
from tenantry.broker.iggy.headers import own_id, published, told
from tenantry.broker.iggy.partition import Partition
from tenantry.broker.polled import PolledSubscription, Reader
from tenantry.broker.port import Delivery, DeliverySink, QueueSpec
from tenantry.messages.port import Incoming

if TYPE_CHECKING:
    from apache_iggy import ReceiveMessage


class PartitionReader(Reader, Protocol):
    """The connection that reads for all subscriptions, and its thread."""

    def reject(self, partition: Partition, offset: int) -> None:
        """Make a message a dead letter; it is settled once that is written."""

    def settled(self, partition: Partition) -> None:
        """Record that a partition's floor has risen."""


class Span:
    """Deliveries with consecutive tags whose messages have consecutive offsets in a partition."""

    __slots__ = ("apart", "count", "excused", "first", "offset", "partition")

    def __init__(self, first: int, partition: Partition, offset: int, count: int) -> None:
        self.first = first
        self.partition = partition
        self.offset = offset
        self.count = count
        self.apart: set[int] = set()
        """Tags that were settled individually."""
        self.excused = False

    def settled(self, count: int) -> None:
        """Count deliveries as settled."""
        self.partition.unsettled -= count
        if self.excused:
            self.partition.excused -= count

    def ranges(self, up_to: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of offsets up to a tag, without those settled individually."""
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
        """Remove the deliveries up to a tag."""
        gone = up_to + 1 - self.first
        self.first += gone
        self.offset += gone
        self.count -= gone
        self.apart = {tag for tag in self.apart if tag > up_to}

    def _offset(self, tag: int) -> int:
        return self.offset + tag - self.first


class IggySubscription(PolledSubscription[Partition, PartitionReader]):
    """One tenant's channel: it maps each tag to a message's partition and offset."""

    def __init__(
        self,
        reader: PartitionReader,
        queues: Sequence[QueueSpec],
        *,
        prefetch: int,
        sink: DeliverySink,
        budget: Budget,
    ) -> None:
        super().__init__(reader, queues, prefetch=prefetch, sink=sink, budget=budget)
        self._spans: list[Span] = []

    def opened(self, held: Sequence[Partition]) -> None:
        """Begin a new channel on partitions that are held now."""
        for one in held:
            one.begin(self.prefetch)
        super().opened(held)

    def deliver(self, partition: Partition, messages: Sequence[ReceiveMessage]) -> bool:
        """Hand fetched messages to the sink while there is room; return whether all had room."""
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
                    # The messages in between are gone: expired, or deleted.
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

    def _shut(self) -> None:
        for one in self.held:
            one.seen = False
        self._spans = []
        super()._shut()

    def _settle_tags(
        self, rejects: Sequence[int], acks: Sequence[int], ack_up_to: int | None
    ) -> None:
        for tag in rejects:
            if (span := self._take(tag)) is not None:
                self._reader.reject(span.partition, span.offset + tag - span.first)
        for tag in acks:
            if (span := self._take(tag)) is not None:
                offset = span.offset + tag - span.first
                self._pass(span.partition, offset, offset + 1)
        if ack_up_to is not None:
            self._settle_up_to(ack_up_to)

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
        """Settle one delivery; return its span, or None if it is settled already."""
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

    def _excuse(self, queue: QueueSpec) -> None:
        for span in self._spans:
            if span.partition.spec == queue and not span.excused:
                span.excused = True
                span.partition.excused += span.count - len(span.apart)
