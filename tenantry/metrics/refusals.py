"""Refused publishing calls: counted in the process that answers them, stored for all nodes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

EVERY: Final = 4.0
"""Seconds between hand-overs of the counts to the store."""


class Reason(StrEnum):
    """The tenant's limit that a call exceeded."""

    RATE = "rate"
    BACKLOG = "backlog"


class Refused(NamedTuple):
    """A counter's key: a tenant, its incarnation, and the reason of the refusal."""

    tenant_id: str
    incarnation: int
    reason: Reason


class RefusalStore(Protocol):
    """Stores how many calls of each tenant were refused since it was created.

    Raises `StoreUnavailableError`.
    """

    def add(self, counts: Mapping[Refused, int]) -> None:
        """Add counts; those of tenants that no longer exist are dropped."""

    def totals(self) -> Mapping[tuple[str, str], int]:
        """Return all counts, by tenant and reason; zeros may be left out."""


class Refusals:
    """Counts calls that this process has refused. Callable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[Refused] = Counter()

    def note(self, refused: Refused) -> None:
        """Count one refused call."""
        with self._lock:
            self._counts[refused] += 1

    def hand_over(self, add: Callable[[Mapping[Refused, int]], None]) -> None:
        """Pass the counts to `add`; if that fails, they are passed again the next time."""
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
    """The refused calls of all processes as of the latest `turn`, which one thread calls."""

    def __init__(self, store: RefusalStore, own: Refusals) -> None:
        """Each `turn` first hands over this process's `own` counts."""
        self._store = store
        self._own = own
        self._totals: Mapping[tuple[str, str], int] = {}

    def turn(self) -> None:
        """Read the totals again. Raises `StoreUnavailableError`."""
        self._own.hand_over(self._store.add)
        self._totals = self._store.totals()

    def totals(self) -> Mapping[tuple[str, str], int]:
        """Count refused calls by tenant and reason. From any thread."""
        return self._totals
