"""A tenant's rate limit: how many of its deliveries may be given to workers now."""

from __future__ import annotations

from math import ceil
from typing import Final

from tenantry.actors.clock import Clock
from tenantry.actors.messages import Ref, Reminder
from tenantry.actors.runtime_state import TenantRuntimeState
from tenantry.domain.limits import Limits
from tenantry.turns.token_bucket import TokenBucket

GATHERED: Final = 0.05
"""Seconds' worth of messages gathered for a batch: one message each would cost a transaction."""

IN_HAND: Final = 2.0
"""Seconds' worth of messages prefetched from the broker: enough to avoid waiting for one, and few
enough that a stopping consumer has little to give back."""


SMALLEST_PREFETCH: Final = 100
"""Of one queue without a rate, however many queues share the tenant's prefetch."""


def prefetch_of(limits: Limits, prefetch: int, *, queues: int) -> int:
    """Return the share of `prefetch` for each of a tenant's queues, within the tenant's rate."""
    share = max(SMALLEST_PREFETCH, prefetch // queues)
    if limits.rate is None:
        return share
    return min(share, max(1, ceil(limits.rate * IN_HAND / queues)))


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
