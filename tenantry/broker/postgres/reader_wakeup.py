"""When publishers need to wake the reader: not while it looks by itself.

NOTIFY makes commits wait for one another, each for the other's flush to disk. So a publisher
notifies only where it reads that the reader is asleep for a queue. A publisher that has read the
row before the reader fell asleep does not notify, and may be under way still: the reader dozes
until all transactions have ended that were open then, and looks by itself meanwhile, less and less
often. From `LONGEST_PAUSE` on that is no more than it does for every queue.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import inf
from typing import Final

LOOK: Final = 0.005
"""Seconds between looks while awake."""

QUIET: Final = 0.1
"""Seconds without a message after which the reader falls asleep for a queue."""

LONGEST_PAUSE: Final = 1.0
"""Seconds between looks beyond which the reader no longer dozes, but sleeps."""


@dataclass(slots=True)
class _Doze:
    """Queues fallen asleep for together; `until` no transaction below this number is open."""

    queues: set[int]
    until: int
    look_at: float
    pause: float = LOOK


class ReaderWakeup:
    """Which queues the reader looks at by itself, and until when."""

    def __init__(self) -> None:
        self._awake: dict[int, float] = {}
        self._asleep: set[int] = set()
        self._dozes: list[_Doze] = []

    def stay_awake(self, queues: Iterable[int], now: float) -> list[int]:
        """Stay awake for queues that something happens in; give those it had fallen asleep for."""
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
        """Give the queues in which nothing has happened for a while."""
        return [queue for queue, until in self._awake.items() if until <= now]

    def fall_asleep(self, queues: Collection[int], until: int, now: float) -> None:
        """Doze, now that publishers can read it; transactions below `until` may not have."""
        for queue in queues:
            self._awake.pop(queue, None)
        self._dozes.append(_Doze(set(queues), until, now))

    def any_due(self, now: float) -> bool:
        """Tell whether it is time to look at queues that the reader dozes for."""
        return any(doze.look_at <= now for doze in self._dozes)

    def due(self, oldest_open: int, now: float) -> set[int]:
        """Give those to look at, with all transactions below `oldest_open` ended before."""
        due = [doze for doze in self._dozes if doze.look_at <= now]
        for doze in due:
            doze.pause *= 2
            doze.look_at = now + doze.pause
            if doze.until <= oldest_open or doze.pause > LONGEST_PAUSE:
                self._asleep |= doze.queues
                self._dozes.remove(doze)
        return {queue for doze in due for queue in doze.queues}

    def forget(self, queues: Iterable[int]) -> None:
        """Leave out queues that are not read any more."""
        gone = set(queues)
        for queue in gone:
            self._awake.pop(queue, None)
        self._asleep -= gone
        for doze in self._dozes:
            doze.queues -= gone
        self._dozes = [doze for doze in self._dozes if doze.queues]

    def awake(self) -> list[int]:
        """Give the queues that are looked at without being told."""
        return list(self._awake)

    def pause(self, now: float) -> float:
        """Give the seconds until the next look; for ever while the reader sleeps for all."""
        if self._awake:
            return LOOK
        return max(0.0, min((doze.look_at for doze in self._dozes), default=inf) - now)
