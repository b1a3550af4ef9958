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
from actors.holding import Holding
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
    QueuesSilent,
    Ref,
    Resize,
    Resized,
    Resubscribe,
    RetryDue,
    TopologyMissing,
    Work,
    WorkDone,
    WorkerJoined,
    WorkerLost,
    WorkerReleased,
    WorkerWanted,
)
from actors.supervision import SupervisedActor
from actors.window import Window
from tenantry.broker import port as broker
from tenantry.broker.port import Delivery, QueueSpec, Subscription
from tenantry.messages.port import Held, StoreResult

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


@dataclass(slots=True, kw_only=True)
class ConsumerLimits:
    """How much a consumer takes at once: `prefetch` is shared by the tenant's queues.

    All consumers have the same one, and its owner may change it while they work.
    """

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

    def silent(self, queues: Sequence[str]) -> None:
        tell(self._consumer, QueuesSilent(queues=tuple(queues)))

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
        self._prefetch = max(SMALLEST_PREFETCH, limits.prefetch // len(queues))
        self._window = Window()
        self._holding = Holding(queues, prefetch=self._prefetch)
        self._retry_at: float | None = None
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
            case RetryDue():
                self._retry()
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
            case QueuesSilent():
                self.tell_parent(message)
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
        self._board.held = 0
        self._board.in_hand.clear()
        if self._subscription is not None:
            self._subscription.close()

    def _begin(self) -> None:
        self._subscription = self._ports.broker.subscribe(
            self._queues,
            prefetch=self._prefetch,
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
        self._window = Window()
        self._holding.clear()
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
        self._window.enter(batch)
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
        self._count(done.result, done.listed)
        if len(self._busy) + len(self._idle) >= self._limit:
            self._release(worker)
        else:
            self._idle[worker] = self._ports.clock.now()
            self._look_for_idle()
        if batch.generation == self._generation:
            if batch.tried is None:
                self._first_done(batch, done.result)
            else:
                self._retry_done(batch, done.result)
            self._settle()
        self._resized_if_done()
        self._dispatch()
        self._drained_if_done()

    def _count(self, result: StoreResult, listed: int) -> None:
        ended = result.stored + result.duplicates + len(result.unstorable)
        self._board.stored += result.stored
        self._board.duplicates += result.duplicates
        self._board.dead_lettered += listed
        self._board.meter.add(ended)

    def _first_done(self, batch: Batch, result: StoreResult) -> None:
        """Note what became of a batch; hold what is to be tried again, give out what is left."""
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
        # One part for each worker that has nothing to do: handlers are slow.
        size = -(-len(left) // max(1, self._limit - len(self._busy)))
        self._redo.extend(
            Batch(generation=batch.generation, deliveries=left[at : at + size], whole=whole)
            for at in range(0, len(left), size or 1)
        )

    def _settle(self) -> None:
        """Settle what may be settled by now, in one go."""
        settlement = self._window.settle()
        if settlement is not None and self._subscription is not None:
            self._subscription.settle(
                self._generation,
                rejects=settlement.rejects,
                acks=settlement.acks,
                ack_up_to=settlement.ack_up_to,
            )

    # What is tried again.

    def _hold(self, batch: Batch, held: Sequence[Held]) -> None:
        """Keep deliveries unsettled until their pauses are over; their neighbours go on."""
        now = self._ports.clock.now()
        for one in held:
            self._holding.hold(batch.deliveries[one.index], one.tried, now + one.seconds)
        for queue in self._holding.crowded():
            if self._subscription is not None:
                self._subscription.widen(self._generation, queue)
        self._wake_for_retries()

    def _wake_for_retries(self) -> None:
        due = self._holding.next_due()
        if due is not None and (self._retry_at is None or due < self._retry_at):
            self._retry_at = due
            delay = max(0.0, due - self._ports.clock.now())
            self._ports.clock.tell_later(delay, self.actor_ref, RetryDue())

    def _retry(self) -> None:
        """Give out what is due. Once draining, what is held stays so: the broker has it again."""
        self._retry_at = None
        if self._draining or self._cancelled:
            return
        due = self._holding.take_due(self._ports.clock.now())
        for at in range(0, len(due), self._limits.batch_size):
            part = due[at : at + self._limits.batch_size]
            self._redo.append(
                Batch(
                    generation=self._generation,
                    deliveries=[delivery for delivery, _ in part],
                    tried=[tried for _, tried in part],
                )
            )
        self._wake_for_retries()
        self._dispatch()

    def _retry_done(self, batch: Batch, result: StoreResult) -> None:
        """Let go of deliveries whose last attempt is over; hold the others on."""
        deliveries, tried = batch.deliveries, batch.tried or []
        rejects = {one.index for one in result.unstorable}
        left = [Held(index=index, seconds=0, tried=tried[index]) for index in result.left]
        kept = {*result.left, *(one.index for one in result.held)}
        acks = [one for index, one in enumerate(deliveries) if index not in kept | rejects]
        rejected = [deliveries[index] for index in sorted(rejects)]
        self._window.free(acks=[one.tag for one in acks], rejects=[one.tag for one in rejected])
        self._holding.free([*acks, *rejected])
        self._hold(batch, [*result.held, *left])

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
        board.in_flight = self._window.unsettled - self._window.held
        board.held = self._window.held
        board.workers_current = max(self._limit, len(self._busy))
