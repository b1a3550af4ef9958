"""A few places that calls on an event loop take by turns of whom they are for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

from tenantry.turns.fair_queue import FairQueue, Grant

_KEPT_FREE: Final = 4
"""Of so many places one is not for a client that has all the others."""

SURE: Final = 0.8
"""A call waits for at least this part of its patience. Those that came together must not all
give up at once, each with an answer to write, and come back together."""

_Turn: TypeAlias = "asyncio.Future[Any]"
"""What a call waits for: its `Place`."""
Place: TypeAlias = Grant[_Turn]


class Places:
    """So many places, for calls that wait `patience` seconds at most. Belongs to one event loop.

    One client has three quarters of them at most.
    """

    def __init__(self, count: int, *, patience: float) -> None:
        self._free = count
        self._patience = patience
        self._queue: FairQueue[_Turn] = FairQueue(most_of_one=count - count // _KEPT_FREE)

    @property
    def waiting(self) -> int:
        """How many calls wait for a place. Callable from any thread."""
        return self._queue.waiting

    def waiting_of(self, client: str) -> int:
        """Tell how many calls of a client wait for a place."""
        return self._queue.waiting_of(client)

    def has_one_for(self, client: str) -> bool:
        """Tell whether a client's call would get a place at once."""
        return self._free > 0 and self._queue.may_have_one_more(client)

    @asynccontextmanager
    async def taken(self, client: str) -> AsyncIterator[None]:
        """Have a place for a client. Raises `TimeoutError` where there is none in time."""
        place = await self.take(client)
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            yield
        finally:
            self.give_back(place, clock() - began)

    async def take(self, client: str, weight: float = 1.0) -> Place:
        """Take a place that is to be given back. Raises `TimeoutError`, as `taken`."""
        turn: _Turn = asyncio.get_running_loop().create_future()
        self._queue.add(client, weight, turn)
        self._give_turns()
        try:
            patience = self._patience * random.uniform(SURE, 1)  # noqa: S311
            async with asyncio.timeout(patience):
                await turn
        except BaseException:
            if turn.cancelled():
                self._queue.remove(client, turn)
            else:  # it came at the very last moment
                self._free += 1
                self._queue.unused(turn.result())
                self._give_turns()
            raise
        place: Place = turn.result()
        return place

    def give_back(self, place: Place, seconds: float) -> None:
        """Give a place back that was taken for so long."""
        self._free += 1
        self._queue.ended(place, seconds)
        self._give_turns()

    def _give_turns(self) -> None:
        while self._free and (grant := self._queue.next()) is not None:
            if grant.item.cancelled():  # its call is about to leave
                self._queue.unused(grant)
            else:
                self._free -= 1
                grant.item.set_result(grant)
