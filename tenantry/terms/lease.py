"""How long a term is good for, seen from both sides: by its holder, and by a candidate.

The holder counts from before it asked for a renewal; a candidate counts from after it has seen that
renewal, and somewhat longer. So a candidate finds a term lapsed only after its holder has, as long
as their clocks run about as fast; what time they show does not matter.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from tenantry.terms.port import Holder, Standing

LEASE: Final = 7.0
"""Seconds without a renewal after which others may take a term."""

MARGIN: Final = 1.0
"""Seconds before that in which its holder does nothing under it any more: clocks differ."""

RENEW_EVERY: Final = 1.5
LOOK_EVERY: Final = 0.5
"""Seconds between renewals, and between looks of those that wait."""

ASK_AGAIN_EVERY: Final = 0.25
"""Seconds from a renewal that failed to the next: the term may be about to lapse."""

_BOOTTIME: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def time_since_boot() -> float:
    """Give seconds of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(_BOOTTIME)


class Term:
    """A term that was taken. `valid` may be asked by any thread, at any rate."""

    def __init__(
        self, standing: Standing, *, asked_at: float, now: Callable[[], float] = time_since_boot
    ) -> None:
        """`standing` is how it stands now; `asked_at` when the call that took it was begun."""
        self.standing = standing
        self.number = standing.number
        self._now = now
        self._until = asked_at + LEASE - MARGIN
        self._over = threading.Event()

    def valid(self) -> bool:
        """Tell whether nobody else can have taken the term yet."""
        return self._now() < self._until and not self._over.is_set()

    def renewed(self, asked_at: float) -> None:
        """Note a renewal that was asked for at `asked_at`."""
        self._until = max(self._until, asked_at + LEASE - MARGIN)

    def end(self) -> None:
        """Note that the term is another's, or given back; for good."""
        self._over.set()


class TermWatch:
    """Watches another's term, to find out when it may be taken."""

    def __init__(self, me: Holder) -> None:
        self._me = me
        self._seen: tuple[int, int] | None = None
        self._since = 0.0

    def may_take(self, standing: Standing, now: float) -> bool:
        """Tell whether nobody can be acting under the term any more.

        `now` is when the standing was known, on a clock that never goes back. A term is free when
        it was given back; when its holder was an earlier life of this daemon, which has the
        control socket's lock now and so has outlived it; and when it was not renewed for a lease.
        """
        if not standing.held or standing.holder.instance == self._me.instance:
            return True
        seen = (standing.number, standing.beat)
        if seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since >= LEASE

    def interrupted(self) -> None:
        """Note that the term could not be looked at: its holder may not have reached it either."""
        self._seen = None
