"""How long a term is valid, seen by its holder and by a candidate.

The holder counts from before it asked for a renewal; a candidate counts from after it has seen that
renewal, and somewhat longer. So a candidate finds a term lapsed only after its holder has, as long
as their clocks run at about the same rate; the time that they show does not matter.
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
"""Seconds before that in which the holder no longer acts under its term: clocks differ."""

RENEW_EVERY: Final = 1.5
LOOK_EVERY: Final = 0.5
"""Seconds between renewals, and between candidates' looks."""

ASK_AGAIN_EVERY: Final = 0.25
"""Seconds from a failed renewal to the next: the term may be about to lapse."""

_BOOTTIME: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def time_since_boot() -> float:
    """Return seconds of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(_BOOTTIME)


class Term:
    """A term that this daemon has taken. Any thread may call `valid`, at any rate."""

    def __init__(
        self, standing: Standing, *, asked_at: float, now: Callable[[], float] = time_since_boot
    ) -> None:
        """`standing` is the present one; `asked_at` is when the call that took the term began."""
        self.standing = standing
        self.number = standing.number
        self._now = now
        self._until = asked_at + LEASE - MARGIN
        self._over = threading.Event()

    def valid(self) -> bool:
        """Tell whether the term holds: no other daemon can have taken it yet."""
        return self._now() < self._until and not self._over.is_set()

    def renewed(self, asked_at: float) -> None:
        """Note a renewal that was asked for at `asked_at`."""
        self._until = max(self._until, asked_at + LEASE - MARGIN)

    def end(self) -> None:
        """Note for good that another daemon holds the term, or that it was given back."""
        self._over.set()


class TermWatch:
    """Watches another daemon's term, to find out when it may be taken."""

    def __init__(self, me: Holder) -> None:
        self._me = me
        self._seen: tuple[int, int] | None = None
        self._since = 0.0

    def may_take(self, standing: Standing, now: float) -> bool:
        """Tell whether the term is free: no daemon can be acting under it any more.

        `now` is when the standing was known, on a clock that never goes back. A term is free when
        it was given back; when its holder was an earlier process of this daemon, which has ended,
        as the control socket's lock is now this one's; and when it was not renewed for a lease.
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
