"""How many of a tenant's deliveries may be given to workers now: by its rate, or in portions."""

from __future__ import annotations

from math import ceil, inf
from typing import Final

from tenantry.actors.clock import Clock
from tenantry.actors.messages import Ref, Reminder
from tenantry.actors.runtime_state import TenantRuntimeState
from tenantry.domain.limits import Limits
from tenantry.turns.neighbours import Neighbours
from tenantry.turns.token_bucket import TokenBucket

GATHERED: Final = 0.05
"""Seconds' worth of messages gathered for a batch: one message each would cost a transaction."""

IN_HAND: Final = 2.0
"""Seconds' worth of messages prefetched from the broker: enough to avoid waiting for one, and few
enough that a stopping consumer has little to give back."""

FEW: Final = 25
"""As many messages at most make a tenant a quiet one, if they are all that it has."""

PATIENCE: Final = 0.05
"""Seconds after which a portion goes out although the one before is not stored, or not replaced."""


def prefetch_within(limits: Limits, prefetch: int, *, queues: int) -> int:
    """Return the prefetch of each queue within the tenant's rate, `prefetch` at most."""
    if limits.rate is None:
        return prefetch
    return min(prefetch, max(1, ceil(limits.rate * IN_HAND / queues)))


class Pace:
    """Keeps a consumer to its tenant's rate; `Reminder.TOKENS_DUE` says when more may go.

    A delivery counts when it is given out for the first time, whether it is stored, is a duplicate
    or can't be stored: all cost as much. Another attempt at a held delivery is free. Saved tokens
    outlive the consumer, in the runtime state, so that no failure and no resize brings a new burst;
    a tenant that comes to this process begins without saved tokens.
    """

    def __init__(self, bucket: TokenBucket, *, consumer: Ref, clock: Clock) -> None:
        self._bucket = bucket
        self._consumer = consumer
        self._clock = clock
        self._reminded = False

    def allowed(self, waiting: int, *, batch_size: int) -> int:
        """Return how many waiting deliveries may go in a batch now; if 0, schedule a reminder.

        It is 0 until a batch is worth its transaction.
        """
        bucket, now = self._bucket, self._clock.now()
        wanted = min(waiting, batch_size, max(1, int(bucket.rate * GATHERED)), int(bucket.burst))
        tokens = bucket.available(now)
        if tokens >= wanted:
            return min(tokens, batch_size)
        if not self._reminded:
            self._reminded = True
            delay = bucket.seconds_until(wanted, now)
            self._clock.tell_later(delay, self._consumer, Reminder.TOKENS_DUE)
        return 0

    def gone(self, count: int) -> None:
        """Note that so many deliveries were given out."""
        self._bucket.take(count)

    def reminded(self) -> None:
        """Note that `Reminder.TOKENS_DUE` has come."""
        self._reminded = False


class Portions:
    """Cuts a backlog into small portions while quiet tenants work beside it.

    Full batches, stored beside one another while the next ones come in, keep all processors busy
    for tens of milliseconds; meanwhile the quiet tenants' messages wait at each step of their way.
    So a portion goes out once the one before is stored and the broker has replaced it: one thing
    after the other. Where that takes longer than `PATIENCE` (a handler, a distant database), it is
    not the processors that the time is spent on, and other workers get portions, too.
    `Reminder.PORTION_DUE` says when more may go.
    """

    def __init__(
        self, tenant_id: str, neighbours: Neighbours, *, consumer: Ref, clock: Clock
    ) -> None:
        self._tenant = tenant_id
        self._neighbours = neighbours
        self._consumer = consumer
        self._clock = clock
        self._at = -inf
        self._owed = 0
        """How many deliveries of the latest batch the broker has not replaced."""
        self._reminded = False

    def allowed(self, waiting: int, *, batch_size: int, portion: int, busy: bool) -> int:
        """Return how many of the `waiting` deliveries may go in a batch now.

        If 0, schedule a reminder. `busy` tells whether a batch of the tenant is being stored.
        """
        now = self._clock.now()
        if waiting <= portion or not self._neighbours.beside(self._tenant, now):
            return batch_size
        left = self._at + PATIENCE - now
        if left <= 0 or not (busy or self._owed > 0):
            return min(portion, batch_size)
        if not self._reminded:
            self._reminded = True
            self._clock.tell_later(left, self._consumer, Reminder.PORTION_DUE)
        return 0

    def came(self, count: int) -> None:
        """Note that deliveries have come in."""
        self._owed -= count

    def gone(self, count: int, *, waiting: int, busy: bool) -> None:
        """Note that so many deliveries were given out, and so many are left."""
        self._at, self._owed = self._clock.now(), count
        if count <= FEW and not waiting and not busy:
            self._neighbours.note(self._tenant, self._at)

    def reminded(self) -> None:
        """Note that `Reminder.PORTION_DUE` has come."""
        self._reminded = False


def paced(
    limits: Limits, *, consumer: Ref, clock: Clock, runtime: TenantRuntimeState, full: bool
) -> Pace | None:
    """Return the pace of a consumer whose tenant has these limits now; None without a rate.

    A new token bucket begins with a `full` burst or none.
    """
    rate, burst, now = limits.rate, limits.burst, clock.now()
    if rate is None:
        runtime.bucket = None
        return None
    if runtime.bucket is None:
        runtime.bucket = TokenBucket(rate=rate, burst=burst, now=now, full=full)
    else:
        runtime.bucket.change(rate=rate, burst=burst, now=now)
    return Pace(runtime.bucket, consumer=consumer, clock=clock)
