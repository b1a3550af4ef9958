"""Calls of publishing that were refused: counted where they are answered, kept for all nodes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

EVERY: Final = 4.0
"""Seconds between two times that what was counted is handed over."""


class Reason(StrEnum):
    """Which limit of its tenant a call was beyond."""

    RATE = "rate"
    BACKLOG = "backlog"


class Refused(NamedTuple):
    """What is counted together: calls of a tenant, one of those that had its id, for a reason."""

    tenant_id: str
    incarnation: int
    reason: Reason


class RefusalStore(Protocol):
    """Keeps how many calls of each tenant were refused since it was created.

    Raises `StoreUnavailableError`.
    """

    def add(self, counts: Mapping[Refused, int]) -> None:
        """Count more; of tenants that are no more nothing."""

    def totals(self) -> Mapping[tuple[str, str], int]:
        """Count all, by tenant and reason; what is 0 may be left out."""


class Refusals:
    """Counts calls that this process has refused. Callable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[Refused] = Counter()

    def note(self, refused: Refused) -> None:
        """Count one more."""
        with self._lock:
            self._counts[refused] += 1

    def hand_over(self, add: Callable[[Mapping[Refused, int]], None]) -> None:
        """Give what was counted to `add`; where that fails, it is given again the next time."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            add(counts)
        except BaseException:
            with self._lock:
                self._counts.update(counts)
            raise


class RefusalTotals:
    """What all processes have refused, as it was at the latest `turn`, which is one thread's."""

    def __init__(self, store: RefusalStore, own: Refusals) -> None:
        """What this process has refused is handed over first."""
        self._store = store
        self._own = own
        self._totals: Mapping[tuple[str, str], int] = {}

    def turn(self) -> None:
        """Look anew. Raises `StoreUnavailableError`."""
        self._own.hand_over(self._store.add)
        self._totals = self._store.totals()

    def totals(self) -> Mapping[tuple[str, str], int]:
        """Count refused calls by tenant and reason. From any thread."""
        return self._totals
