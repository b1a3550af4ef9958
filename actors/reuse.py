"""Tells of ids that were used twice: once a while for each tenant, however many there are."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

EVERY: Final = 60.0
"""Seconds between two events about one tenant; what happens in between is counted."""


@dataclass(slots=True)
class _Untold:
    """What is not told of yet, and since when something may be told again."""

    count: int = 0
    not_before: float = 0.0


class Reuse:
    """Shared by all workers, and called on their threads."""

    def __init__(self, every: float = EVERY) -> None:
        self._every = every
        self._lock = threading.Lock()
        self._untold: dict[str, _Untold] = {}

    def note(self, tenant_id: str, count: int, now: float) -> int:
        """Count messages; give how many are to be told of now, 0 for none."""
        with self._lock:
            untold = self._untold.setdefault(tenant_id, _Untold())
            untold.count += count
            if now < untold.not_before:
                return 0
            told, untold.count = untold.count, 0
            untold.not_before = now + self._every
            return told
