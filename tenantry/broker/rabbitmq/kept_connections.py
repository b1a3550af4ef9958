"""Connections for declarations, kept open for a moment: the next declaration need not connect.

Opening a connection costs broker and daemon more than most declarations on it.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Final

import pika
from pika.exceptions import AMQPError

KEEP: Final = 3.0
"""Seconds; the broker's heartbeats stay unanswered meanwhile, and it expects one within 16."""


class KeptConnections:
    """Idle connections. Callable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[tuple[float, pika.BlockingConnection]] = []
        self._closed = False

    def take(self) -> pika.BlockingConnection | None:
        """Return a connection for the caller alone, or None; it may be lost without a sign yet."""
        with self._lock:
            return self._kept.pop()[1] if self._kept else None

    def keep(self, connection: pika.BlockingConnection) -> None:
        """Keep a sound connection on which nothing is in progress."""
        with self._lock:
            if not self._closed:
                self._kept.append((time.monotonic(), connection))
                return
        close(connection)

    def close_old(self) -> None:
        """Close connections unused for a while; call this every few seconds."""
        oldest = time.monotonic() - KEEP
        with self._lock:
            old = [one for since, one in self._kept if since < oldest]
            self._kept = [kept for kept in self._kept if kept[0] >= oldest]
        for connection in old:
            close(connection)

    def close(self) -> None:
        """Close all connections, and every one that is to be kept from now on."""
        with self._lock:
            self._closed = True
            kept, self._kept = self._kept, []
        for _, connection in kept:
            close(connection)


def close(connection: pika.BlockingConnection) -> None:
    """Close a connection in any state."""
    with suppress(AMQPError, OSError):
        connection.close()
