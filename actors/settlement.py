"""A consumer's unsettled deliveries: which may be acknowledged, and which are held.

Delivery tags rise by one on their channel, so one `basic.ack(multiple=True)` settles every
delivery up to a tag. It must not cover a delivery that is not committed, or is held for another
attempt.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tenantry.actors.clock import Clock
from tenantry.actors.lanes import Lanes, Pause
from tenantry.actors.messages import Batch, Ref, Reminder
from tenantry.actors.runtime_state import TenantRuntimeState
from tenantry.broker.port import Delivery, QueueSpec, Subscription
from tenantry.messages.port import Held, StoreResult, Tried

MOST_HELD: Final = 10_000
"""Held deliveries of a tenant from which on its queues' prefetch is no longer renewed."""

MOST_HELD_BYTES: Final = 64 * 1024 * 1024


class Settlement:
    """The batches of one channel, from cutting to the ack, and the held deliveries among them.

    Batches are settled on `subscription`. `Reminder.RETRY_DUE` tells the consumer when the pause of
    a held delivery may be over. The runtime state shows how many are in flight, and held.
    """

    def __init__(
        self,
        queues: Sequence[QueueSpec],
        *,
        prefetch: int,
        consumer: Ref,
        clock: Clock,
        runtime: TenantRuntimeState,
        lanes: Lanes | None = None,
    ) -> None:
        self._consumer = consumer
        self._clock = clock
        self._runtime = runtime
        self._lanes = lanes
        self._window = Window()
        self._held = HeldDeliveries(queues, prefetch=prefetch)
        self._retry_at: float | None = None
        self.subscription: Subscription | None = None

    def clear(self, in_hand: Iterable[Batch] = ()) -> None:
        """Forget everything: the channel is gone. Workers keep the batches `in_hand`."""
        self._window = Window()
        self._held.clear()
        if self._lanes is not None:
            self._lanes.clear({one.ticket for one in in_hand if one.ticket is not None})
        self._show()

    def enter(self, batch: Batch) -> None:
        """Take in a batch that was just cut."""
        self._window.enter(batch)
        self._show()

    def enter_in_order(self, deliveries: Sequence[Delivery]) -> None:
        """Take in deliveries of partitions in order, as they come: they are settled singly."""
        self._window.enter_in_order([one.tag for one in deliveries])
        self._show()

    def done(
        self, batch: Batch, result: StoreResult, *, parts: int, uncut: int | None = None
    ) -> list[Batch]:
        """Note a batch's result, and settle the deliveries that may be settled by now.

        Returns the batch's left deliveries, to be given out again at once, in at most `parts`
        parts. From the tag `uncut` on, deliveries are in no batch yet.
        """
        if batch.ticket is not None and self._lanes is not None:
            self._in_order_done(self._lanes, batch.ticket, batch, result)
            left = []
        elif batch.tried is None:
            left = self._first_attempt_done(batch, result, parts)
        else:
            self._retry_done(batch, result)
            left = []
        self._settle(batch.generation, uncut)
        self._show()
        return left

    def take_due(self, generation: int, *, batch_size: int) -> list[Batch]:
        """Return the held deliveries due now; each stays held until its last attempt is over."""
        due = self._held.take_due(self._clock.now())
        if self._lanes is not None:
            self._lanes.wake(self._clock.now())
        self._remind_of_retries()
        return [
            Batch(
                generation=generation,
                deliveries=[delivery for delivery, _ in due[at : at + batch_size]],
                tried=[tried for _, tried in due[at : at + batch_size]],
            )
            for at in range(0, len(due), batch_size)
        ]

    def reminded(self) -> None:
        """Note that `Reminder.RETRY_DUE` has come."""
        self._retry_at = None

    def _show(self) -> None:
        held, flying = self._window.held, self._window.unsettled - self._window.held
        if self._lanes is not None:
            # Deliveries that wait for the lane's batch in hand count as in flight as well.
            held += self._lanes.held
            flying -= self._lanes.held + self._lanes.ready
        self._runtime.held = held
        self._runtime.in_flight = flying

    def _first_attempt_done(self, batch: Batch, result: StoreResult, parts: int) -> list[Batch]:
        deliveries = batch.deliveries
        whole = batch.whole or batch
        self._window.finished(
            whole,
            len(deliveries) - len(result.left),
            rejects=[deliveries[one.index].tag for one in result.unstorable],
            held=[deliveries[one.index].tag for one in result.held],
        )
        self._hold(batch, result.held)
        left = [deliveries[index] for index in result.left]
        size = -(-len(left) // parts)
        return [
            Batch(
                generation=batch.generation,
                deliveries=left[at : at + size],
                whole=whole,
                more=batch.more,
                beside=batch.beside,
            )
            for at in range(0, len(left), size or 1)
        ]

    def _in_order_done(self, lanes: Lanes, ticket: int, batch: Batch, result: StoreResult) -> None:
        """Release finished deliveries; the rest return to their lanes, in order."""
        deliveries, now = batch.deliveries, self._clock.now()
        kept: dict[int, Pause | None] = {deliveries[index].tag: None for index in result.left}
        for one in result.held:
            kept[deliveries[one.index].tag] = Pause(one.tried, now + one.seconds)
        rejects = [deliveries[one.index].tag for one in result.unstorable]
        gone = kept.keys() | set(rejects)
        acks = [one.tag for one in deliveries if one.tag not in gone]
        self._window.finished_in_order(acks=acks, rejects=rejects)
        lanes.done(ticket, kept)
        self._remind_of_retries()

    def let_go(self, batch: Batch) -> None:
        """Note that a worker is done with a batch of a former channel."""
        if batch.ticket is not None and self._lanes is not None:
            self._lanes.done(batch.ticket, {})

    def _retry_done(self, batch: Batch, result: StoreResult) -> None:
        """Release deliveries whose last attempt is over; keep holding the others."""
        deliveries, tried = batch.deliveries, batch.tried or []
        rejects = {one.index for one in result.unstorable}
        left = [
            Held(index=index, seconds=0, tried=known)
            for index in result.left
            if (known := tried[index]) is not None
        ]
        kept = {*result.left, *(one.index for one in result.held)}
        acks = [one for index, one in enumerate(deliveries) if index not in kept | rejects]
        rejected = [deliveries[index] for index in sorted(rejects)]
        self._window.release(acks=[one.tag for one in acks], rejects=[one.tag for one in rejected])
        self._held.release([*acks, *rejected])
        self._hold(batch, [*result.held, *left])

    def _hold(self, batch: Batch, held: Sequence[Held]) -> None:
        """Keep deliveries unsettled until their pauses are over; other deliveries go on."""
        if not held and not self._held:
            return
        now = self._clock.now()
        for one in held:
            self._held.hold(batch.deliveries[one.index], one.tried, now + one.seconds)
        if self.subscription is not None:
            for queue in self._held.take_crowded(self.subscription.window):
                self.subscription.renew_prefetch(batch.generation, queue)
        self._remind_of_retries()

    def _remind_of_retries(self) -> None:
        due = self._held.next_due()
        lane = None if self._lanes is None else self._lanes.next_due()
        due = lane if due is None or (lane is not None and lane < due) else due
        if due is not None and (self._retry_at is None or due < self._retry_at):
            self._retry_at = due
            delay = max(0.0, due - self._clock.now())
            self._clock.tell_later(delay, self._consumer, Reminder.RETRY_DUE)

    def _settle(self, generation: int, uncut: int | None) -> None:
        ready = self._window.take_ready(uncut)
        if ready is not None and self.subscription is not None:
            self.subscription.settle(
                generation, rejects=ready.rejects, acks=ready.acks, ack_up_to=ready.ack_up_to
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """Orders for the broker: reject some tags, ack some singly, then ack all up to one."""

    rejects: Sequence[int] = ()
    acks: Sequence[int] = ()
    ack_up_to: int | None = None


@dataclass(slots=True)
class _Span:
    """A batch's tags. The batch's ack leaves out those in `apart`: rejected, or held once."""

    batch: Batch
    unfinished: int
    apart: set[int] = field(default_factory=set)
    rejects: list[int] = field(default_factory=list)


class Window:
    """The unsettled deliveries of one channel.

    A batch enters when it is cut, in the order of tags, and finishes in parts. Batches are settled
    in that order, each when all of it is finished: while nothing is held, by one ack for many
    batches; beyond a held delivery, by one ack for each delivery. Held deliveries are settled
    singly, when they are released. So are deliveries of partitions in order, whose batches don't
    have consecutive tags; but by one ack as far as everything below is finished.
    """

    def __init__(self) -> None:
        self._spans: deque[_Span] = deque()
        self._by_batch: dict[Batch, _Span] = {}
        self._held: set[int] = set()
        self._lowest: list[int] = []
        self._acks: list[int] = []
        self._rejects: list[int] = []
        self._in_order: deque[int] = deque()
        self._in_order_finished: set[int] = set()
        self.unsettled = 0
        """Deliveries in the window, held ones among them."""

    @property
    def held(self) -> int:
        """Deliveries that are held."""
        return len(self._held)

    def enter(self, batch: Batch) -> None:
        """Take in a batch, whose tags follow the earlier ones."""
        span = _Span(batch, len(batch.deliveries))
        self._spans.append(span)
        self._by_batch[batch] = span
        self.unsettled += span.unfinished

    def enter_in_order(self, tags: Collection[int]) -> None:
        """Take in deliveries of partitions in order, with tags above all earlier ones."""
        self._in_order.extend(tags)
        self.unsettled += len(tags)

    def finished_in_order(self, *, acks: Collection[int], rejects: Collection[int]) -> None:
        """Note that deliveries of partitions in order are finished."""
        self._acks += acks
        self._rejects += rejects
        self._in_order_finished.update(acks, rejects)

    def finished(
        self, batch: Batch, count: int, *, rejects: Collection[int] = (), held: Collection[int] = ()
    ) -> None:
        """Note that `count` more deliveries of a batch are finished.

        Those neither in `rejects` nor in `held` are committed.
        """
        span = self._by_batch[batch]
        span.unfinished -= count
        if rejects:
            span.rejects.extend(rejects)
            span.apart.update(rejects)
        if held:
            span.apart.update(held)
            self._held.update(held)
            for tag in held:
                heapq.heappush(self._lowest, tag)

    def release(self, *, acks: Collection[int] = (), rejects: Collection[int] = ()) -> None:
        """Hold deliveries no longer: their last attempt is over."""
        self._held.difference_update(acks)
        self._held.difference_update(rejects)
        self._acks += acks
        self._rejects += rejects

    def take_ready(self, uncut: int | None = None) -> Acknowledgement | None:
        """Return what may be settled by now, once; None if there is nothing.

        From the tag `uncut` on, deliveries may have come that are not in the window yet.
        """
        rejects, acks = self._rejects, self._acks
        self._rejects, self._acks = [], []
        up_to: int | None = None
        count = len(rejects) + len(acks)
        some_in_order = bool(self._in_order)
        lowest = self._lowest_held()
        if some_in_order:
            lowest = _lower(lowest, self._lowest_in_order())
        while self._spans and not self._spans[0].unfinished:
            span = self._spans.popleft()
            deliveries = span.batch.deliveries
            del self._by_batch[span.batch]
            rejects += span.rejects
            if not span.apart and (lowest is None or deliveries[-1].tag < lowest):
                up_to = deliveries[-1].tag
                count += len(deliveries)
                continue
            tags = [one.tag for one in deliveries if one.tag not in span.apart]
            count += len(tags) + len(span.rejects)
            below = tags if lowest is None else [tag for tag in tags if tag < lowest]
            if below:
                up_to = below[-1]
            acks += tags[len(below) :]
        if not count:
            return None
        if some_in_order:
            # All tags below the bound are settled, or are about to be.
            bound = _lower(_lower(lowest, uncut), self._first_of_batches())
            below = acks if bound is None else [tag for tag in acks if tag < bound]
            if below:
                up_to = max(up_to or 0, *below)
                acks = [] if bound is None else [tag for tag in acks if tag >= bound]
        self.unsettled -= count
        return Acknowledgement(rejects=tuple(rejects), acks=tuple(acks), ack_up_to=up_to)

    def _first_of_batches(self) -> int | None:
        return self._spans[0].batch.deliveries[0].tag if self._spans else None

    def _lowest_in_order(self) -> int | None:
        tags, finished = self._in_order, self._in_order_finished
        while tags and tags[0] in finished:
            finished.discard(tags.popleft())
        return tags[0] if tags else None

    def _lowest_held(self) -> int | None:
        lowest = self._lowest
        while lowest and lowest[0] not in self._held:
            heapq.heappop(lowest)
        return lowest[0] if lowest else None


def _lower(one: int | None, other: int | None) -> int | None:
    """Return the lower of two tags, either of which may be missing."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


@dataclass(slots=True)
class _HeldDelivery:
    """`due` is set while the pause runs; `window` is the number of its queue's window when held."""

    delivery: Delivery
    window: int
    tried: Tried
    due: float | None = None


class HeldDeliveries:
    """Deliveries that wait for another attempt, by tag, and the queues that they crowd.

    They stay unsettled, so that the broker has them too, and take up their queue's prefetch. When
    they have taken half of it, the queue is crowded, and its prefetch is to be renewed
    (`Subscription.renew_prefetch`). When too much is held already it is not renewed: the queue
    stands still, and the broker keeps its messages.
    """

    def __init__(self, queues: Sequence[QueueSpec], *, prefetch: int) -> None:
        self._queues = {(one.topic, one.partition): one for one in queues}
        self._crowd = max(1, prefetch // 2)
        self.clear()

    def clear(self) -> None:
        """Forget everything: the channel is gone."""
        self._entries: dict[int, _HeldDelivery] = {}
        self._due: list[tuple[float, int]] = []
        self._bytes = 0
        self._windows = dict.fromkeys(self._queues, 0)
        self._taken = dict.fromkeys(self._queues, 0)

    def __len__(self) -> int:
        return len(self._entries)

    def hold(self, delivery: Delivery, tried: Tried, due: float) -> None:
        """Hold a delivery, or hold it longer, until `due`."""
        entry = self._entries.get(delivery.tag)
        if entry is None:
            queue = _queue_of(delivery)
            entry = _HeldDelivery(delivery, self._windows[queue], tried)
            self._entries[delivery.tag] = entry
            self._bytes += len(delivery.message.body)
            self._taken[queue] += 1
        entry.tried, entry.due = tried, due
        heapq.heappush(self._due, (due, delivery.tag))

    def next_due(self) -> float | None:
        """Return when the next pause is over; None if none runs."""
        while self._due and not self._is_due(*self._due[0]):
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def take_due(self, now: float) -> list[tuple[Delivery, Tried]]:
        """Return the deliveries due by now; they stay held until they are released."""
        found = []
        while (due := self.next_due()) is not None and due <= now:
            _, tag = heapq.heappop(self._due)
            entry = self._entries[tag]
            entry.due = None
            found.append((entry.delivery, entry.tried))
        return found

    def release(self, deliveries: Iterable[Delivery]) -> None:
        """Hold deliveries no longer."""
        for delivery in deliveries:
            entry = self._entries.pop(delivery.tag)
            self._bytes -= len(delivery.message.body)
            queue = _queue_of(delivery)
            if entry.window == self._windows[queue]:
                self._taken[queue] -= 1

    def take_crowded(self, window: int) -> list[QueueSpec]:
        """Return the queues whose prefetch is to be renewed now, each once.

        `window` is how many deliveries of a queue may be unsettled just now.
        """
        if len(self._entries) >= MOST_HELD or self._bytes >= MOST_HELD_BYTES:
            return []
        crowd = max(1, min(self._crowd, window // 2))
        crowded = [queue for queue, taken in self._taken.items() if taken >= crowd]
        for queue in crowded:
            self._windows[queue] += 1
            self._taken[queue] = 0
        return [self._queues[queue] for queue in crowded]

    def _is_due(self, due: float, tag: int) -> bool:
        entry = self._entries.get(tag)
        return entry is not None and entry.due == due


def _queue_of(delivery: Delivery) -> tuple[str, int]:
    """Return the topic and partition of a delivery, which identify its queue."""
    return delivery.message.topic, delivery.message.partition
