"""Rests of backlogs beside quiet tenants, so that the latter's messages are hardly ever late.

Where processors are few, a backlog keeps them so busy, though it goes in portions
(`neighbours.py`), that quiet tenants' messages wait at each step of their way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from time import monotonic, sleep
from typing import Final

from tenantry.turns.neighbours import FEW
from tenantry.turns.pacing import Pacing
from tenantry.turns.turns import Weights

LEAST: Final = 0.25
"""The least part of the time in which backlogs are stored, of all of them together. More than at
publishing: what is confirmed is to be stored, and its queue is not to grow for ever."""

LONGER: Final = 2.5
"""A quiet tenant's batch is late that takes longer than so many times the 90th percentile beside no
backlog. The 99th is nearly twice that by itself."""

ENOUGH: Final = 30
"""Batches that must be known before one is late."""

PATIENCE: Final = 0.5
"""Seconds that a batch rests at most before it is given back, to rest anew: so no worker hangs."""

LONGEST: Final = 1.0
"""Seconds of a batch that are charged at most: then it waits for a lock, or a disk."""

LATELY: Final = 1.0
"""Seconds after which a tenant that stores nothing shares no more."""

SMALL_BYTES: Final = 16 * 1024
"""Bytes of a batch at most that counts as small."""

_NEW_SHARE: Final = 0.2
"""How much of the latest batch goes into the moving average of a tenant's."""


@dataclass(slots=True)
class _Backlog:
    """A tenant with a backlog."""

    next_at: float = -inf
    """Before that its next batch is not to begin."""
    usual: float = 0.0
    """The moving average of the seconds that its batches take."""
    running: int = 0
    """How many of its batches are in the store."""


@dataclass(slots=True)
class Timed:
    """A batch in the store. Of those that are not `plain`, nothing is learnt by their times."""

    plain: bool = True


def rested(
    claim: Callable[[float], float], now: Callable[[], float], sleep: Callable[[float], None]
) -> bool:
    """Sleep until `claim`, given the time, leaves no seconds; False after `PATIENCE`."""
    until = now() + PATIENCE
    while (left := claim(at := now())) > 0:
        if at >= until:
            return False
        sleep(min(left, until - at))
    return True


class Rests:
    """Finds how long backlogs rest between batches. Callable from any thread.

    How long quiet tenants' small batches take in the store tells how busy it may be (see `Pacing`).
    The time that is left is shared by the backlogs' weights, of all seconds in the store, however
    many workers take them. What takes long elsewhere, in handlers for example, neither rests nor is
    timed.
    """

    def __init__(
        self,
        weights: Weights | None = None,
        *,
        now: Callable[[], float] = monotonic,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self._weights = weights or Weights()
        self._now = now
        self._sleep = sleep
        # A batch is timed by itself: what comes before a backlog's is not disturbed by it.
        self._pacing = Pacing(least=LEAST, longer=LONGER, before=0.0, enough=ENOUGH)
        self._lock = threading.Lock()
        self._backlogs: dict[str, _Backlog] = {}
        self._paused_until = -inf
        self._timed_at = -inf

    @property
    def part(self) -> float:
        """The part of the time in which a backlog is stored, on average: 1 without rests."""
        return self._pacing.part

    def rest(self, tenant_id: str) -> bool:
        """Rest before a batch of a backlog; False if it is still not to begin after `PATIENCE`."""
        return rested(lambda now: self.claim(tenant_id, now), self._now, self._sleep)

    def claim(self, tenant_id: str, now: float) -> float:
        """Begin a batch of a backlog; or give the seconds after which one may begin."""
        with self._lock:
            mine = self._backlogs.setdefault(tenant_id, _Backlog())
            if now - self._timed_at < LATELY and (pause := self._pacing.time_to_learn(now)):
                self._paused_until = now + pause
            left = max(mine.next_at, self._paused_until) - now
            if left <= 0:
                mine.next_at = now
                self._charge(tenant_id, mine, mine.usual, now)
            return left

    @contextmanager
    def storing(
        self, tenant_id: str, messages: int, size: int, *, backlog: bool
    ) -> Iterator[Timed]:
        """Time how long a batch of so many bytes takes in the store.

        It is of a `backlog`, or may be a quiet tenant's. If it raises, nothing is learnt.
        """
        began, timed = self._now(), Timed()
        if backlog:
            self._begun(tenant_id, began)
            try:
                yield timed
            finally:
                self._ended(tenant_id, began, self._now())
            return
        yield timed
        if timed.plain and messages <= FEW and size <= SMALL_BYTES:
            self._timed_at = now = self._now()
            self._pacing.small_call(tenant_id, began, now)

    def _begun(self, tenant_id: str, now: float) -> None:
        self._pacing.began(now)
        with self._lock:
            self._backlogs.setdefault(tenant_id, _Backlog()).running += 1

    def _ended(self, tenant_id: str, began: float, now: float) -> None:
        self._pacing.over(now)
        seconds = min(LONGEST, now - began)
        with self._lock:
            mine = self._backlogs[tenant_id]
            mine.running -= 1
            mine.next_at = max(mine.next_at, began)
            self._charge(tenant_id, mine, seconds - mine.usual, now)
            mine.usual += (seconds - mine.usual) * _NEW_SHARE

    def _charge(self, tenant_id: str, mine: _Backlog, seconds: float, now: float) -> None:
        """Put a tenant's next batch off by what it may not have of the time."""
        part = self._share(tenant_id, now)
        if part < 1.0:
            mine.next_at += seconds / part

    def _share(self, tenant_id: str, now: float) -> float:
        """Give the part of the time that a tenant has, by its weight among those with backlogs."""
        self._backlogs = {
            one: of
            for one, of in self._backlogs.items()
            if of.running or now - of.next_at < LATELY or one == tenant_id
        }
        if self._pacing.part == 1.0:
            return 1.0
        count = len(self._backlogs)
        self._pacing.have_at_least(LEAST / count)
        left = self._pacing.part * count
        weights = {one: self._weights.of(one) for one in self._backlogs}
        of_all = sum(weights.values())
        # What the heaviest can't use, as nobody has more than all of the time, is left to others.
        for one in sorted(weights, key=lambda one: weights[one], reverse=True):
            part = left * weights[one] / of_all
            if part < 1.0:
                return left * weights[tenant_id] / of_all
            if one == tenant_id:
                return 1.0
            left -= 1.0
            of_all -= weights[one]
        return 1.0
