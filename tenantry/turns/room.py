"""How much work is worth doing at once: the least with which throughput is as high."""

from __future__ import annotations

from enum import Enum
from typing import Final

WINDOW: Final = 1.0
"""Seconds over which it is measured how much is stored."""

PAYS: Final = 1.15
"""How many times as much has to be stored with more room for that to be kept."""

COSTS: Final = 0.95
"""What has to be stored with less room for that to be kept."""

SOONEST, LATEST = 2, 32
"""Windows between two trials: the fewest, and the most while they lead to nothing."""


class _Trial(Enum):
    UP = 1.0
    DOWN = -1.0


class Room:
    """Room whose size is found by trial: for a second with one more or one less, then compared.

    Throughput tells something only while turns wait: a window in which, at some moment, none waited
    is started again. `size` is the room in force, `least` the initial one. It reads no clock.
    """

    def __init__(self, *, least: float, most: float) -> None:
        self._least = least
        self._most = max(least, most)
        self._base = least
        self.size = least
        self._since: float | None = None
        self._work = 0.0
        self._before = 0.0
        """What was stored a second in the latest window without a trial."""
        self._tried: float | None = None
        """What was stored a second in the trial, until it is compared."""
        self._trial = _Trial.UP
        self._pause = self._left = SOONEST

    def note(self, work: float, now: float, *, contended: bool) -> None:
        """Count stored work; `contended` says whether turns wait for room."""
        if not contended or self._since is None:
            self._since, self._work = now if contended else None, 0.0
            return
        self._work += work
        seconds = now - self._since
        if seconds >= WINDOW:
            self._over(self._work / seconds)
            self._since, self._work = now, 0.0

    def _over(self, rate: float) -> None:
        """Evaluate a finished window, given its throughput a second."""
        if self.size != self._base:
            self._tried, self.size = rate, self._base
            return
        if self._tried is not None:
            self._compare(self._tried, (self._before + rate) / 2)
            self._tried = None
        self._before = rate
        self._left -= 1
        if self._left <= 0:
            self._left = self._pause
            self._trial = _Trial.UP if self._trial is _Trial.DOWN else _Trial.DOWN
            self.size = min(max(self._base + self._trial.value, self._least), self._most)

    def _compare(self, tried: float, usual: float) -> None:
        if tried >= usual * (PAYS if self._trial is _Trial.UP else COSTS):
            base = min(max(self._base + self._trial.value, self._least), self._most)
            self._base = self.size = base
            self._pause = self._left = SOONEST
        else:
            self._pause = min(LATEST, self._pause * 2)
