"""The consumer: makes batches of a tenant's deliveries, and acks of its workers' commits.

It is the only one that knows which delivery is where. Deliveries come in the order of their tags
and are cut into batches in that order, so what may be acknowledged is always the batches at the
head of the queue that are done: one ack settles them all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from actors.board import TenantBoard
from actors.clock import Clock, tell
from actors.messages import (
    Arrived,
    Batch,
    Begin,
    Cancelled,
    ChannelLost,
    ConsumerReady,
    Consuming,
    Drain,
    Drained,
    LingerOver,
    LookForIdle,
    Ref,
    Resize,
    Resized,
    Resubscribe,
    TopologyMissing,
    Work,
    WorkDone,
    WorkerJoined,
    WorkerLost,
    WorkerReleased,
    WorkerWanted,
)
from actors.supervision import SupervisedActor
from tenantry.broker import port as broker
from tenantry.broker.port import Delivery, QueueSpec, Subscription

log = structlog.get_logger("actors.consumer")

LARGEST_BATCH_BYTES: Final = 8 * 1024 * 1024
IDLE_SECONDS: Final = 60.0
"""How long a worker without work is kept."""

SMALLEST_PREFETCH: Final = 100
"""Of one queue, however many share the tenant's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerPorts:
    """What a consumer stands on."""

    broker: broker.Consuming
    clock: Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerLimits:
    """How much a consumer takes at once: `prefetch` is shared by the tenant's queues."""

    prefetch: int
    batch_size: int
    linger: float


class _Mailbox:
    """Carries the broker's words into a consumer's mailbox; runs on the broker's thread."""

    def __init__(self, consumer: Ref) -> None:
        self._consumer = consumer

    def consuming(self, generation: int) -> None:
        tell(self._consumer, Consuming(generation=generation))

    def deliveries(self, generation: int, batch: list[Delivery]) -> None:
        tell(self._consumer, Arrived(generation=generation, deliveries=batch))

    def cancelled(self, generation: int) -> None:
        tell(self._consumer, Cancelled(generation=generation))

    def lost(self, generation: int, reason: str, *, missing: bool) -> None:
        tell(self._consumer, ChannelLost(generation=generation, reason=reason, missing=missing))


class Consumer(SupervisedActor):
    """Owns a tenant's subscription.

    A batch goes out at once when no worker is busy; otherwise when it is full, when it has waited
    for the linger, or when a worker comes free: small batches when idle, large ones under load.
    """

    def __init__(
        self,
        *,
        tenant_id: str,
        parent: Ref,
        queues: Sequence[QueueSpec],
        workers: int,
        limits: ConsumerLimits,
        ports: ConsumerPorts,
        board: TenantBoard,
    ) -> None:
        super().__init__(name="consumer", parent=parent, tenant_id=tenant_id)
        self._queues = queues
        self._limits = limits
        self._ports = ports
        self._board = board
        self._subscription: Subscription | None = None
        self._generation = 0
        self._pending: deque[Delivery] = deque()
        self._pending_since = 0.0
        self._lingering = False
        self._window: deque[Batch] = deque()
        self._redo: deque[Batch] = deque()
        self._limit = workers
        self._idle: dict[Ref, float] = {}
        self._busy: dict[Ref, Batch] = {}
        self._names: dict[Ref, str] = {}
        self._wanted = False
        self._looking = False
        self._draining = False
        self._cancelled = False
        self._resizing = False

    def handle(self, message: object) -> None:
        """Handle a word of the broker, a worker, the tenant or the clock."""
        match message:
            case Arrived(generation=generation, deliveries=deliveries):
                self._arrived(generation, deliveries)
            case WorkDone(worker=worker, batch=batch):
                self._work_done(worker, batch, message)
            case WorkerJoined(worker=worker, name=name):
                self._wanted = False
                self._names[worker] = name
                self._idle[worker] = self._ports.clock.now()
                self._dispatch()
            case WorkerLost(worker=worker):
                self._worker_lost(worker)
            case LingerOver():
                self._lingering = False
                self._dispatch()
            case LookForIdle():
                self._release_idle()
            case Resize(workers=workers):
                self._resize(workers)
            case Consuming(generation=generation):
                self._adopt(generation)
                self._board.consuming = True
                self.tell_parent(ConsumerReady())
            case Cancelled():
                self._board.consuming = False
                self._cancelled = True
                self._drained_if_done()
            case ChannelLost(generation=generation, reason=reason, missing=missing):
                self._channel_lost(generation, reason, missing=missing)
            case Resubscribe():
                if self._subscription is not None and not self._draining:
                    self._subscription.resubscribe()
            case Drain():
                self._drain()
            case Begin():
                self._begin()
            case _:
                raise TypeError(f"a consumer can't handle {type(message).__name__}")
        self._show()

    def crashed(self) -> None:
        """Give everything unsettled back to the broker."""
        self.stopped()

    def stopped(self) -> None:
        """Close the channel; what is unsettled on it comes again."""
        self._board.consuming = False
        self._board.buffered = 0
        self._board.in_flight = 0
        self._board.in_hand.clear()
        if self._subscription is not None:
            self._subscription.close()

    def _begin(self) -> None:
        self._subscription = self._ports.broker.subscribe(
            self._queues,
            prefetch=max(SMALLEST_PREFETCH, self._limits.prefetch // len(self._queues)),
            sink=_Mailbox(self.actor_ref),
        )
        self.pulse.on_fence(self._subscription.close)

    # Deliveries in.

    def _adopt(self, generation: int) -> None:
        """Take a newer channel for the present one; whatever the older one brought is void."""
        if generation > self._generation:
            self._generation = generation
            self._forget_deliveries()

    def _arrived(self, generation: int, deliveries: list[Delivery]) -> None:
        self._adopt(generation)
        if generation < self._generation:
            return
        if not self._pending:
            self._pending_since = self._ports.clock.now()
        self._pending.extend(deliveries)
        self._dispatch()

    def _channel_lost(self, generation: int, reason: str, *, missing: bool) -> None:
        if generation >= self._generation:
            self._generation = generation + 1
            self._forget_deliveries()
        self._board.consuming = False
        self._board.waiting_since = self._ports.clock.now()
        log.warning("consumer.channel_lost", reason=reason)
        if missing and not self._draining:
            self.tell_parent(TopologyMissing(reason=reason))
        self._drained_if_done()

    def _forget_deliveries(self) -> None:
        """Drop what can't be acknowledged any more. Batches that workers have are left to them."""
        self._pending.clear()
        self._window.clear()
        self._redo.clear()

    # Batches out.

    def _dispatch(self) -> None:
        while (self._redo or self._pending) and len(self._busy) < self._limit:
            if not self._idle:
                self._want_worker()
                return
            if self._redo:
                batch = self._redo.popleft()
            elif self._is_due():
                batch = self._cut()
            else:
                return
            # The worker that was busy last is taken first, so that the others can be let go.
            worker, _ = self._idle.popitem()
            if not tell(worker, Work(batch=batch)):
                # It died a moment ago; its tenant will say so and send another.
                self._redo.appendleft(batch)
                continue
            self._busy[worker] = batch
            self._board.in_hand[self._names[worker]] = len(batch.deliveries)

    def _is_due(self) -> bool:
        """Tell whether the next batch should go now; see that the question is asked again."""
        if not self._busy or len(self._pending) >= self._limits.batch_size:
            return True
        waited = self._ports.clock.now() - self._pending_since
        if waited >= self._limits.linger:
            return True
        if not self._lingering:
            self._lingering = True
            self._ports.clock.tell_later(self._limits.linger - waited, self.actor_ref, LingerOver())
        return False

    def _cut(self) -> Batch:
        pending = self._pending
        deliveries: list[Delivery] = []
        size = 0
        while pending and len(deliveries) < self._limits.batch_size and size < LARGEST_BATCH_BYTES:
            delivery = pending.popleft()
            size += len(delivery.message.body)
            deliveries.append(delivery)
        self._pending_since = self._ports.clock.now()
        batch = Batch(generation=self._generation, deliveries=deliveries)
        self._window.append(batch)
        return batch

    def _want_worker(self) -> None:
        if not self._wanted:
            self._wanted = True
            self.tell_parent(WorkerWanted())

    # Commits in, acks out.

    def _work_done(self, worker: Ref, batch: Batch, done: WorkDone) -> None:
        if self._busy.pop(worker, None) is None:
            return
        self._board.in_hand.pop(self._names[worker], None)
        self._count(batch, done)
        batch.done = True
        batch.rejects = [batch.deliveries[one.index].tag for one in done.result.unstorable]
        if len(self._busy) + len(self._idle) >= self._limit:
            self._release(worker)
        else:
            self._idle[worker] = self._ports.clock.now()
            self._look_for_idle()
        if batch.generation == self._generation:
            self._settle()
        self._resized_if_done()
        self._dispatch()
        self._drained_if_done()

    def _count(self, batch: Batch, done: WorkDone) -> None:
        result = done.result
        self._board.stored += result.stored
        self._board.duplicates += result.duplicates
        self._board.dead_lettered += len(result.unstorable)
        self._board.meter.add(len(batch.deliveries))

    def _settle(self) -> None:
        """Settle the batches at the head of the window that are done, in one go."""
        rejects: list[int] = []
        ack_up_to: int | None = None
        while self._window and self._window[0].done:
            batch = self._window.popleft()
            rejects.extend(batch.rejects)
            last = _last_not_in(batch.rejects, batch.deliveries)
            ack_up_to = last if last is not None else ack_up_to
        if (rejects or ack_up_to is not None) and self._subscription is not None:
            self._subscription.settle(self._generation, rejects=rejects, ack_up_to=ack_up_to)

    # Workers.

    def _worker_lost(self, worker: Ref) -> None:
        """Take back the batch of a worker that failed, to be done by another."""
        self._idle.pop(worker, None)
        name = self._names.pop(worker, None)
        if name is not None:
            self._board.in_hand.pop(name, None)
        batch = self._busy.pop(worker, None)
        if batch is not None and batch.generation == self._generation:
            batch.attempt += 1
            self._redo.append(batch)
        # If one was on its way it may be the one that failed: ask again.
        self._wanted = False
        self._resized_if_done()
        self._dispatch()
        self._drained_if_done()

    def _resize(self, workers: int) -> None:
        self._limit = workers
        self._resizing = True
        while self._idle and len(self._busy) + len(self._idle) > workers:
            worker, _ = self._idle.popitem()
            self._release(worker)
        self._resized_if_done()
        self._dispatch()

    def _resized_if_done(self) -> None:
        if self._resizing and len(self._busy) <= self._limit:
            self._resizing = False
            self._show()
            self.tell_parent(Resized(workers=self._limit))

    def _release(self, worker: Ref) -> None:
        self._names.pop(worker, None)
        self.tell_parent(WorkerReleased(worker=worker))

    def _look_for_idle(self) -> None:
        if not self._looking:
            self._looking = True
            self._ports.clock.tell_later(IDLE_SECONDS, self.actor_ref, LookForIdle())

    def _release_idle(self) -> None:
        self._looking = False
        now = self._ports.clock.now()
        for worker, since in list(self._idle.items()):
            if now - since >= IDLE_SECONDS:
                del self._idle[worker]
                self._release(worker)
        if self._idle:
            self._look_for_idle()

    # Draining.

    def _drain(self) -> None:
        if self._draining:
            return
        self._draining = True
        if self._subscription is None:
            self._cancelled = True
        else:
            self._subscription.cancel()
        self._drained_if_done()

    def _drained_if_done(self) -> None:
        if self._draining and self._cancelled and not (self._pending or self._redo or self._busy):
            self._draining = False
            self.tell_parent(Drained(name=self.name))

    def _show(self) -> None:
        board = self._board
        board.buffered = len(self._pending)
        board.in_flight = sum(len(batch.deliveries) for batch in self._window)
        board.workers_current = max(self._limit, len(self._busy))


def _last_not_in(rejects: Sequence[int], deliveries: Sequence[Delivery]) -> int | None:
    """Give the last tag that is not rejected: the broker knows a rejected one no more."""
    if not rejects:
        return deliveries[-1].tag
    rejected = set(rejects)
    return next((d.tag for d in reversed(deliveries) if d.tag not in rejected), None)
