"""The consumer: makes batches of a tenant's deliveries, and acks of its workers' commits.

It is the only one that knows which delivery is where. Deliveries come in the order of their tags
and are cut into batches in that order, so what may be acknowledged is always the batches at the
head of the queue that are done: one ack settles them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from tenantry.actors.board import REFUSALS, TenantBoard
from tenantry.actors.buffer import Buffer, ConsumerLimits
from tenantry.actors.clock import Clock
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
    LingerOver,
    LookForIdle,
    QueuesSilent,
    Ref,
    Resize,
    Resized,
    Resubscribe,
    RetryDue,
    TopologyMissing,
    WorkDone,
    WorkerJoined,
    WorkerLost,
)
from tenantry.actors.roster import Roster
from tenantry.actors.settling import Settling
from tenantry.actors.sink import MailboxSink
from tenantry.actors.supervision import SupervisedActor
from tenantry.broker import port as broker
from tenantry.broker.port import Delivery, QueueSpec, Subscription

log = structlog.get_logger("actors.consumer")

SMALLEST_PREFETCH: Final = 100
"""Of one queue, however many share the tenant's."""


MOST_NAMED: Final = 5
"""Queues that are named to whoever looks; there may be a thousand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerPorts:
    """What a consumer stands on."""

    broker: broker.Consuming
    clock: Clock


class Consumer(SupervisedActor):
    """Owns a tenant's subscription.

    A delivery's way leads from the `Buffer` by a worker of the `Roster` to its `Settling`. A batch
    goes out at once when no worker is busy; otherwise when it is full, when it has waited for the
    linger, or when a worker comes free: small batches when idle, large ones under load.
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
        self._draining = False
        self._cancelled = False
        self._prefetch = max(SMALLEST_PREFETCH, limits.prefetch // len(queues))
        me, clock = self.actor_ref, ports.clock
        self._buffer = Buffer(consumer=me, limits=limits, clock=clock)
        self._roster = Roster(consumer=me, tenant=parent, limit=workers, clock=clock, board=board)
        self._settling = Settling(queues, prefetch=self._prefetch, consumer=me, clock=clock)

    def handle(self, message: object) -> None:
        """Handle a word of the broker, a worker, the tenant or the clock."""
        match message:
            case Arrived(generation=generation, deliveries=deliveries):
                self._arrived(generation, deliveries)
            case WorkDone():
                self._work_done(message)
            case WorkerJoined(worker=worker, name=name):
                self._roster.joined(worker, name)
                self._dispatch()
            case WorkerLost(worker=worker):
                self._worker_lost(worker)
            case LingerOver():
                self._buffer.lingered()
                self._dispatch()
            case RetryDue():
                self._retry()
            case LookForIdle():
                self._roster.release_idle()
            case Resize(workers=workers):
                self._roster.resize(workers)
                self._resized_if_done()
                self._dispatch()
            case Consuming(generation=generation):
                self._adopt(generation)
                self._board.consuming = True
                self.tell_parent(ConsumerReady())
            case Cancelled():
                self._board.consuming = False
                self._board.refusal = None
                self._cancelled = True
                self._drained_if_done()
            case ChannelLost(generation=generation, reason=reason, missing=missing):
                self._channel_lost(generation, reason, missing=missing)
            case QueuesSilent(queues=queues):
                self._board.refused += REFUSALS
                self._board.refusal = f"queues do not answer: {', '.join(queues[:MOST_NAMED])}"
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
        self._board.refusal = None
        self._board.buffered = 0
        self._board.in_flight = 0
        self._board.held = 0
        self._board.in_hand.clear()
        if self._subscription is not None:
            self._subscription.close()

    def _begin(self) -> None:
        self._subscription = self._settling.subscription = self._ports.broker.subscribe(
            self._queues,
            prefetch=self._prefetch,
            sink=MailboxSink(self.actor_ref),
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
        self._buffer.take_in(deliveries)
        self._dispatch()

    def _channel_lost(self, generation: int, reason: str, *, missing: bool) -> None:
        if generation >= self._generation:
            self._generation = generation + 1
            self._forget_deliveries()
        if not self._board.consuming:
            # Lost before it consumed: what is in the way is in its own way.
            self._board.refused += 1
        self._board.consuming = False
        if not (self._draining or self._cancelled):
            self._board.refusal = f"its queues are not consumed: {reason}"
        self._board.waiting_since = self._ports.clock.now()
        log.warning("consumer.channel_lost", reason=reason)
        if missing and not self._draining:
            self.tell_parent(TopologyMissing(reason=reason))
        self._drained_if_done()

    def _forget_deliveries(self) -> None:
        """Drop what can't be acknowledged any more. Batches that workers have are left to them."""
        self._buffer.clear()
        self._settling.clear()

    # Batches out.

    def _dispatch(self) -> None:
        buffer, roster = self._buffer, self._roster
        while roster.places > 0 and not buffer.empty:
            if not roster.has_idle:
                roster.want()
                return
            batch = buffer.next_redo() or self._cut()
            if batch is None:
                return
            if not roster.give(batch):
                buffer.put_back(batch)

    def _cut(self) -> Batch | None:
        """Make the next batch, if it should go now."""
        if self._roster.busy and not self._buffer.is_due():
            return None
        batch = self._buffer.cut(self._generation)
        self._settling.enter(batch)
        return batch

    def _retry(self) -> None:
        """Give out what is due. Once draining, what is held stays so: the broker has it again."""
        self._settling.woken()
        if self._draining or self._cancelled:
            return
        size = self._limits.batch_size
        self._buffer.redo(self._settling.take_due(self._generation, batch_size=size))
        self._dispatch()

    # Commits in, acks out.

    def _work_done(self, done: WorkDone) -> None:
        if not self._roster.done(done.worker):
            return
        self._count(done)
        if done.batch.generation == self._generation:
            # What is left is shared by all who have nothing to do: handlers are slow.
            parts = max(1, self._roster.places)
            self._buffer.redo(self._settling.done(done.batch, done.result, parts=parts))
        self._resized_if_done()
        self._dispatch()
        self._drained_if_done()

    def _count(self, done: WorkDone) -> None:
        result = done.result
        ended = result.stored + result.duplicates + len(result.unstorable)
        self._board.stored += result.stored
        self._board.duplicates += result.duplicates
        self._board.dead_lettered += done.listed
        self._board.meter.add(ended)

    def _worker_lost(self, worker: Ref) -> None:
        """Take back the batch of a worker that failed, to be done by another."""
        batch = self._roster.lost(worker)
        if batch is not None and batch.generation == self._generation:
            batch.attempt += 1
            self._buffer.redo([batch])
        self._resized_if_done()
        self._dispatch()
        self._drained_if_done()

    def _resized_if_done(self) -> None:
        if self._roster.is_resized():
            self._show()
            self.tell_parent(Resized(workers=self._roster.limit))

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
        if self._draining and self._cancelled and self._buffer.empty and not self._roster.busy:
            self._draining = False
            self.tell_parent(Drained(name=self.name))

    def _show(self) -> None:
        board = self._board
        board.buffered = self._buffer.uncut
        board.in_flight = self._settling.in_flight
        board.held = self._settling.held
        board.workers_current = max(self._roster.limit, self._roster.busy)
