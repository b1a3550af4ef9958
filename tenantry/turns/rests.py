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

LONGER: Final = 3.0
"""A quiet tenant's batch is late that takes longer than so many times the 90th percentile beside no
backlog. The 99th is nearly twice that by itself."""

ENOUGH: Final = 100
"""Batches from which it is known well enough how long they take."""

LONGEST_REST: Final = 1.0
"""Seconds, so that a drain does not wait for long. Where many backlogs share, or one of little
weight, they have a little more than their parts by this."""

LATELY: Final = 1.0
"""Seconds after which a tenant that stores nothing shares no more."""

SMALL_BYTES: Final = 16 * 1024
"""Bytes of a batch at most that counts as small: those take much the same time."""

_NEW_SHARE: Final = 0.2
"""How much of the latest batch goes into the moving average of a tenant's."""


@dataclass(slots=True)
class _Backlog:
    """A tenant with a backlog."""

    next_at: float = -inf
    """Before that its next batch is not to begin."""
    usual: float = 0.0
    """The moving average of the seconds that its batches take."""


class Rests:
    """Finds how long backlogs rest between batches. Callable from any thread.

    How long quiet tenants' small batches take in the store tells how busy it may be (see `Pacing`).
    The time that is left is shared by the backlogs' weights, of all seconds in the store, whoever
    takes them. What takes long elsewhere, in handlers for example, neither rests nor is timed.
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
        # What a quiet tenant sends is timed by itself: a backlog does not disturb it beforehand.
        self._pacing = Pacing(least=LEAST, longer=LONGER, before=0.0, enough=ENOUGH)
        self._lock = threading.Lock()
        self._backlogs: dict[str, _Backlog] = {}
        self._paused_until = -inf
        self._timed_at = -inf

    @property
    def part(self) -> float:
        """The part of the time in which a backlog is stored, on average: 1 without rests."""
        return self._pacing.part

    def rest(self, tenant_id: str) -> None:
        """Rest before a batch of a backlog, beside quiet tenants. Blocks for a second at most."""
        until = self.begins(tenant_id, self._now())
        while (left := max(until, self._paused_until) - self._now()) > 0:
            self._sleep(left)

    def begins(self, tenant_id: str, now: float) -> float:
        """Give the time at which the next batch of a backlog may begin: that is taken then."""
        with self._lock:
            mine = self._backlogs.setdefault(tenant_id, _Backlog())
            mine.next_at = max(mine.next_at, now)
            begins = min(mine.next_at, now + LONGEST_REST)
            if now - self._timed_at < LATELY and (pause := self._pacing.time_to_learn(now)):
                self._paused_until = now + pause
            self._charge(tenant_id, mine, mine.usual, now)
            return max(begins, self._paused_until)

    @contextmanager
    def storing(self, tenant_id: str, messages: int, size: int, *, more: bool) -> Iterator[None]:
        """Time how long a batch takes in the store; with `more` it is of a backlog."""
        began = self._now()
        if more:
            self._pacing.began(began)
        try:
            yield
        except BaseException:
            if more:
                self._pacing.over(self._now())
            raise
        now = self._now()
        if more:
            self._pacing.over(now)
            self._stored(tenant_id, now - began, now)
        elif messages <= FEW and size <= SMALL_BYTES:
            self._timed_at = now
            self._pacing.small_call(tenant_id, began, now)

    def _stored(self, tenant_id: str, seconds: float, now: float) -> None:
        with self._lock:
            mine = self._backlogs.get(tenant_id)
            if mine is not None:  # else nobody is quiet beside it
                self._charge(tenant_id, mine, seconds - mine.usual, now)
                mine.usual += (seconds - mine.usual) * _NEW_SHARE

    def _charge(self, tenant_id: str, mine: _Backlog, seconds: float, now: float) -> None:
        """Put a tenant's next batch off by what it may not have of the time."""
        part = self._share(tenant_id, now)
        if part < 1.0:
            mine.next_at = min(mine.next_at + seconds / part, now + 2 * LONGEST_REST)

    def _share(self, tenant_id: str, now: float) -> float:
        """Give the part of the time that a tenant has, by its weight among those with backlogs."""
        self._backlogs = {
            one: of
            for one, of in self._backlogs.items()
            if now - of.next_at < LATELY or one == tenant_id
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
