"""Retries after failures: Erlang's restart intensity for children, pauses for outages.

A child may fail a number of times within a period, its restart intensity; at one failure more, its
parent gives it up. Then a tenant as parent fails in its turn; the supervisor parks the tenant. An
outage is not a failure: it is waited out.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Final

import structlog

from tenantry.actors.clock import Clock
from tenantry.actors.messages import Ref, Reminder

log = structlog.get_logger("actors.tenant")

FIRST_BACKOFF: Final = 0.1
LONGEST_BACKOFF: Final = 5.0

LONGEST_OUTAGE_BACKOFF: Final = 2.0
"""Seconds between attempts during an outage: short, so that work goes on soon after it."""

HOPELESS: Final = 60.0
"""Seconds between restarts of a child that keeps failing after it was given up."""


def backoff(failures: int, longest: float = LONGEST_BACKOFF) -> float:
    """Return seconds to wait after so many failures in a row: doubling, bounded, with jitter."""
    ceiling = min(longest, FIRST_BACKOFF * 2.0 ** min(max(failures - 1, 0), 16))
    return ceiling * (0.5 + random.random() / 2)  # noqa: S311


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensity:
    """The restart intensity: at most `restarts` within so many seconds."""

    restarts: int = 5
    within: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """The verdict on a failed child: whether it is given up; seconds until its next start."""

    given_up: bool
    delay: float


class Restarts:
    """A parent's record of its children's failures; each child is judged by its own failures."""

    def __init__(self, intensity: Intensity | None = None) -> None:
        self._intensity = intensity or Intensity()
        self._failures: dict[str, deque[float]] = {}
        self._given_up: set[str] = set()

    def failed(self, child: str, now: float) -> Restart:
        """Note a failure at `now`, in seconds of a clock that never goes back, and judge it."""
        times = self._failures.setdefault(child, deque(maxlen=self._intensity.restarts + 1))
        times.append(now)
        while times[0] <= now - self._intensity.within:
            times.popleft()
        if len(times) <= self._intensity.restarts:
            self._given_up.discard(child)
            return Restart(given_up=False, delay=backoff(len(times)))
        hopeless = child in self._given_up
        self._given_up.add(child)
        return Restart(given_up=True, delay=HOPELESS if hopeless else backoff(len(times)))

    def forget(self, child: str) -> None:
        """Forget a child's failures; harmless if it never failed."""
        self._failures.pop(child, None)
        self._given_up.discard(child)


class Retries:
    """Sends `actor` a `Reminder.TRY_AGAIN` when it is time; one at a time."""

    def __init__(self, *, actor: Ref, clock: Clock) -> None:
        self._actor = actor
        self._clock = clock
        self._failures = 0
        self._waiting = False

    def after(self, error: Exception) -> None:
        """Schedule another attempt soon, after an outage."""
        self._failures += 1
        if self._waiting:
            return
        delay = backoff(self._failures, LONGEST_OUTAGE_BACKOFF)
        log.warning("tenant.waits_for_outage", error=str(error), retry_in=round(delay, 2))
        self._remind(delay)

    def much_later(self, reason: str) -> None:
        """Schedule another attempt in a minute: it failed too often, but has to be done."""
        log.error("tenant.stands_still", reason=reason, seconds=HOPELESS)
        self._remind(HOPELESS)

    def due(self) -> None:
        """Note that `Reminder.TRY_AGAIN` has come."""
        self._waiting = False

    def succeeded(self) -> None:
        """Note success; the backoff begins anew with the next failure."""
        self._failures = 0

    def _remind(self, delay: float) -> None:
        self._waiting = True
        self._clock.tell_later(delay, self._actor, Reminder.TRY_AGAIN)
