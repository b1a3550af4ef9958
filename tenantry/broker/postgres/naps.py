"""When publishers need to wake the reader: not while it looks by itself.

NOTIFY makes commits wait for one another, each for the other's flush to disk. So a publisher
notifies only if the reader sleeps, which an advisory lock tells without a write: the reader holds
it alone while it sleeps, and a publisher that finds it free holds it shared until its commit. The
reader thus falls asleep only when nobody is under way who took it to be awake, and looks once more
as it does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

BEDS: Final = 1024
"""Locks, for all queues together: a queue's is its number modulo this."""

LOOK: Final = 0.005
"""Seconds between looks while awake."""

QUIET: Final = 0.1
"""Seconds without a message after which the reader tries to sleep, and between such attempts."""


class Naps:
    """Which queues the reader looks at by itself, and until when."""

    def __init__(self) -> None:
        self._awake: dict[int, float] = {}
        self._asleep: set[int] = set()

    def stir(self, queues: Iterable[int], now: float) -> list[int]:
        """Stay awake for queues that something happens in; give the beds to leave for that."""
        beds = {queue % BEDS for queue in queues}
        left = beds & self._asleep
        self._asleep -= left
        self._awake.update(dict.fromkeys(beds, now + QUIET))
        return list(left)

    def tired(self, now: float) -> list[int]:
        """Give the beds it is time to try; to be tried again after a while."""
        beds = [bed for bed, until in self._awake.items() if until <= now]
        self._awake.update(dict.fromkeys(beds, now + QUIET))
        return beds

    def sleep(self, beds: Iterable[int]) -> None:
        """Note the beds that were free."""
        for bed in beds:
            self._awake.pop(bed, None)
            self._asleep.add(bed)

    def watches(self, queue: int) -> bool:
        """Tell whether a queue is looked at without being told."""
        return queue % BEDS in self._awake

    @property
    def awake(self) -> bool:
        """Whether any queue is."""
        return bool(self._awake)
