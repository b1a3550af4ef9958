"""When publishers need to wake the reader: not while it polls.

NOTIFY makes commits wait for one another, each for the other's flush to disk. So a publisher
notifies only if it reads that the reader is asleep for a queue. A publisher that has read that row
before the reader fell asleep does not notify, and its transaction may still be open. So the reader
dozes until all transactions open at that time have ended: it polls meanwhile, less and less often.
A doze ends beyond `LONGEST_PAUSE` too, as every queue is polled that often anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import inf
from typing import Final

LOOK: Final = 0.005
"""Seconds between polls while awake."""

QUIET: Final = 0.1
"""Seconds without a message after which the reader falls asleep for a queue."""

LONGEST_PAUSE: Final = 1.0
"""The longest pause, in seconds, between polls while dozing; beyond it the reader sleeps."""


@dataclass(slots=True)
class _Doze:
    """Queues for which the reader dozes `until` no transaction below this number is open."""

    queues: set[int]
    until: int
    look_at: float
    pause: float = LOOK


class ReaderWakeup:
    """The queues that the reader polls, and until when."""

    def __init__(self) -> None:
        self._awake: dict[int, float] = {}
        self._asleep: set[int] = set()
        self._dozes: list[_Doze] = []

    def stay_awake(self, queues: Iterable[int], now: float) -> list[int]:
        """Stay awake for active queues; return those for which the reader slept or dozed."""
        awake = set(queues)
        left = awake & self._asleep
        self._asleep -= left
        for doze in self._dozes:
            left |= awake & doze.queues
            doze.queues -= awake
        if left:
            self._dozes = [doze for doze in self._dozes if doze.queues]
        self._awake.update(dict.fromkeys(awake, now + QUIET))
        return list(left)

    def quiet(self, now: float) -> list[int]:
        """Return the queues without activity for a while."""
        return [queue for queue, until in self._awake.items() if until <= now]

    def fall_asleep(self, queues: Collection[int], until: int, now: float) -> None:
        """Doze for queues marked as asleep; transactions below `until` may not see the mark."""
        for queue in queues:
            self._awake.pop(queue, None)
        self._dozes.append(_Doze(set(queues), until, now))

    def any_due(self, now: float) -> bool:
        """Return whether it is time to poll queues that the reader dozes for."""
        return any(doze.look_at <= now for doze in self._dozes)

    def due(self, oldest_open: int, now: float) -> set[int]:
        """Return the queues to poll now; all transactions below `oldest_open` have ended."""
        due = [doze for doze in self._dozes if doze.look_at <= now]
        for doze in due:
            doze.pause *= 2
            doze.look_at = now + doze.pause
            if doze.until <= oldest_open or doze.pause > LONGEST_PAUSE:
                self._asleep |= doze.queues
                self._dozes.remove(doze)
        return {queue for doze in due for queue in doze.queues}

    def forget(self, queues: Iterable[int]) -> None:
        """Drop queues that are not read any more."""
        gone = set(queues)
        for queue in gone:
            self._awake.pop(queue, None)
        self._asleep -= gone
        for doze in self._dozes:
            doze.queues -= gone
        self._dozes = [doze for doze in self._dozes if doze.queues]

    def awake(self) -> list[int]:
        """Return the queues that are polled without a notification."""
        return list(self._awake)

    def pause(self, now: float) -> float:
        """Return the seconds until the next poll; infinity while asleep for all queues."""
        if self._awake:
            return LOOK
        return max(0.0, min((doze.look_at for doze in self._dozes), default=inf) - now)
