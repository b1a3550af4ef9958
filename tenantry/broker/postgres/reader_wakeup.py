"""When publishers need to wake the reader: not while it polls.

NOTIFY makes commits wait for one another, each for the other's flush to disk. So a publisher
notifies only if it reads that the reader is asleep for a queue. A publisher that has read that row
before the reader fell asleep does not notify, and its transaction may still be open. So the reader
dozes until all transactions open at that time have ended: it polls meanwhile, less and less often.
A doze ends beyond `LONGEST_PAUSE` too, as every queue is polled that often anyway.

Waking up and falling asleep are written each time. So for a message now and then the reader stays
asleep: it is told of the queue, and fetches. For most tenants' queues nothing else ever happens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

LOOK: Final = 0.005
"""Seconds between polls while awake."""

QUIET: Final = 0.1
"""Seconds without a message after which the reader falls asleep for a queue. A message that follows
another sooner wakes it up."""

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
        self._dozes: list[_Doze] = []
        self._told: set[int] = set()
        """Queues that the reader was told of, and has not fetched from since."""
        self._had_one_at: dict[int, float] = {}
        """When queues that the reader stays asleep for had their last message."""

    def watch(self, queues: Iterable[int], now: float) -> None:
        """Watch queues that are read from now on, for `QUIET` at first."""
        self._awake.update(dict.fromkeys(queues, now + QUIET))

    def told(self, queues: Iterable[int], now: float) -> list[int]:
        """Note that the reader is told of queues; return those for which it wakes up thereby.

        Those are the ones that it was told of before and can't fetch from, as nobody takes more of
        their messages: it would be told of each one.
        """
        told = {queue for queue in queues if queue not in self._awake}
        woken = told & self._told
        self._told |= told
        return self._wake(woken, now)

    def fetched(self, queues: Iterable[int], brought: Mapping[int, int], now: float) -> list[int]:
        """Note how many messages a fetch from queues brought; return those it wakes up for.

        It stays asleep for a single message that it was told of, some time after the one before.
        """
        woken: set[int] = set()
        for queue, count in brought.items():
            if queue in self._awake:
                self._awake[queue] = now + QUIET
                continue
            before = self._had_one_at.get(queue, -inf)
            if count == 1 and queue in self._told and now - before >= QUIET:
                self._had_one_at[queue] = now
            else:
                woken.add(queue)
        self._told.difference_update(queues)
        return self._wake(woken, now)

    def _wake(self, queues: set[int], now: float) -> list[int]:
        if queues:
            self.forget(queues)
            self.watch(queues, now)
        return list(queues)

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
                self._dozes.remove(doze)
        return {queue for doze in due for queue in doze.queues}

    def forget(self, queues: Iterable[int]) -> None:
        """Drop queues that are not read any more."""
        gone = set(queues)
        self._told -= gone
        for queue in gone:
            self._awake.pop(queue, None)
            self._had_one_at.pop(queue, None)
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
