"""Keeps the ring of segments small: an empty segment is truncated, a full one is left behind."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

import psycopg
import structlog
from psycopg import errors, sql

from tenantry.database.errors import DatabaseUnavailableError
from tenantry.database.failures import one_line
from tenantry.database.pool import Connection, Database
from tenantry.sql import queries
from tenantry.telemetry.heartbeat import Heartbeat

log = structlog.get_logger(__name__)

EVERY: Final = 1.0
"""Seconds between looks."""

FULL: Final = 32 * 1024 * 1024
"""Bytes of the current segment from which on another becomes the current one."""

LOCK_MS: Final = 20
"""Milliseconds to wait for a segment: meanwhile everybody else waits behind us."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One of the ring."""

    number: int
    bytes: int
    current: bool


class QueueRotation:
    """Turns the ring. `run` belongs on a thread of its own, until `stop`.

    A segment in which a message waits for long, a paused tenant's say, is left alone; should none
    be free, the current one grows on, and VACUUM does what TRUNCATE would have done.
    """

    def __init__(self, database: Database, *, every: float = EVERY, full: int = FULL) -> None:
        self._database = database
        self._every = every
        self._full = full
        self._sql = queries("queues")
        self.heartbeat: Final = Heartbeat()
        self._stopping = threading.Event()

    def run(self) -> None:
        """Look again and again."""
        while not self._stopping.wait(self._every):
            self.heartbeat.beat()
            try:
                self.turn()
            except DatabaseUnavailableError as error:
                log.debug("broker.ring_stands_still", error=one_line(error))
            except psycopg.Error as error:
                log.warning("broker.ring_stands_still", error=one_line(error))

    def stop(self) -> None:
        """End `run`."""
        self._stopping.set()

    def turn(self) -> None:
        """Truncate what is empty; move on from what is full."""
        with self._database.connection() as connection:
            ring = [Segment(*row) for row in connection.execute(self._sql["segments"])]
            for segment in ring:
                if segment.bytes and not segment.current:
                    self._truncate(connection, segment)
            current = next(one for one in ring if one.current)
            if current.bytes < self._full:
                return
            after = ring[current.number + 1 :] + ring[: current.number]
            free = next((one for one in after if not one.bytes), None)
            if free is not None:
                connection.execute(self._sql["make_current"], {"segment": free.number})

    def _truncate(self, connection: Connection, segment: Segment) -> None:
        table = sql.Identifier("tenantry", f"queued_{segment.number}")
        empty = sql.SQL("SELECT NOT EXISTS (SELECT FROM {})").format(table)
        if not _yes(connection, empty):
            return
        try:
            with connection.transaction():
                connection.execute(f"SET LOCAL lock_timeout = {LOCK_MS}")
                # Who has put a message in and not committed yet holds a lock against this one.
                connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
                if _yes(connection, empty):
                    connection.execute(sql.SQL("TRUNCATE {}").format(table))
        except errors.LockNotAvailable:
            log.debug("broker.segment_in_use", segment=segment.number)


def _yes(connection: Connection, query: sql.Composed) -> bool:
    row = connection.execute(query).fetchone()
    return row is not None and bool(row[0])
