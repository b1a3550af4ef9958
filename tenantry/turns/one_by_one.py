"""Large calls of a client, one after the other while other clients make small ones."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from tenantry.turns.neighbours import Neighbours

_NEW_SHARE: Final = 0.2
"""How much of the latest value goes into a moving average."""

PATIENCE: Final = 0.25
"""Seconds after which a large call holds up the client's next one no longer."""


@dataclass(slots=True)
class _Calls:
    """A client's large calls: how many run and wait, and when the latest one began."""

    running: int = 0
    waiting: int = 0
    began: float = 0.0
    apart: float = 0.0
    """The moving average of the seconds between two calls that had to wait."""
    next: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the call that is next."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a call ends."""


class OneByOne:
    """Has a client make its large calls one by one while others made small ones lately.

    Large calls side by side keep all processors busy, and small ones wait for them at each step of
    their way. A call that has lasted for `PATIENCE` holds up no other: it waits for something else,
    a distant broker, say. While nobody makes small ones a client makes `most` at once. Belongs to
    one event loop.
    """

    def __init__(self, *, most: int, patience: float) -> None:
        """A call waits `patience` seconds at most for those before it."""
        self._most = most
        self._patience = patience
        self._neighbours = Neighbours()
        self._clients: dict[str, _Calls] = {}

    def waiting_of(self, client: str) -> int:
        """Tell how many large calls of a client wait."""
        mine = self._clients.get(client)
        return 0 if mine is None else mine.waiting

    def seconds_to_wait(self, client: str) -> float:
        """Estimate how long one more large call would wait."""
        mine = self._clients.get(client)
        return 0.0 if mine is None else mine.waiting * mine.apart

    def note_small(self, client: str) -> None:
        """Note that a client makes a small call; one that makes large ones, too, does not count."""
        if client not in self._clients:
            self._neighbours.note(client, asyncio.get_running_loop().time())

    async def begin(self, client: str) -> None:
        """Wait until a large call may begin, which is to be `ended`; else raise `TimeoutError`."""
        mine = self._clients.setdefault(client, _Calls())
        mine.waiting += 1
        try:
            async with asyncio.timeout(self._patience), mine.next:
                await self._wait(client, mine)
                mine.running += 1
        finally:
            mine.waiting -= 1
            self._forget(client, mine)

    async def _wait(self, client: str, mine: _Calls) -> None:
        clock = asyncio.get_running_loop().time
        has_waited = False
        while mine.running:
            now = clock()
            left = mine.began + PATIENCE - now
            alone = left <= 0 or not self._neighbours.beside(client, now)
            if alone and mine.running < self._most:
                break
            has_waited = True
            mine.over.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if alone else left):
                    await mine.over.wait()
        now = clock()
        if has_waited:
            mine.apart += (now - mine.began - mine.apart) * _NEW_SHARE
        mine.began = now

    def ended(self, client: str) -> None:
        """End a large call."""
        mine = self._clients[client]
        mine.running -= 1
        mine.over.set()
        self._forget(client, mine)

    def _forget(self, client: str, mine: _Calls) -> None:
        if not (mine.running or mine.waiting):
            del self._clients[client]
