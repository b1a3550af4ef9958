"""Commits in, acks out: what a consumer settles with the broker, and what it holds for later."""

from __future__ import annotations

from collections.abc import Sequence

from tenantry.actors.clock import Clock
from tenantry.actors.holding import Holding
from tenantry.actors.messages import Batch, Ref, RetryDue
from tenantry.actors.window import Window
from tenantry.broker.port import QueueSpec, Subscription
from tenantry.messages.port import Held, StoreResult


class Settling:
    """The batches of one channel, from cutting to settlement: the window, and what is held in it.

    `consumer` is sent `RetryDue` when the pause of something held may be over.
    """

    def __init__(
        self, queues: Sequence[QueueSpec], *, prefetch: int, consumer: Ref, clock: Clock
    ) -> None:
        self._consumer = consumer
        self._clock = clock
        self._window = Window()
        self._holding = Holding(queues, prefetch=prefetch)
        self._retry_at: float | None = None
        self.subscription: Subscription | None = None
        """Where it is settled, once there is one."""

    @property
    def in_flight(self) -> int:
        """Deliveries that workers have, or whose ack waits for others."""
        return self._window.unsettled - self._window.held

    @property
    def held(self) -> int:
        """Deliveries that wait for another attempt."""
        return self._window.held

    def clear(self) -> None:
        """Forget everything: the channel is gone."""
        self._window = Window()
        self._holding.clear()

    def enter(self, batch: Batch) -> None:
        """Take in a batch that was cut just now."""
        self._window.enter(batch)

    def done(self, batch: Batch, result: StoreResult, *, parts: int) -> list[Batch]:
        """Note what became of a batch, and settle what may be settled by now.

        Gives what is left of it, to be given out again at once, in so many parts at most.
        """
        if batch.tried is None:
            left = self._first_done(batch, result, parts)
        else:
            self._retry_done(batch, result)
            left = []
        self._settle(batch.generation)
        return left

    def woken(self) -> None:
        """Note that `RetryDue` has come."""
        self._retry_at = None

    def take_due(self, generation: int, *, batch_size: int) -> list[Batch]:
        """Give what is to be tried again by now; it stays held until its last attempt is over."""
        due = self._holding.take_due(self._clock.now())
        self._wake_for_retries()
        return [
            Batch(
                generation=generation,
                deliveries=[delivery for delivery, _ in due[at : at + batch_size]],
                tried=[tried for _, tried in due[at : at + batch_size]],
            )
            for at in range(0, len(due), batch_size)
        ]

    def _first_done(self, batch: Batch, result: StoreResult, parts: int) -> list[Batch]:
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
            Batch(generation=batch.generation, deliveries=left[at : at + size], whole=whole)
            for at in range(0, len(left), size or 1)
        ]

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

    def _settle(self, generation: int) -> None:
        settlement = self._window.settle()
        if settlement is not None and self.subscription is not None:
            self.subscription.settle(
                generation,
                rejects=settlement.rejects,
                acks=settlement.acks,
                ack_up_to=settlement.ack_up_to,
            )

    def _hold(self, batch: Batch, held: Sequence[Held]) -> None:
        """Keep deliveries unsettled until their pauses are over; their neighbours go on."""
        if not held and not self._holding:
            return
        now = self._clock.now()
        for one in held:
            self._holding.hold(batch.deliveries[one.index], one.tried, now + one.seconds)
        if self.subscription is not None:
            for queue in self._holding.crowded(self.subscription.window):
                self.subscription.renew_prefetch(batch.generation, queue)
        self._wake_for_retries()

    def _wake_for_retries(self) -> None:
        due = self._holding.next_due()
        if due is not None and (self._retry_at is None or due < self._retry_at):
            self._retry_at = due
            delay = max(0.0, due - self._clock.now())
            self._clock.tell_later(delay, self._consumer, RetryDue())
