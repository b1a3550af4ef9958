"""Rests between turns, as long as small calls beside them need to last hardly longer than alone.

Where turns follow one another at once, whatever else goes on waits for processors at each step of
its way: the fuller they are, the longer. How full is too full depends on the machine, on the
database and on what the small calls cost, so it is not guessed: it is seen by how long they take.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from math import exp, inf
from typing import Final

from tenantry.turns.neighbours import Neighbours

REMEMBERED: Final = 1024
"""Small calls without turns beside them from which it is known how long they usually take."""

ENOUGH: Final = 8
"""As many must be remembered for that."""

SLOW: Final = 0.9
"""The part of those that count as fast; the others took longer. Not more: a stall of the machine
makes all calls of a second slow."""

LONGER: Final = 2.0
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

ENOUGH_TIME: Final = 0.5
"""With as large a part turns hardly pay for something outdated: there is no time to learn in."""


class Pacing:
    """Finds the part of the time that turns may have.

    Where small calls are late beside turns, a turn is followed by a longer rest; where they are as
    fast as without, by a shorter one or none: so that few of them are late, if any are. What is
    usual is learnt while there are no turns, and in long rests. It reads no clock. Callable from
    any thread.

    Of a client's calls that are late one after the other only the first counts, while others' are
    in time: that has a reason of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.part = 1.0
        """The part of the time that turns have, from `LEAST` to 1."""
        self._usual: deque[float] = deque(maxlen=REMEMBERED)
        self._latest: deque[tuple[float, float]] = deque()
        """When calls began that no turn has been near so far, and the seconds that they took."""
        self._limit = inf
        """Seconds beyond which a call is late; infinite while it is not known what is usual."""
        self._many = MANY
        """The part of small calls that may be late."""
        self._learn_by = -inf
        """When it is time to learn what is usual, if nothing has been learnt before."""
        self._late_client = ""
        self._in_time = Neighbours()
        self._running = 0
        self._disturbed_until = -inf

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
            if not self._running and began >= self._disturbed_until:
                self._learn(now)
                self._latest.append((began, seconds))
            if seconds <= self._limit:
                self._in_time.note(client, now)
                self._change(self._many)
            elif client != self._late_client or not self._in_time.beside(client, now):
                self._late_client = client
                self._change(self._many - 1)

    def _change(self, step: float) -> None:
        self.part = min(1.0, max(LEAST, self.part * exp(STEP * step)))

    def rest(self, seconds: float) -> float:
        """Give the seconds to rest after a portion of a turn that has taken so long."""
        with self._lock:
            return seconds * (1 / self.part - 1)

    def ended(self, seconds: float, now: float) -> float:
        """Note that a turn has ended, `seconds` after a rest; give the seconds to rest."""
        with self._lock:
            self._running -= 1
            self._disturbed_until = now + AFTERMATH
            learnt = self._limit < inf and self.part >= ENOUGH_TIME
            if learnt or now < self._learn_by:
                return min(LONGEST_REST, seconds * (1 / self.part - 1))
            self._learn_by = now + LEARN_EVERY
            return BEFORE + 2 * AFTERMATH

    def _learn(self, now: float) -> None:
        before = len(self._latest)
        while self._latest and self._latest[0][0] < now - BEFORE:
            self._usual.append(self._latest.popleft()[1])
        if len(self._latest) < before:
            self._learn_by = now + LEARN_EVERY
            known = sorted(self._usual)
            if len(known) >= ENOUGH:
                self._limit = known[int(len(known) * SLOW)] * LONGER
                late = 1 - bisect_right(known, self._limit) / len(known)
                self._many = late + max(late, MANY)
