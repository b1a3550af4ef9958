"""The consumer: makes batches of a tenant's deliveries, and acks of its workers' commits.

The consumer alone knows where each delivery is. Deliveries come in the order of their tags and are
cut into batches in that order, so the batches that may be acknowledged are always the finished ones
at the head: one multiple ack settles them all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Final

import structlog

from tenantry.actors.lanes import Lanes, lanes_of
from tenantry.actors.messages import (
    Arrived,
    Batch,
    Begin,
    Cancelled,
    ChannelLost,
    ConsumerReady,
    Consuming,
    Drain,
    Drained,
    Limit,
    QueuesSilent,
    Ref,
    Reminder,
    Resize,
    Resubscribe,
    TopologyMissing,
    WorkDone,
    WorkerJoined,
    WorkerLost,
)
from tenantry.actors.pace import paced, prefetch_of
from tenantry.actors.ports import ActorPorts
from tenantry.actors.runtime_state import REFUSALS, TenantRuntimeState
from tenantry.actors.settlement import Settlement
from tenantry.actors.supervision import SupervisedActor, tell
from tenantry.actors.worker_pool import WorkerPool
from tenantry.broker.port import Delivery, QueueSpec, Subscription
from tenantry.domain.limits import Limits
from tenantry.telemetry.logging import Sparing
from tenantry.turns.neighbours import Portions

log = structlog.get_logger("actors.consumer")

LARGEST_BATCH_BYTES: Final = 8 * 1024 * 1024

NO_TAG: Final = 2**63
"""Above every tag."""

MOST_NAMED: Final = 5
"""Most queues named in a status; there may be a thousand."""


class Consumer(SupervisedActor):
    """Owns a tenant's subscription.

    A delivery goes from the `Buffer` through a worker of the `WorkerPool` to the `Settlement`. A
    batch goes out at once when no worker is busy; otherwise when it is full or the linger is over,
    and a worker is free: small batches when idle, large ones under load.
    """

    def __init__(
        self,
        *,
        tenant_id: str,
        parent: Ref,
        queues: Sequence[QueueSpec],
        workers: int,
        limits: Limits,
        ports: ActorPorts,
        runtime: TenantRuntimeState,
    ) -> None:
        super().__init__(name="consumer", parent=parent, tenant_id=tenant_id)
        self._queues = queues
        self._ports = ports
        self._runtime = runtime
        self._subscription: Subscription | None = None
        self._generation = 0
        self._draining = False
        self._cancelled = False
        self._tenant = tenant_id
        self._sparing = Sparing()
        self._prefetch = prefetch_of(limits, ports.limits().prefetch, queues=len(queues))
        ports.weights.weigh(tenant_id, limits.weight)
        me, clock = self.actor_ref, ports.clock
        self._paced = partial(paced, consumer=me, clock=clock, runtime=runtime)
        self._pace = self._paced(limits, full=False)
        self._portions = Portions(tenant_id, ports.neighbours)
        self._portion_awaited = False
        lanes = lanes_of([(one.topic, one.partition) for one in queues if one.ordered])
        self._buffer = Buffer(consumer=me, ports=ports, lanes=lanes)
        self._redo: deque[Batch] = deque()
        """Batches to be given out again, before deliveries that are in no batch yet."""
        self._pool = WorkerPool(
            consumer=me, tenant=parent, limit=workers, clock=clock, runtime=runtime
        )
        self._settlement = Settlement(
            queues,
            prefetch=self._prefetch,
            consumer=me,
            clock=clock,
            runtime=runtime,
            lanes=lanes,
        )

    def handle(self, message: object) -> None:
        """Handle a message from the broker, a worker, the tenant or the clock."""
        match message:
            case Arrived(generation=generation, deliveries=deliveries):
                self._arrived(generation, deliveries)
            case WorkDone():
                self._work_done(message)
            case WorkerJoined(worker=worker, name=name):
                self._pool.joined(worker, name)
                self._dispatch()
            case WorkerLost(worker=worker):
                self._worker_lost(worker)
            case Reminder():
                self._reminded(message)
            case Limit(limits=limits):
                self._ports.weights.weigh(self._tenant, limits.weight)
                # A tenant that had no rate begins with its burst.
                self._pace = self._paced(limits, full=True)
                self._dispatch()
            case Resize(workers=workers):
                self._pool.resize(workers)
                self._dispatch()
            case Consuming(generation=generation):
                self._adopt(generation)
                self._runtime.consuming = True
                self.tell_parent(ConsumerReady())
            case Cancelled():
                self._runtime.consuming = False
                self._runtime.refusal = None
                self._cancelled = True
                if self._pace is not None:
                    # Buffered deliveries might wait long for tokens: the broker gets them back.
                    self._buffer.withhold()
                self._drained_if_done()
            case ChannelLost(generation=generation, reason=reason, missing=missing):
                self._channel_lost(generation, reason, missing=missing)
            case QueuesSilent(queues=queues):
                self._runtime.refused += REFUSALS
                self._runtime.refusal = f"queues do not answer: {', '.join(queues[:MOST_NAMED])}"
                self.tell_parent(message)
            case Resubscribe():
                if self._subscription is not None and not self._draining:
                    self._subscription.resubscribe()
            case Drain():
                self._drain()
            case Begin():
                self._subscribe()
            case _:
                raise TypeError(f"a consumer can't handle {type(message).__name__}")
        self._runtime.buffered = self._buffer.ready

    def _reminded(self, reminder: Reminder) -> None:
        match reminder:
            case Reminder.LINGER_OVER:
                self._buffer.lingered()
                self._dispatch()
            case Reminder.TOKENS_DUE:
                if self._pace is not None:
                    self._pace.reminded()
                    self._dispatch()
            case Reminder.PORTION_DUE:
                self._portion_awaited = False
                self._dispatch()
            case Reminder.RETRY_DUE:
                self._retry()
            case Reminder.LOOK_FOR_IDLE_WORKERS:
                self._pool.release_idle()
            case _:
                raise TypeError(f"a consumer can't handle {reminder}")

    def stopped(self) -> None:
        """Close the channel: the broker requeues the deliveries unsettled on it."""
        self._runtime.consuming = False
        self._runtime.refusal = None
        self._runtime.buffered = 0
        self._runtime.in_flight = 0
        self._runtime.held = 0
        self._runtime.in_hand.clear()
        self._runtime.busy.change(0, self._ports.clock.now())
        if self._subscription is not None:
            self._subscription.close()

    def _subscribe(self) -> None:
        self._subscription = self._settlement.subscription = self._ports.consuming.subscribe(
            self._queues,
            prefetch=self._prefetch,
            sink=MailboxSink(self.actor_ref),
        )
        self.heartbeat.on_fence(self._subscription.close)

    # Deliveries in.

    def _adopt(self, generation: int) -> None:
        """Switch to a newer channel's generation; deliveries of the older channel are void."""
        if generation > self._generation:
            self._generation = generation
            self._forget_deliveries()

    def _arrived(self, generation: int, deliveries: list[Delivery]) -> None:
        self._adopt(generation)
        if generation < self._generation:
            return
        self._portions.came(len(deliveries))
        in_order = self._buffer.take_in(deliveries)
        if in_order:
            self._settlement.enter_in_order(in_order)
        self._dispatch()

    def _channel_lost(self, generation: int, reason: str, *, missing: bool) -> None:
        if generation >= self._generation:
            self._generation = generation + 1
            self._forget_deliveries()
        if not self._runtime.consuming:
            # The channel was lost before it consumed: its own queues are the obstacle.
            self._runtime.refused += 1
        self._runtime.consuming = False
        if not (self._draining or self._cancelled):
            self._runtime.refusal = f"its queues are not consumed: {reason}"
        self._runtime.waiting_since = self._ports.clock.now()
        left_out = self._sparing.left_out(self._tenant)
        if left_out is not None:
            log.warning("consumer.channel_lost", reason=reason, left_out=left_out)
        if missing and not self._draining:
            self.tell_parent(TopologyMissing(reason=reason))
        self._drained_if_done()

    def _forget_deliveries(self) -> None:
        """Drop deliveries that can't be acknowledged any more; workers keep their batches."""
        self._buffer.clear()
        self._redo.clear()
        self._settlement.clear(self._pool.busy.values())

    # Batches out.

    def _go_on(self) -> None:
        """Dispatch, and finish a drain, after a worker is done or lost."""
        self._dispatch()
        self._drained_if_done()

    def _dispatch(self) -> None:
        redo, buffer, pool = self._redo, self._buffer, self._pool
        while (redo or buffer.ready) and pool.can_give():
            batch = redo.popleft() if redo else self._cut()
            if batch is None:
                return
            if self._draining:
                batch.more = batch.beside = False
            if not pool.give(batch):
                redo.appendleft(batch)

    def _cut(self) -> Batch | None:
        """Cut the next batch, if one should go out now."""
        buffer, pace, busy = self._buffer, self._pace, bool(self._pool.busy)
        if busy and not buffer.is_due():
            return None
        limits, now = self._ports.limits(), self._ports.clock.now()
        if self._runtime.in_flight + buffer.ready >= self._full(limits.batch_size):
            self._portions.note_backlog(now)
        most = self._portions.allowed(
            buffer.ready,
            batch_size=limits.batch_size,
            portion=limits.batch_size_beside_others,
            busy=busy,
            now=now,
        )
        if not most:
            self._await_portion(now)
            return None
        if pace is not None:
            most = pace.allowed(buffer.ready, batch_size=most)
            if not most:
                return None
        places = self._pool.limit - len(self._pool.busy)
        batch = buffer.cut(self._generation, most, places=places)
        full = len(batch.deliveries) >= limits.batch_size
        batch.more = self._portions.has_backlog(now) and (pace is None or full)
        batch.beside = self._portions.beside_others
        self._portions.gone(len(batch.deliveries), waiting=buffer.ready, busy=busy, now=now)
        if pace is not None:
            pace.gone(len(batch.deliveries))
        if batch.ticket is None:
            self._settlement.enter(batch)
        return batch

    def _full(self, batch_size: int) -> int:
        """Return how many deliveries in hand are a full batch; few where they are large."""
        if self._subscription is None or self._pace is not None:
            return batch_size  # a rate makes the window small, whatever waits
        return max(1, min(batch_size, self._subscription.window * len(self._queues) // 2))

    def _await_portion(self, now: float) -> None:
        if not self._portion_awaited:
            self._portion_awaited = True
            left = self._portions.seconds_left(now)
            self._ports.clock.tell_later(left, self.actor_ref, Reminder.PORTION_DUE)

    def _retry(self) -> None:
        """Give out due held deliveries. While draining they stay held: the broker requeues them."""
        self._settlement.reminded()
        if self._draining or self._cancelled:
            return
        size = self._ports.limits().batch_size
        self._redo += self._settlement.take_due(self._generation, batch_size=size)
        self._dispatch()

    # Commits in, acks out.

    def _work_done(self, done: WorkDone) -> None:
        places = self._pool.done(done.worker)
        if places is None:
            return
        result, runtime = done.result, self._runtime
        runtime.stored += result.stored
        runtime.duplicates += result.duplicates
        runtime.dead_lettered += done.listed
        runtime.meter.add(result.stored + result.duplicates + len(result.unstorable))
        if done.batch.generation == self._generation:
            # The left deliveries are shared by all idle workers, since handlers are slow. A batch
            # that got no turn is left as a whole.
            parts = max(1, places) if len(result.left) < len(done.batch.deliveries) else 1
            uncut = self._buffer.first_tag
            self._redo += self._settlement.done(done.batch, result, parts=parts, uncut=uncut)
            if self._pace is not None and done.batch.ticket is not None:
                # These are cut into a new batch and count again; unordered held or left ones don't.
                self._pace.gone(-len(result.left) - len(result.held))
        else:
            self._settlement.let_go(done.batch)
        self._go_on()

    def _worker_lost(self, worker: Ref) -> None:
        """Take back the batch of a failed worker, for another worker to do."""
        batch = self._pool.lost(worker)
        if batch is not None and batch.generation == self._generation:
            batch.attempt += 1
            self._redo.append(batch)
        elif batch is not None:
            self._settlement.let_go(batch)
        self._go_on()

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
        if not (self._draining and self._cancelled):
            return
        if not (self._redo or self._buffer.ready or self._pool.busy):
            self._draining = False
            self.tell_parent(Drained(name=self.name))


class Buffer:
    """Deliveries in the order of their tags, cut into batches in that order.

    A small batch lingers a little: `Reminder.LINGER_OVER` says when it has waited long enough.
    Deliveries of partitions in order wait in `lanes`, and make batches of their own.
    """

    def __init__(self, *, consumer: Ref, ports: ActorPorts, lanes: Lanes | None) -> None:
        self._consumer = consumer
        self._lanes = lanes
        self._limits = ports.limits
        self._clock = ports.clock
        self.pending: Final[deque[Delivery]] = deque()
        """Deliveries that are in no batch yet."""
        self._since = 0.0
        self._lingering = False
        self._withheld = 0
        """The tag from which on deliveries are withheld; 0 while none is."""

    @property
    def ready(self) -> int:
        """How many deliveries could go into a batch now."""
        lanes = None if self._withheld else self._lanes
        return len(self.pending) if lanes is None else len(self.pending) + lanes.ready

    @property
    def first_tag(self) -> int | None:
        """The tag of the first delivery that is in no batch yet, and in no lane."""
        return self.pending[0].tag if self.pending else self._withheld or None

    def clear(self) -> None:
        """Forget all deliveries: the channel is gone."""
        self.pending.clear()
        self._withheld = 0

    def withhold(self) -> None:
        """Drop the pending deliveries and give out none any more; the broker requeues them."""
        self._withheld = self.first_tag or NO_TAG
        self.pending.clear()

    def take_in(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Take in deliveries, whose tags follow the earlier ones; return those with lanes."""
        if not self.ready:
            self._since = self._clock.now()
        if self._lanes is None:
            self.pending.extend(deliveries)
            return []
        in_order, others = self._lanes.take_in(deliveries)
        self.pending.extend(others)
        return in_order

    def is_due(self) -> bool:
        """Tell whether a batch is worth cutting now; if not, schedule a reminder."""
        limits = self._limits()
        if self.ready >= limits.batch_size:
            return True
        left = limits.linger_ms / 1000 - (self._clock.now() - self._since)
        if left <= 0:
            return True
        if not self._lingering:
            self._lingering = True
            self._clock.tell_later(left, self._consumer, Reminder.LINGER_OVER)
        return False

    def lingered(self) -> None:
        """Note that `Reminder.LINGER_OVER` has come."""
        self._lingering = False

    def cut(self, generation: int, most: int, *, places: int) -> Batch:
        """Cut a batch of the first `most` deliveries, for one of so many free workers."""
        if self._lanes is not None and self._lanes_first(self._lanes):
            return self._cut_lanes(self._lanes, generation, most, places)
        pending = self.pending
        deliveries: list[Delivery] = []
        size = 0
        while pending and len(deliveries) < most and size < LARGEST_BATCH_BYTES:
            delivery = pending.popleft()
            size += len(delivery.message.body)
            deliveries.append(delivery)
        self._since = self._clock.now()
        return Batch(generation=generation, deliveries=deliveries)

    def _lanes_first(self, lanes: Lanes) -> bool:
        """Tell whether the delivery that has waited longest is in a lane."""
        oldest, first = lanes.oldest(), self.first_tag
        return oldest is not None and (first is None or oldest < first)

    def _cut_lanes(self, lanes: Lanes, generation: int, most: int, places: int) -> Batch:
        self._since = self._clock.now()
        cut = lanes.cut(most=most, most_bytes=LARGEST_BATCH_BYTES, places=places)
        return Batch(
            generation=generation,
            deliveries=cut.deliveries,
            tried=cut.tried if any(cut.tried) else None,
            ticket=cut.ticket,
        )


class MailboxSink:
    """Puts the broker's events into a consumer's mailbox; runs on the broker's thread."""

    def __init__(self, consumer: Ref) -> None:
        self._consumer = consumer

    def consuming(self, generation: int) -> None:
        """Every queue is being consumed."""
        tell(self._consumer, Consuming(generation=generation))

    def deliveries(self, generation: int, batch: list[Delivery]) -> None:
        """Deliveries have come in, in the order of their tags."""
        tell(self._consumer, Arrived(generation=generation, deliveries=batch))

    def cancelled(self, generation: int) -> None:
        """No delivery follows in this generation."""
        tell(self._consumer, Cancelled(generation=generation))

    def silent(self, queues: Sequence[str]) -> None:
        """These queues do not answer."""
        tell(self._consumer, QueuesSilent(queues=tuple(queues)))

    def lost(self, generation: int, reason: str, *, missing: bool) -> None:
        """The channel is gone; `missing` if a queue was not there."""
        tell(self._consumer, ChannelLost(generation=generation, reason=reason, missing=missing))
