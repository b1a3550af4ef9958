"""Rests between turns, as long as small calls beside them need to last hardly longer than alone.

Where turns follow one another at once, whatever else goes on waits for processors at each step of
its way: the fuller they are, the longer. How full is too full depends on the machine, on the
database and on what the small calls cost, so it is not guessed: it is seen by how long they take.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections import deque
from math import exp, inf
from typing import Final

from tenantry.turns.neighbours import Neighbours

REMEMBERED: Final = 1024
"""Small calls without turns beside them from which it is known how long they usually take."""

ENOUGH: Final = 8
"""As many must be remembered for that, if nothing else is said."""

SLOW: Final = 0.9
"""The part of those that count as fast; the others took longer. Not more: a stall of the machine
makes all calls of a second slow."""

LONGER: Final = 1.75
"""So many times as long as a slow one of those a call may take before it counts as late."""

MANY: Final = 0.02
"""The part of small calls that may be late because of turns, at least. If more are without turns,
as their times vary, as many again may be."""

STEP: Final = 0.2
"""By how much the logarithm of the turns' part changes with a call that is late."""

LEAST: Final = 0.05
"""The least part of the time that turns have."""

LONGEST_REST: Final = 2.0
"""Seconds: calls wait for their turns, and not for ever."""

BEFORE: Final = 1.0
"""Seconds before a turn in which its client's calls are being read, or are about to be."""

AFTERMATH: Final = 0.25
"""Seconds after a turn in which its work goes on elsewhere: in the database, and in the daemon."""

LEARN_EVERY: Final = 10.0
"""Seconds after which a turn is followed by a time to learn in, if there has been none."""

LEARN_SELDOM: Final = 320.0
"""The same while nothing is learnt in such times either: each time it is twice as long, up to this
many seconds."""

ENOUGH_TIME: Final = 0.5
"""With as large a part turns hardly pay for something outdated: there is no time to learn in."""


class Pacing:
    """Finds the part of the time that turns may have.

    Where small calls are late beside turns, a turn is followed by a longer rest; where they are as
    fast as without, by a shorter one or none: so that few of them are late, if any are. What is
    usual is learnt while there are no turns, and in long rests. It reads no clock. Callable from
    any thread.

    Of calls that are late only those beside turns count; and of a client's that are one after the
    other only the first, while others' are in time: that has a reason of its own.
    """

    def __init__(
        self,
        *,
        least: float = LEAST,
        longer: float = LONGER,
        before: float = BEFORE,
        enough: int = ENOUGH,
    ) -> None:
        """See `LEAST`, `LONGER`, `BEFORE` and `ENOUGH`."""
        self._lock = threading.Lock()
        self._least, self._longer, self._before, self._enough = least, longer, before, enough
        self.part = 1.0
        """The part of the time that turns have, from the least to 1."""
        self._usual: deque[float] = deque()
        self._sorted: list[float] = []
        self._latest: deque[tuple[float, float]] = deque()
        """When calls began that no turn has been near so far, and the seconds that they took."""
        self._limit = inf
        """Seconds beyond which a call is late; infinite while it is not known what is usual."""
        self._many = MANY
        """The part of small calls that may be late."""
        self._learn_every = LEARN_EVERY
        self._learn_by = -inf
        """When it is time to learn what is usual, if nothing has been learnt before."""
        self._late_client = ""
        self._in_time = Neighbours()
        self._running = 0
        self._disturbed_until = -inf

    def have_at_least(self, least: float) -> None:
        """Set the least part of the time that turns have."""
        with self._lock:
            self._least = least
            self.part = max(self.part, least)

    def began(self, now: float) -> None:
        """Note that a turn has begun, which is to be `ended`."""
        with self._lock:
            self._learn(now)
            self._latest.clear()
            self._running += 1

    def small_call(self, client: str, began: float, now: float) -> None:
        """Note that a small call of a client has ended."""
        seconds = now - began
        with self._lock:
            disturbed = self._running > 0 or began < self._disturbed_until
            if not disturbed:
                self._learn(now)
                self._latest.append((began, seconds))
            if seconds <= self._limit:
                self._in_time.note(client, now)
                self._change(self._many)
            elif disturbed and (
                client != self._late_client or not self._in_time.beside(client, now)
            ):
                self._late_client = client
                self._change(self._many - 1)

    def _change(self, step: float) -> None:
        self.part = min(1.0, max(self._least, self.part * exp(STEP * step)))

    def rest(self, seconds: float) -> float:
        """Give the seconds to rest after a portion of a turn that has taken so long."""
        with self._lock:
            return seconds * (1 / self.part - 1)

    def ended(self, seconds: float, now: float) -> float:
        """Note that a turn has ended, `seconds` after a rest; give the seconds to rest."""
        with self._lock:
            self._over(now)
            return self._time_to_learn(now) or min(LONGEST_REST, seconds * (1 / self.part - 1))

    def over(self, now: float) -> None:
        """Note that a turn has ended, and be asked for no rest."""
        with self._lock:
            self._over(now)

    def _over(self, now: float) -> None:
        self._running -= 1
        self._disturbed_until = now + AFTERMATH

    def time_to_learn(self, now: float) -> float:
        """Give the seconds without turns in which to learn what is usual, if it is time; or 0."""
        with self._lock:
            return self._time_to_learn(now)

    def _time_to_learn(self, now: float) -> float:
        learnt = len(self._sorted) >= self._enough and self.part >= ENOUGH_TIME
        if learnt or now < self._learn_by:
            return 0.0
        self._learn_by = now + self._learn_every
        self._learn_every = min(LEARN_SELDOM, 2 * self._learn_every)
        return self._before + 2 * AFTERMATH

    def _learn(self, now: float) -> None:
        known, learnt = self._sorted, False
        while self._latest and self._latest[0][0] < now - self._before:
            _, seconds = self._latest.popleft()
            self._usual.append(seconds)
            insort(known, seconds)
            if len(known) > REMEMBERED:
                del known[bisect_left(known, self._usual.popleft())]
            learnt = True
        if not learnt:
            return
        self._learn_every = LEARN_EVERY
        if len(known) >= self._enough:
            self._learn_by = now + LEARN_EVERY
            self._limit = known[int(len(known) * SLOW)] * self._longer
            late = 1 - bisect_right(known, self._limit) / len(known)
            self._many = late + max(late, MANY)
