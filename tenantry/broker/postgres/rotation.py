"""Keeps the ring of segments small: an empty segment is truncated, a full one is left behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import psycopg
import structlog
from psycopg import errors, sql

from tenantry.broker.adapter import Ring
from tenantry.database.errors import DatabaseUnavailableError
from tenantry.database.failures import one_line
from tenantry.database.pool import Connection, Database
from tenantry.loops import PeriodicService
from tenantry.sql import queries

log = structlog.get_logger(__name__)

EVERY: Final = 1.0
"""Seconds between looks."""

FULL: Final = 32 * 1024 * 1024
"""Bytes of the current segment from which on another becomes the current one."""

LOCK_MS: Final = 20
"""Milliseconds to wait for a segment: meanwhile everybody else waits behind us."""

SWEEP_EVERY: Final = 30
"""Looks between sweeps of messages whose queue is no more."""

LONGEST_REST: Final = 8
"""Looks for which a segment that a session keeps in use is left alone, at most."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One of the ring."""

    number: int
    bytes: int
    current: bool


class QueueRotation(PeriodicService):
    """Turns the ring.

    A segment in which a message waits for long, a paused tenant's say, is left alone; should none
    be free, the current one grows on, and VACUUM does what TRUNCATE would have done. Who holds an
    empty one for long is named in the log, not ended: it may be publishing, and no tenant's
    transaction lasts longer than a minute.
    """

    def __init__(self, database: Database, *, every: float = EVERY, full: int = FULL) -> None:
        super().__init__(self._look, every=every)
        self._database = database
        self._full = full
        self._sql = queries("queues")
        self._turns = 0
        self._rests: dict[int, int] = {}
        self._next: dict[int, int] = {}
        self._ring: Ring | None = None
        self._swept = 0

    def ring(self) -> Ring | None:
        """Tell how large the ring was at the last look; None before the first. From any thread."""
        return self._ring

    def _look(self) -> None:
        try:
            self.turn()
        except DatabaseUnavailableError as error:
            log.debug("broker.ring_stands_still", error=one_line(error))
        except psycopg.Error as error:
            log.warning("broker.ring_stands_still", error=one_line(error))

    def turn(self) -> None:
        """Truncate what is empty; move on from what is full; sweep now and then."""
        self._turns += 1
        with self._database.connection() as connection:
            if self._turns % SWEEP_EVERY == 1:
                self.sweep(connection)
            ring = [Segment(*row) for row in connection.execute(self._sql["segments"])]
            self._ring = Ring(
                bytes=sum(one.bytes for one in ring), held=len(self._rests), swept=self._swept
            )
            for segment in ring:
                due = self._turns >= self._next.get(segment.number, 0)
                if segment.bytes and not segment.current and due:
                    self._truncate(connection, segment)
            current = next(one for one in ring if one.current)
            if current.bytes < self._full:
                return
            after = ring[current.number + 1 :] + ring[: current.number]
            free = next((one for one in after if not one.bytes), None)
            if free is not None:
                connection.execute(self._sql["make_current"], {"segment": free.number})

    def sweep(self, connection: Connection) -> int:
        """Remove the messages of queues that are no more; give how many there were."""
        row = connection.execute(self._sql["sweep"]).fetchone()
        swept = 0 if row is None else int(row[0])
        if swept:
            self._swept += swept
            log.warning("broker.messages_swept", count=swept, reason="their tenant was deleted")
        return swept

    def _truncate(self, connection: Connection, segment: Segment) -> None:
        table = sql.Identifier("tenantry", f"queued_{segment.number}")
        empty = sql.SQL("SELECT NOT EXISTS (SELECT FROM {})").format(table)
        if not _yes(connection, empty):
            self._rests.pop(segment.number, None)
            return
        try:
            with connection.transaction():
                connection.execute(f"SET LOCAL lock_timeout = {LOCK_MS}")
                connection.execute("SELECT tenantry.refuse_past_term()")
                # Who has put a message in and not committed yet holds a lock against this one.
                connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
                if _yes(connection, empty):
                    connection.execute(sql.SQL("TRUNCATE {}").format(table))
            self._rests.pop(segment.number, None)
        except errors.LockNotAvailable:
            # All others have waited behind us: so not again at once, where it is of no use.
            before = self._rests.get(segment.number, 0)
            rest = min(LONGEST_REST, 2 * before or 1)
            self._rests[segment.number] = rest
            self._next[segment.number] = self._turns + rest
            if before < rest == LONGEST_REST:
                holders = connection.execute(self._sql["holders"], {"segment": segment.number})
                log.warning(
                    "broker.segment_in_use",
                    segment=segment.number,
                    bytes=segment.bytes,
                    held_by=[f"process {pid} of {user}, {age} s" for pid, user, age in holders],
                    remedy="the disk it takes is free once their transactions have ended",
                )


def _yes(connection: Connection, query: sql.Composed) -> bool:
    row = connection.execute(query).fetchone()
    return row is not None and bool(row[0])
