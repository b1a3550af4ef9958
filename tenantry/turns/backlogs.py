"""Tenants with backlogs: how far a node has come with them, and how fast it may go on at most."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Final

from tenantry.turns.rests import rested
from tenantry.turns.token_bucket import TokenBucket
from tenantry.turns.turns import Weights

BUSY: Final = 0.5
"""The part of the time that a tenant with a backlog is in the store, or waits for it, at least. One
that is there less (it has a `rate`, for example) counts as so much less."""

BURST: Final = 3.0
"""Full batches that a tenant may begin at once after a pause."""

_NOTHING: Final = 1e-6
"""Seconds that are none: sums of fractions are a little less than what they add up to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a node has come with its backlogs since it started.

    `weight` is the weight of the tenants that had one, summed over the seconds in which they did;
    `work` is the work that storing them was, in full batches, and `batches` are all that there
    were. If it is `held`, it goes slower for other nodes' sake, or tries whether that helps.
    """

    seconds: float = 0.0
    weight: float = 0.0
    work: float = 0.0
    batches: int = 0
    held: bool = False


NOTHING_YET: Final = Progress()


@dataclass(slots=True)
class _Backlog:
    """A tenant with a backlog."""

    running: int = 0
    """How many of its batches are in the store, or wait for it."""
    since: float = 0.0
    """When the first of them came, or the seconds before were counted."""
    busy: float = 0.0
    """Seconds in which there were any, since the weights were summed up."""
    bucket: TokenBucket | None = None


class Backlogs:
    """The tenants with backlogs of a node. Callable from any thread.

    While they are held, each may begin so much work a second for its weight, on average, and rests
    before its batches as long as that takes.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        now: Callable[[], float] = monotonic,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self._weights = weights
        self._now = now
        self._sleep = sleep
        self._lock = threading.Lock()
        self._tenants: dict[str, _Backlog] = {}
        self._began = self._summed_at = now()
        self._weight = self._work = 0.0
        self._batches = 0
        self._waited = False
        self._held_to = 0.0
        self._held_until = self._began

    @property
    def held_to(self) -> float:
        """The full batches a second that a tenant of weight 1 may begin; 0 while not held."""
        return self._held_to if self._now() < self._held_until else 0.0

    def hold_to(self, rate: float, *, seconds: float) -> None:
        """Hold backlogs to so many full batches a second, for their weights, from now on.

        It ends by itself after so many `seconds`.
        """
        with self._lock:
            self._held_to, self._held_until = rate, self._now() + seconds

    def release(self) -> None:
        """Hold backlogs no longer."""
        with self._lock:
            self._held_to = 0.0

    def begun(self, tenant_id: str) -> None:
        """Note that a batch of a tenant's backlog has come."""
        with self._lock:
            mine = self._tenants.setdefault(tenant_id, _Backlog())
            if not mine.running:
                mine.since = self._now()
            mine.running += 1

    def rest(self, tenant_id: str, work: float) -> bool:
        """Rest before a batch; False if it is still not to begin after a while."""
        return rested(lambda now: self.claim(tenant_id, work, now), self._now, self._sleep)

    def claim(self, tenant_id: str, work: float, now: float) -> float:
        """Begin a batch; or give the seconds after which it may begin."""
        with self._lock:
            mine = self._tenants[tenant_id]
            if not self._held_to or now >= self._held_until:
                mine.bucket = None
                return 0.0
            rate = self._held_to * self._weights.of(tenant_id)
            if mine.bucket is None:
                mine.bucket = TokenBucket(rate=rate, burst=BURST, now=now, full=False)
            elif mine.bucket.rate != rate:
                mine.bucket.change(rate=rate, burst=BURST, now=now)
            left = mine.bucket.seconds_until(work, now)
            if left > _NOTHING:
                self._waited = True
                return left
            mine.bucket.take(work)
            return 0.0

    def ended(self, tenant_id: str, work: float = 0.0, *, beyond: float = 0.0) -> None:
        """Note that a batch has been stored, or without `work` that it has not.

        So much work `beyond` what was expected counts for the next ones, up to a burst.
        """
        with self._lock:
            now, mine = self._now(), self._tenants[tenant_id]
            if work:
                self._work += work
                self._batches += 1
            if mine.bucket is not None:
                mine.bucket.take(min(beyond, BURST))
            mine.running -= 1
            if not mine.running:
                mine.busy += now - mine.since

    def waited(self) -> bool:
        """Tell whether a batch has waited since this was last asked, as backlogs are held."""
        with self._lock:
            waited, self._waited = self._waited, False
            return waited

    def progress(self) -> Progress:
        """Tell how far this node has come. Called by one thread, often."""
        with self._lock:
            now = self._now()
            passed = now - self._summed_at
            for tenant_id, one in list(self._tenants.items()):
                if one.running:
                    one.busy += now - one.since
                    one.since = now
                elif not (one.busy or (one.bucket and now < self._held_until and self._held_to)):
                    del self._tenants[tenant_id]
                part = min(passed, one.busy / BUSY)
                self._weight += part * self._weights.of(tenant_id)
                one.busy = 0.0
            self._summed_at = now
            return Progress(
                seconds=now - self._began,
                weight=self._weight,
                work=self._work,
                batches=self._batches,
            )
