"""Lines of the log that tenants' messages cause: some of a minute, and then how many more it were.

Whoever sends messages decides how many there are. Without a bound the log is theirs to fill.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

LINES: Final = 60
"""Lines of one kind about one tenant in one minute."""

WINDOW: Final = 60.0

_MANY: Final = 1000
"""Tenants of which something is known before those without a line of late are forgotten."""


class Sparing:
    """Says of a kind of line whether another may be written. Callable from any thread."""

    def __init__(self, lines: int = LINES, *, now: Callable[[], float] = time.monotonic) -> None:
        self._lines = lines
        self._now = now
        self._lock = threading.Lock()
        self._known: dict[str, list[float]] = {}
        """Since when lines are counted, how many it are, and how many were left out, by tenant."""

    def left_out(self, about: str) -> int | None:
        """Give how many lines about somebody were left out before this one, None for this, too."""
        now = self._now()
        with self._lock:
            known = self._known.get(about)
            if known is None:
                self._forget(now)
                known = self._known[about] = [now, 0, 0]
            since, lines, left_out = known
            if now - since >= WINDOW:
                known[:] = now, 1, 0
                return int(left_out)
            if lines < self._lines:
                known[1] = lines + 1
                return 0
            known[2] = left_out + 1
            return None

    def _forget(self, now: float) -> None:
        if len(self._known) >= _MANY:
            recent = {one: known for one, known in self._known.items() if now - known[0] < WINDOW}
            self._known = recent
