"""Holds publishing over HTTP to tenants' rates: a faster client is told when to try again."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tenantry.domain.limits import Limits
from tenantry.domain.tenant import TenantState
from tenantry.http.problems import Problem, too_many
from tenantry.turns.token_bucket import TokenBucket

_MANY: Final = 10_000


@dataclass(slots=True)
class _Held:
    """A tenant with a rate: its incarnation, its limits, and its token bucket."""

    incarnation: int
    limits: Limits
    bucket: TokenBucket


class PublishingRates:
    """Counts what tenants with a rate publish in this process. Callable from any thread.

    Each process that answers publishes counts by itself. Storing is held to the rate in any case;
    this tells publishers early.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._held: dict[str, _Held] = {}

    def admit(self, state: TenantState, count: int) -> None:
        """Take so many messages together. Raises `Problem`: 429, with the seconds to wait.

        A list larger than the burst is taken once a whole burst is saved, and later calls wait for
        all of it: so a list of any length gets through, and the rate holds.
        """
        if state.limits.rate is None:
            if state.tenant_id in self._held:
                with self._guard:
                    self._held.pop(state.tenant_id, None)
            return
        now = self._clock()
        with self._guard:
            bucket = self._bucket(state, state.limits.rate, now)
            wait = bucket.seconds_until(count, now)
            if bucket.available(now) >= min(count, int(bucket.burst)):
                bucket.take(count)
                return
        raise _too_fast(state.limits.rate, wait)

    def _bucket(self, state: TenantState, rate: int, now: float) -> TokenBucket:
        held = self._held.get(state.tenant_id)
        limits = state.limits
        if held is None or held.incarnation != state.incarnation:
            if len(self._held) >= _MANY:  # dropping all state costs each tenant's limit one burst
                self._held.clear()
            bucket = TokenBucket(rate=rate, burst=limits.burst, now=now, full=True)
            held = self._held[state.tenant_id] = _Held(state.incarnation, limits, bucket)
        elif held.limits != limits:
            held.bucket.change(rate=rate, burst=limits.burst, now=now)
            held.limits = limits
        return held.bucket


def _too_fast(rate: int, wait: float) -> Problem:
    seconds = max(1, math.ceil(wait))
    problem = too_many(f"the tenant may publish {rate} messages a second; try again in {seconds} s")
    problem.headers["Retry-After"] = str(seconds)
    return problem
