"""Removes stored messages that are too old, or too many, for their tenant's limits.

It removes a little at a time, from tenants in turns, and rests most of the time: storing and
reading come first.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

import structlog

from tenantry.messages.port import MessageStoreError
from tenantry.unavailable import UnavailableError

log = structlog.get_logger(__name__)

EVERY: Final = 5.0
"""Seconds between checks for due removals."""

AT_LEAST_EVERY: Final = 600.0
"""Seconds after which a tenant is checked again, whenever its next removal is due."""

AGAIN_AFTER: Final = 60.0
"""Seconds after which a failed removal is tried again."""

BATCH: Final = 2000
"""Messages removed in one transaction."""

REST: Final = 2.0
"""The rest after a removal, as a multiple of the removal's time."""

FORGET_EVERY: Final = 3600.0

LONGEST_TURN: Final = 20.0
"""Seconds after which a turn ends, so that the next one sees other tenants' due removals."""


class Limited(NamedTuple):
    """A tenant whose messages are limited: by which `limits`, and how many are in excess now.

    `aged` and `crowded` count the messages removed so far: as too old, and as too many.
    """

    limits: tuple[int | None, int | None]
    excess: int
    aged: int
    crowded: int


class Removal(NamedTuple):
    """What was removed, whether more can be removed now, and in how many seconds more is due."""

    aged: int
    crowded: int
    more: bool
    due: float | None


class MessageRemovals(Protocol):
    """Removes messages from the store, each removal in one transaction with what it counts.

    Raises `StoreUnavailableError`, `MessageStoreError`.
    """

    def limited(self) -> Mapping[str, Limited]:
        """Return the tenants whose messages are limited in age or number."""

    def remove(self, tenant_id: str, most: int) -> Removal:
        """Remove the tenant's first messages beyond its limits, and remember their ids."""

    def forget(self, mine: Callable[[str], bool]) -> None:
        """Stop looking up remembered ids for tenants that have none left."""


class Retention:
    """Removes due messages, of tenants that are `mine`. One thread calls `turn`."""

    def __init__(
        self,
        removals: MessageRemovals,
        *,
        mine: Callable[[str], bool],
        batch: int = BATCH,
        rest: float = REST,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._removals = removals
        self._mine = mine
        self._batch = batch
        self._rest = rest
        self._now = now
        self._stopping = threading.Event()
        self._next: dict[str, tuple[tuple[int | None, int | None], float]] = {}
        self._removed: dict[tuple[str, str], int] = {}
        self._forget_at = 0.0

    def stop(self) -> None:
        """Have the current turn end after its next removal."""
        self._stopping.set()

    def removed(self) -> Mapping[tuple[str, str], int]:
        """Return how many messages were removed, by tenant and reason. Callable from any thread."""
        return self._removed

    def turn(self, go_on: Callable[[], None] = lambda: None) -> None:
        """Remove due messages, for some seconds; calls `go_on` after each removal.

        The next turn goes on where this one has ended. A failure with one tenant is logged, and
        does not keep others from their turns. Raises `UnavailableError`.
        """
        now = self._now()
        if now >= self._forget_at:
            self._removals.forget(self._mine)
            self._forget_at = now + FORGET_EVERY
        limited = {
            tenant_id: one
            for tenant_id, one in self._removals.limited().items()
            if self._mine(tenant_id)
        }
        self._removed = {
            (tenant_id, reason): count
            for tenant_id, one in limited.items()
            for reason, count in (("age", one.aged), ("rows", one.crowded))
        }
        self._next = {one: then for one, then in self._next.items() if one in limited}
        waiting = deque(one for one in limited if self._is_due(one, limited[one], now))
        until = now + LONGEST_TURN
        while waiting and not self._stopping.is_set() and self._now() < until:
            tenant_id = waiting.popleft()
            began = self._now()
            if self._remove(tenant_id, limited[tenant_id].limits):
                waiting.append(tenant_id)
            go_on()
            self._stopping.wait((self._now() - began) * self._rest)

    def _is_due(self, tenant_id: str, limited: Limited, now: float) -> bool:
        limits, at = self._next.get(tenant_id, (None, now))
        return limited.excess > 0 or limits != limited.limits or now >= at

    def _remove(self, tenant_id: str, limits: tuple[int | None, int | None]) -> bool:
        """Remove a batch of a tenant's messages; return whether there are more to remove."""
        wait, more = AGAIN_AFTER, False
        try:
            removal = self._removals.remove(tenant_id, self._batch)
        except UnavailableError:
            raise
        except MessageStoreError as error:
            log.warning("retention.failed", tenant=tenant_id, error=str(error))
        else:
            more = removal.more
            # A tenant without messages has none that is too old before the age limit has passed.
            due = limits[0] if removal.due is None else removal.due
            wait = AT_LEAST_EVERY if due is None else min(due, AT_LEAST_EVERY)
            self._count(tenant_id, "age", removal.aged)
            self._count(tenant_id, "rows", removal.crowded)
        self._next[tenant_id] = limits, self._now() + wait
        return more

    def _count(self, tenant_id: str, reason: str, count: int) -> None:
        if count:
            before = self._removed.get((tenant_id, reason), 0)
            self._removed = {**self._removed, (tenant_id, reason): before + count}
