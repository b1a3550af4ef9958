"""When a child that failed is started again, and when it is given up: Erlang's rules, and no I/O.

A child may fail some times within a period, its restart intensity; one failure more, and
starting it again is not worth trying: its parent gives it up. What a parent does then is its own
affair: a tenant fails in its turn, the supervisor parks the tenant.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Final

FIRST_BACKOFF: Final = 0.1
LONGEST_BACKOFF: Final = 5.0

HOPELESS: Final = 60.0
"""Seconds between attempts at a child that fails although it has been given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensity:
    """How many restarts within how many seconds are worth trying."""

    restarts: int = 5
    within: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of a child that failed: whether it is given up; seconds until its next start."""

    given_up: bool
    delay: float


class Restarts:
    """A parent's record of its children's failures. Each child is judged by its own alone."""

    def __init__(self, intensity: Intensity | None = None) -> None:
        self._intensity = intensity or Intensity()
        self._failures: dict[str, deque[float]] = {}
        self._given_up: set[str] = set()

    def failed(self, child: str, now: float) -> Verdict:
        """Note a failure at `now`, in seconds of a clock that never goes back, and judge it."""
        times = self._failures.setdefault(child, deque(maxlen=self._intensity.restarts + 1))
        times.append(now)
        while times[0] <= now - self._intensity.within:
            times.popleft()
        if len(times) <= self._intensity.restarts:
            self._given_up.discard(child)
            return Verdict(given_up=False, delay=backoff(len(times)))
        hopeless = child in self._given_up
        self._given_up.add(child)
        return Verdict(given_up=True, delay=HOPELESS if hopeless else backoff(len(times)))

    def forget(self, child: str) -> None:
        """Forget a child's failures; harmless if it never failed."""
        self._failures.pop(child, None)
        self._given_up.discard(child)


def backoff(failures: int, longest: float = LONGEST_BACKOFF) -> float:
    """Give seconds to wait after so many failures in a row: doubling, bounded, with jitter."""
    ceiling = min(longest, FIRST_BACKOFF * 2.0 ** min(max(failures - 1, 0), 16))
    return ceiling * (0.5 + random.random() / 2)  # noqa: S311
