"""A tenant's rate: how many of its deliveries may be given to workers now."""

from __future__ import annotations

from math import ceil
from typing import Final

from tenantry.actors.clock import Clock
from tenantry.actors.messages import Ref, Reminder
from tenantry.actors.runtime_state import TenantRuntimeState
from tenantry.domain.limits import Limits
from tenantry.turns.token_bucket import TokenBucket

GATHERED: Final = 0.05
"""Seconds' worth of messages that are gathered for a batch: a message each would cost a transaction
each."""

IN_HAND: Final = 2.0
"""Seconds' worth of messages that are taken from the broker: enough that none is waited for, and
few enough that a consumer that ends has little to give back."""


def prefetch_within(limits: Limits, prefetch: int, *, queues: int) -> int:
    """Give how many deliveries of each of some queues may be unsettled, `prefetch` at most."""
    if limits.rate is None:
        return prefetch
    return min(prefetch, max(1, ceil(limits.rate * IN_HAND / queues)))


class Pace:
    """Keeps a consumer to its tenant's rate; `Reminder.TOKENS_DUE` says when more may go.

    What counts is what is given out for the first time: what is stored, what turns out to be a
    duplicate or can't be stored alike, since they cost as much. Another attempt of a held delivery
    is free. What is saved up outlives the consumer, in the runtime state, so that no failure and no
    resize brings a new burst; a tenant that comes to this process begins with nothing saved.
    """

    def __init__(self, bucket: TokenBucket, *, consumer: Ref, clock: Clock) -> None:
        self._bucket = bucket
        self._consumer = consumer
        self._clock = clock
        self._reminded = False

    def allowed(self, waiting: int, *, batch_size: int) -> int:
        """Give how many of those that wait may go in a batch now; see that it is asked again.

        None may, until a batch is worth its transaction.
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
    """Give the pace of a consumer whose tenant has these limits now; none without a rate.

    Where nothing is known of it, it begins with a `full` burst or none.
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
