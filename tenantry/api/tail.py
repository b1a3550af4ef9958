"""Long polls of the journal: one thread follows it, however many requests wait.

A waiting request costs a coroutine. The follower runs only while requests wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

import structlog

from tenantry.http.pool import Pool
from tenantry.journal.port import EventStore, JournalError

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

_Page = TypeVar("_Page")

MAX_WAITING: Final = 256
_STEP_SECONDS: Final = 1.0
_BATCH: Final = 500


class _Waiter:
    """A request that waits for the next event, of one tenant or of any (None)."""

    def __init__(self, tenant_id: str | None) -> None:
        self.tenant_id = tenant_id
        self.woken = asyncio.Event()


class JournalTail:
    """Lets requests wait for new events. Used on one event loop."""

    def __init__(self, store: EventStore, *, max_waiting: int = MAX_WAITING) -> None:
        self._store = store
        self._max_waiting = max_waiting
        self._pool = Pool(1)
        self._waiters: set[_Waiter] = set()
        self._follower: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    async def page(
        self,
        read: Callable[[], _Page],
        *,
        pool: Pool,
        tenant_id: str | None,
        after: int,
        timeout: float,  # noqa: ASYNC109 - how long to wait is what the caller asks for
        closing: asyncio.Event | None,
    ) -> _Page:
        """Give what `read` finds; if that is nothing, wait for at most `timeout` seconds.

        `read` gives a false value while there is nothing beyond the position `after`. It is called
        again only after a new event of the tenant (for None, of any tenant). A stopping server and
        too many waiting requests end the wait early, with what there is.
        """
        found = await pool.run(read)
        if found or timeout <= 0 or len(self._waiters) >= self._max_waiting:
            return found
        if closing is not None and closing.is_set():
            return found
        waiter = _Waiter(tenant_id)
        self._waiters.add(waiter)
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        try:
            follower = self._follow(after)
            reason = await first_set(self._ready, closing, timeout)
            while reason is not None and reason is not closing:
                # Before the first wait, this finds events from before the follower was ready.
                found = await pool.run(read)
                if found or follower.done():
                    break
                reason = await first_set(waiter.woken, closing, max(0.0, deadline - clock()))
                waiter.woken.clear()
        finally:
            self._waiters.discard(waiter)
        return found

    def _follow(self, after: int) -> asyncio.Task[None]:
        if self._follower is None or self._follower.done():
            self._ready = asyncio.Event()
            self._follower = asyncio.create_task(self._run(after, self._ready))
        return self._follower

    async def _run(self, after: int, ready: asyncio.Event) -> None:
        try:
            head = await self._pool.run(self._head, after)
            ready.set()
            # It ends by itself: cancelling would leave its thread behind, and the next waiting
            # request would start another.
            while self._waiters:
                events = await self._pool.run(self._next, head)
                if events:
                    head = max(events.values())
                    for waiter in self._waiters:
                        if waiter.tenant_id is None or waiter.tenant_id in events:
                            waiter.woken.set()
        except JournalError as error:
            _log.info("api.events_not_followed", error=str(error))
        finally:
            # Waiting requests read once more, and get the journal's own error if it is away.
            ready.set()
            for waiter in self._waiters:
                waiter.woken.set()

    def _head(self, after: int) -> int:
        """Find a position at or just below the journal's end, beginning at `after`.

        The store only tells whether there are events beyond a position: double the step until
        there are none, then halve the interval. Some forty quick queries for a billion events.
        """
        low, step = after, 1
        while self._store.wait_for_events(low + step, 0):
            low += step
            step *= 2
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            if self._store.wait_for_events(middle, 0):
                low = middle
            else:
                high = middle
        return low

    def _next(self, head: int) -> dict[str, int]:
        """Wait for events beyond `head`; give each tenant's last position among them."""
        if not self._store.wait_for_events(head, _STEP_SECONDS):
            return {}
        events = self._store.read_all(after=head, limit=_BATCH)
        return {recorded.event.tenant_id: recorded.position for recorded in events}


async def first_set(
    event: asyncio.Event, closing: asyncio.Event | None, seconds: float
) -> asyncio.Event | None:
    """Wait until one of two events is set, and give it (`closing` first); None after `seconds`."""
    events = [event] if closing is None else [closing, event]
    tasks = [asyncio.create_task(one.wait()) for one in events]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    return next((one for one in events if one.is_set()), None)
