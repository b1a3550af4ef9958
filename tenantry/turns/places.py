"""A few places that calls on an event loop take by turns of whom they are for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

from tenantry.turns.fair_queue import FairQueue, Grant

_KEPT_FREE: Final = 4
"""Of so many places one is not for a client that has all the others."""

_Turn: TypeAlias = "asyncio.Future[Any]"
"""What a call waits for: its `Grant`."""


class Places:
    """So many places, for calls that wait `patience` seconds at most. Belongs to one event loop."""

    def __init__(self, count: int, *, patience: float) -> None:
        self._free = count
        self._patience = patience
        self._queue: FairQueue[_Turn] = FairQueue(most_of_one=count - count // _KEPT_FREE)

    @asynccontextmanager
    async def taken(self, client: str) -> AsyncIterator[None]:
        """Have a place for a client. Raises `TimeoutError` where there is none in time."""
        grant = await self._turn(client)
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            yield
        finally:
            self._free += 1
            self._queue.ended(grant, clock() - began)
            self._give_turns()

    async def _turn(self, client: str) -> Grant[_Turn]:
        turn: _Turn = asyncio.get_running_loop().create_future()
        self._queue.add(client, 1.0, turn)
        self._give_turns()
        try:
            async with asyncio.timeout(self._patience):
                await turn
        except BaseException:
            if turn.cancelled():
                self._queue.remove(client, turn)
            else:  # it came at the very last moment
                self._free += 1
                self._queue.unused(turn.result())
                self._give_turns()
            raise
        grant: Grant[_Turn] = turn.result()
        return grant

    def _give_turns(self) -> None:
        while self._free and (grant := self._queue.next()) is not None:
            if grant.item.cancelled():  # its call is about to leave
                self._queue.unused(grant)
            else:
                self._free -= 1
                grant.item.set_result(grant)
