"""Bounds what was read for live tails and is not sent yet, in bytes.

Messages may be large, and a client slow: it would hold as many of them as it has streams.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

HELD_BYTES: Final = 64 * 1024 * 1024
HELD_OF_A_CLIENT: Final = 8 * 1024 * 1024
"""Bytes of all clients, and of one client, beyond which no more is read for a client with unsent
bytes. A client without any gets one reading, whatever its size, and whatever others hold."""


class Place:
    """A stream's place in its client's queue; `woken` when the stream may read."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.woken = asyncio.Event()


class Room:
    """Decides which streams may read now. Belongs to one event loop.

    The size of a reading is known only afterwards, so each client makes one at a time. The streams
    of a client take turns.
    """

    def __init__(self, most: int = HELD_BYTES, most_of_a_client: int = HELD_OF_A_CLIENT) -> None:
        self._most = most
        self._most_of_a_client = most_of_a_client
        self._held: Counter[str] = Counter()
        self._reading: set[str] = set()
        self._waiting: dict[Place, None] = {}

    def has_turn(self, place: Place) -> bool:
        """Tell whether a stream may read now; if not, it is queued for its turn."""
        first = next((one for one in self._waiting if one.client == place.client), place)
        if first is place and self._fits(place.client):
            self._waiting.pop(place, None)
            return True
        self._waiting.setdefault(place)
        return False

    @contextmanager
    def reading(self, place: Place) -> Iterator[None]:
        """Enclose a reading for a stream that has its turn."""
        self._reading.add(place.client)
        try:
            yield
        finally:
            self._reading.discard(place.client)
            self._wake()

    @contextmanager
    def holding(self, place: Place, size: int) -> Iterator[None]:
        """Enclose the sending of so many bytes for a stream."""
        self._held[place.client] += size
        try:
            yield
        finally:
            self._held[place.client] -= size
            if not self._held[place.client]:
                del self._held[place.client]
            self._wake()

    def leave(self, place: Place) -> None:
        """Remove an ended stream."""
        if place in self._waiting:
            del self._waiting[place]
            self._wake()

    def _fits(self, client: str) -> bool:
        if client in self._reading:
            return False
        mine = self._held[client]
        return not mine or (mine < self._most_of_a_client and self._held.total() < self._most)

    def _wake(self) -> None:
        """Wake the first waiting stream of each client, if there is room for it."""
        told: set[str] = set()
        for place in self._waiting:
            if place.client not in told and self._fits(place.client):
                told.add(place.client)
                place.woken.set()
