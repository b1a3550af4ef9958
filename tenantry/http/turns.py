"""Work of which each tenant has one at a time; who waits for a turn waits on the event loop."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from tenantry.broker.port import DeadLettersBusyError
from tenantry.http.pool import Pool

_Result = TypeVar("_Result")

PATIENCE_SECONDS: Final = 10.0
"""How long a call waits for the work before it to end."""

MOST_WAITING: Final = 16
"""Calls of one tenant that are under way or wait; more are told at once to come again."""

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 1.0


class Turns:
    """Lets one call of a tenant after the other into a pool: a thread is for who works.

    Belongs to one event loop.
    """

    def __init__(self, *, patience: float = PATIENCE_SECONDS, most: int = MOST_WAITING) -> None:
        self._patience = patience
        self._most = most
        self._locks: dict[str, asyncio.Lock] = {}
        self._there: Counter[str] = Counter()

    async def run(self, tenant_id: str, pool: Pool, call: Callable[[], _Result]) -> _Result:
        """Run a blocking call once it is the tenant's turn.

        One that finds somebody else at work, outside of the API (`DeadLettersBusyError`), is
        begun again until the patience is over; then the error is raised, as it is at once
        where too many wait already.
        """
        until = asyncio.get_running_loop().time() + self._patience
        async with self._turn(tenant_id, until):
            pause = FIRST_PAUSE
            while True:
                try:
                    return await pool.run(call)
                except DeadLettersBusyError:
                    pause = min(pause, LONGEST_PAUSE) * random.uniform(0.8, 1.2)  # noqa: S311
                    if asyncio.get_running_loop().time() + pause > until:
                        raise
                await asyncio.sleep(pause)
                pause *= 2

    @asynccontextmanager
    async def _turn(self, tenant_id: str, until: float) -> AsyncIterator[None]:
        if self._there[tenant_id] >= self._most:
            raise _busy(tenant_id)
        self._there[tenant_id] += 1
        lock = self._locks.setdefault(tenant_id, asyncio.Lock())
        try:
            try:
                async with asyncio.timeout_at(until):
                    await lock.acquire()
            except TimeoutError:
                raise _busy(tenant_id) from None
            try:
                yield
            finally:
                lock.release()
        finally:
            self._there[tenant_id] -= 1
            if not self._there[tenant_id]:
                del self._there[tenant_id], self._locks[tenant_id]


def _busy(tenant_id: str) -> DeadLettersBusyError:
    return DeadLettersBusyError(
        f"the dead letters of tenant {tenant_id!r} are being replayed or discarded"
    )
