"""Calls of clients that make many, one after the other while others make few."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from tenantry.turns.neighbours import Neighbours
from tenantry.turns.places import Place, Places

_NEW_SHARE: Final = 0.05
"""How much of the latest value goes into a moving average, once it is one of many."""

SMALL: Final = 0.02
"""Seconds that a small call is expected to take at most."""

FREE: Final = 3
"""As many small calls a client makes at once without turns."""

LONGEST: Final = 0.1
"""Seconds that a turn lasts at most, whatever is expected: a client's call may hang."""


@dataclass(slots=True)
class _Calls:
    """A client's calls under way."""

    count: int = 0
    began: float = 0.0
    """When the latest turn began that was waited for."""
    waited: int = 0
    """How many such turns there were."""
    apart: float = 0.0
    """The moving average of the seconds between two of them."""


@dataclass(slots=True)
class Turn:
    """A call's turn, while it has one."""

    client: str
    place: Place | None = None
    began: float = 0.0
    over: asyncio.TimerHandle | None = None


class OneByOne:
    """Has calls made one by one, except a few small ones of each client.

    Calls side by side keep all processors busy, and others' wait for them at each step of their
    way. So while some client makes small calls by themselves, lists, and what a client makes beyond
    a few at once, take turns, by their clients' weights. A turn ends with its call, or when the
    call takes longer than is expected of its work: then it waits for something else, a distant
    broker, say. Belongs to one event loop.
    """

    def __init__(self, *, patience: float) -> None:
        """A call waits `patience` seconds at most for its turn."""
        self._places = Places(1, patience=patience)
        self._neighbours = Neighbours()
        self._clients: dict[str, _Calls] = {}

    def seconds_to_wait(self, client: str) -> float:
        """Estimate how long one more call of a client would wait."""
        mine = self._clients.get(client)
        now = asyncio.get_running_loop().time()
        if mine is None or not self._neighbours.beside(client, now):
            return 0.0
        return self._places.waiting_of(client) * mine.apart

    async def begin(self, client: str, weight: float, seconds: float) -> Turn:
        """Wait until a call may begin, which is to be `ended`; else raise `TimeoutError`.

        `seconds` are what its work is expected to take.
        """
        mine = self._clients.setdefault(client, _Calls())
        mine.count += 1
        try:
            return await self._turn(client, weight, min(seconds, LONGEST), mine)
        except BaseException:
            self._gone(client)
            raise

    async def _turn(self, client: str, weight: float, seconds: float, mine: _Calls) -> Turn:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if seconds <= SMALL and mine.count <= FREE:
            if mine.count == 1:
                self._neighbours.note(client, now)
            return Turn(client)
        if not self._neighbours.beside(client, now):
            return Turn(client)
        at_once = self._places.has_one_for(client)
        turn = Turn(client, await self._places.take(client, weight), loop.time())
        if not at_once:
            mine.waited += 1
            since = turn.began - max(mine.began, now)
            mine.apart += (since - mine.apart) * max(_NEW_SHARE, 1 / mine.waited)
            mine.began = turn.began
        if self._neighbours.beside(client, turn.began):
            turn.over = loop.call_later(seconds, self.release, turn)
        else:
            self.release(turn)
        return turn

    def release(self, turn: Turn) -> None:
        """Give the next call its turn, though this call has not ended. Idempotent."""
        if turn.over is not None:
            turn.over.cancel()
        if turn.place is not None:
            place, turn.place = turn.place, None
            self._places.give_back(place, asyncio.get_running_loop().time() - turn.began)

    def ended(self, turn: Turn) -> None:
        """End a call."""
        self.release(turn)
        self._gone(turn.client)

    def _gone(self, client: str) -> None:
        mine = self._clients[client]
        mine.count -= 1
        if not mine.count:
            del self._clients[client]
