"""What a consumer has for its workers: deliveries that are cut into batches, batches to redo."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tenantry.actors.clock import Clock
from tenantry.actors.messages import Batch, LingerOver, Ref
from tenantry.broker.port import Delivery

LARGEST_BATCH_BYTES: Final = 8 * 1024 * 1024


@dataclass(slots=True, kw_only=True)
class ConsumerLimits:
    """How much a consumer takes at once: `prefetch` is shared by the tenant's queues.

    All consumers have the same one, and its owner may change it while they work.
    """

    prefetch: int
    batch_size: int
    linger: float


class Buffer:
    """Deliveries in the order of their tags, cut in that order; before them, what is to be redone.

    A small batch lingers a little: `consumer` is sent `LingerOver` when it has waited long enough.
    """

    def __init__(self, *, consumer: Ref, limits: ConsumerLimits, clock: Clock) -> None:
        self._consumer = consumer
        self._limits = limits
        self._clock = clock
        self._pending: deque[Delivery] = deque()
        self._since = 0.0
        self._lingering = False
        self._redo: deque[Batch] = deque()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to give out."""
        return not (self._redo or self._pending)

    @property
    def uncut(self) -> int:
        """Deliveries that are in no batch yet."""
        return len(self._pending)

    def take_in(self, deliveries: list[Delivery]) -> None:
        """Take deliveries whose tags follow those before."""
        if not self._pending:
            self._since = self._clock.now()
        self._pending.extend(deliveries)

    def is_due(self) -> bool:
        """Tell whether a batch is worth cutting now; see that the question is asked again."""
        if len(self._pending) >= self._limits.batch_size:
            return True
        waited = self._clock.now() - self._since
        if waited >= self._limits.linger:
            return True
        if not self._lingering:
            self._lingering = True
            self._clock.tell_later(self._limits.linger - waited, self._consumer, LingerOver())
        return False

    def lingered(self) -> None:
        """Note that `LingerOver` has come."""
        self._lingering = False

    def cut(self, generation: int) -> Batch:
        """Make a batch of the first deliveries."""
        pending, most = self._pending, self._limits.batch_size
        deliveries: list[Delivery] = []
        size = 0
        while pending and len(deliveries) < most and size < LARGEST_BATCH_BYTES:
            delivery = pending.popleft()
            size += len(delivery.message.body)
            deliveries.append(delivery)
        self._since = self._clock.now()
        return Batch(generation=generation, deliveries=deliveries)

    def redo(self, batches: Iterable[Batch]) -> None:
        """Take batches to be given out again, or to others."""
        self._redo.extend(batches)

    def put_back(self, batch: Batch) -> None:
        """Take back a batch that could not be given out; it is the next one."""
        self._redo.appendleft(batch)

    def next_redo(self) -> Batch | None:
        """Give the next batch that was cut before."""
        return self._redo.popleft() if self._redo else None

    def clear(self) -> None:
        """Forget everything: it can't be acknowledged any more."""
        self._pending.clear()
        self._redo.clear()
