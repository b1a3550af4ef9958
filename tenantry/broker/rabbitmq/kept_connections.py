"""Connections for declarations, kept open for a moment: the next declaration need not connect.

To make a connection costs broker and daemon more than most of what is then declared on it.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Final

import pika
from pika.exceptions import AMQPError

KEEP: Final = 3.0
"""Seconds; nobody answers the broker's heartbeats meanwhile, and it expects one within 16."""


class KeptConnections:
    """Connections that nobody uses at the moment. Callable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[tuple[float, pika.BlockingConnection]] = []
        self._closed = False

    def take(self) -> pika.BlockingConnection | None:
        """Give one, to be used by the caller alone; it may be lost without that being known yet."""
        with self._lock:
            return self._kept.pop()[1] if self._kept else None

    def keep(self, connection: pika.BlockingConnection) -> None:
        """Take one that is in order, and on which nothing is under way."""
        with self._lock:
            if not self._closed:
                self._kept.append((time.monotonic(), connection))
                return
        close(connection)

    def close_old(self) -> None:
        """Close what has not been used for a while; to be called every few seconds."""
        oldest = time.monotonic() - KEEP
        with self._lock:
            old = [one for since, one in self._kept if since < oldest]
            self._kept = [kept for kept in self._kept if kept[0] >= oldest]
        for connection in old:
            close(connection)

    def close(self) -> None:
        """Close all, and whatever is to be kept from now on."""
        with self._lock:
            self._closed = True
            kept, self._kept = self._kept, []
        for _, connection in kept:
            close(connection)


def close(connection: pika.BlockingConnection) -> None:
    """Close a connection, in whichever state it is."""
    with suppress(AMQPError, OSError):
        connection.close()
