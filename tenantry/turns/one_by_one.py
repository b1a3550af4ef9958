"""Calls of clients that make many, one after the other while others make few."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Final

from tenantry.turns.neighbours import Neighbours
from tenantry.turns.pacing import Pacing
from tenantry.turns.places import Place, Places

_NEW_SHARE: Final = 0.05
"""How much of the latest value goes into a moving average, once it is one of many."""

SMALL: Final = 0.02
"""Seconds that a small call is expected to take at most."""

ALIKE: Final = 0.011
"""Seconds that a small call is expected to take at most to be timed: those are all much alike."""

FREE: Final = 3
"""As many small calls a client makes at once without turns."""

LONGEST_PAUSE: Final = 0.05
"""Seconds of a rest between two portions of a call at most."""

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
    """A call's turn, while it has one.

    What a long call does beside others is to be done `in_portions`, with a rest after each but the
    last. Both may be used by the thread that does it.
    """

    client: str
    pacing: Pacing
    place: Place | None = None
    began: float = 0.0
    small: bool = False
    """Whether it is a client's only call, and a very small one: their times are compared."""
    over: asyncio.TimerHandle | None = None
    worked_since: float = 0.0
    """When its latest rest ended, or it began."""
    rested: float = 0.0
    rests: int = 0
    resting: bool = False

    @property
    def in_portions(self) -> bool:
        """Whether others make small calls, which are to get through between portions."""
        return self.over is not None

    def rest(self, seconds: float) -> None:
        """Rest after a portion that took so long. Blocks."""
        began = monotonic()
        self.rests += 1
        self.resting = True
        sleep(min(LONGEST_PAUSE, self.pacing.rest(seconds)))
        self.worked_since = monotonic()
        self.rested += self.worked_since - began
        self.resting = False


class OneByOne:
    """Has calls made one by one, except a few small ones of each client.

    Calls side by side keep all processors busy, and others' wait for them at each step of their
    way. So while some client makes small calls by themselves, lists, and what a client makes beyond
    a few at once, take turns, by their clients' weights, with rests between them (see `Pacing`). A
    turn ends with its call, or when the call takes longer than is expected of its work: then it
    waits for something else, a distant broker, say. Belongs to one event loop.
    """

    def __init__(self, *, patience: float) -> None:
        """A call waits `patience` seconds at most for its turn."""
        self._places = Places(1, patience=patience)
        self._neighbours = Neighbours()
        self._pacing = Pacing()
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
            if mine.count > 1:
                return Turn(client, self._pacing)
            self._neighbours.note(client, now)
            return Turn(client, self._pacing, began=now, small=seconds <= ALIKE)
        if not self._neighbours.beside(client, now):
            return Turn(client, self._pacing)
        at_once = self._places.has_one_for(client)
        place = await self._places.take(client, weight)
        began = loop.time()
        turn = Turn(client, self._pacing, place, began, worked_since=began)
        if not at_once:
            mine.waited += 1
            since = turn.began - max(mine.began, now)
            mine.apart += (since - mine.apart) * max(_NEW_SHARE, 1 / mine.waited)
            mine.began = turn.began
        if self._neighbours.beside(client, turn.began):
            self._pacing.began(turn.began)
            turn.over = loop.call_later(seconds, self._look, turn, seconds, 0)
        else:
            self.release(turn)
        return turn

    def _look(self, turn: Turn, seconds: float, rests: int) -> None:
        """End a turn that has lasted as long as expected, unless it goes on in portions."""
        if turn.resting or turn.rests > rests:
            loop = asyncio.get_running_loop()
            turn.over = loop.call_later(seconds, self._look, turn, seconds, turn.rests)
        else:
            self.release(turn)

    def release(self, turn: Turn) -> None:
        """Give the next call its turn, though this call has not ended. Idempotent."""
        if turn.over is not None:
            turn.over.cancel()
        if turn.place is not None:
            place, turn.place = turn.place, None
            loop = asyncio.get_running_loop()
            now = loop.time()
            seconds = max(0.0, now - turn.began - turn.rested)
            rest = self._pacing.ended(now - turn.worked_since, now) if turn.over is not None else 0
            if rest:
                loop.call_later(rest, self._places.give_back, place, seconds)
            else:
                self._places.give_back(place, seconds)

    def ended(self, turn: Turn, *, well: bool = True) -> None:
        """End a call; `well` tells that it has done its work."""
        if turn.small and well:
            now = asyncio.get_running_loop().time()
            self._pacing.small_call(turn.client, turn.began, now)
        self.release(turn)
        self._gone(turn.client)

    def _gone(self, client: str) -> None:
        mine = self._clients[client]
        mine.count -= 1
        if not mine.count:
            del self._clients[client]
