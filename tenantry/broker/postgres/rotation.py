"""Keeps the ring of segments small: truncates empty segments, and moves on from a full one."""

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
"""Bytes at which the current segment is full and another becomes current."""

LOCK_MS: Final = 20
"""Milliseconds to wait for a segment's lock: all other sessions queue up behind this wait."""

SWEEP_EVERY: Final = 30
"""Looks between sweeps of messages whose queue no longer exists."""

LONGEST_REST: Final = 8
"""The most looks for which a segment that a session keeps in use is left alone."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of the ring."""

    number: int
    bytes: int
    current: bool


class QueueRotation(PeriodicService):
    """Rotates the ring of segments.

    A segment in which a message stays long, of a paused tenant say, is left alone. If no segment is
    free, the current one grows on, and VACUUM does what TRUNCATE would have done. A session that
    holds an empty segment for long is named in the log, not ended: it may be publishing, and no
    tenant's transaction lasts longer than a minute.
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
        """Return the ring as last looked at; None before the first look. From any thread."""
        return self._ring

    def _look(self) -> None:
        try:
            self.turn()
        except DatabaseUnavailableError as error:
            log.debug("broker.ring_stands_still", error=one_line(error))
        except psycopg.Error as error:
            log.warning("broker.ring_stands_still", error=one_line(error))

    def turn(self) -> None:
        """Truncate empty segments; move on from a full one; sweep now and then."""
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
        """Remove the messages of deleted queues; return how many there were."""
        # Else all messages are read for the first queue, where the planner takes there to be none.
        connection.execute(
            "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off;"
            " SET LOCAL enable_sort = off; SET LOCAL jit = off"
        )
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
                # A transaction that has inserted and not committed holds a lock against this one.
                connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
                if _yes(connection, empty):
                    connection.execute(sql.SQL("TRUNCATE {}").format(table))
            self._rests.pop(segment.number, None)
        except errors.LockNotAvailable:
            # All others have waited behind this lock: rest before trying again in vain.
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
