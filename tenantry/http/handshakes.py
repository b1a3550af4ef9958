"""Connections that have not come through their TLS handshake: some of each client, and no more."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import Final

OF_A_CLIENT: Final = 64
"""Handshakes that one address may have under way for longer than `HURRY_SECONDS`."""

HURRY_SECONDS: Final = 1.0
"""How long a handshake that many came with is not held against its client."""


class Handshakes:
    """Knows the connections that were accepted and are no client's yet; the event loop's alone.

    Of a client that has too many the oldest is ended for the next; of all that there may be, the
    oldest of whoever has most. asyncio ends by itself what takes too long.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._addresses: dict[int, str] = {}
        self._pending: dict[str, dict[int, tuple[socket.socket, float]]] = {}

    def begin(self, connection: socket.socket, address: str) -> None:
        """Take in a connection that has just been accepted."""
        self.end(connection.fileno())  # an earlier one of its number has been closed
        if len(self._addresses) >= self._most:
            self._forget_closed()
        if len(self._addresses) >= self._most:
            self._end_oldest(max(self._pending, key=lambda one: len(self._pending[one])))
        now = time.monotonic()
        self._addresses[connection.fileno()] = address
        pending = self._pending.setdefault(address, {})
        pending[connection.fileno()] = (connection, now)
        while len(pending) > OF_A_CLIENT:
            oldest, since = next(iter(pending.values()))
            if oldest.fileno() >= 0 and now - since < HURRY_SECONDS:
                break
            self._end_oldest(address)

    def end(self, number: int) -> None:
        """Forget a connection, by its descriptor's number: its handshake is done."""
        address = self._addresses.pop(number, None)
        if address is not None:
            del self._pending[address][number]
            if not self._pending[address]:
                del self._pending[address]

    def _end_oldest(self, address: str) -> None:
        number, (oldest, _) = next(iter(self._pending[address].items()))
        self.end(number)
        with suppress(OSError):  # closed already, or its client has gone
            # The transport that owns it is told of its end, and closes it.
            oldest.shutdown(socket.SHUT_RDWR)

    def _forget_closed(self) -> None:
        for pending in list(self._pending.values()):
            for number, (connection, _) in list(pending.items()):
                if connection.fileno() < 0:
                    self.end(number)
