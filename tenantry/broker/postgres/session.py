"""The database connection that reads queues, and its registration as a reader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import psycopg
from psycopg import pq, sql

from tenantry.broker.port import QueueSpec
from tenantry.broker.postgres.reading import BYTES, MESSAGES, OpenTransactions, QueueReading
from tenantry.broker.postgres.subscription import Place, Row
from tenantry.database.errors import DatabaseUnavailableError
from tenantry.messages.encoding import bigint_array, integer_array
from tenantry.sql import queries

LEASE: Final = 10.0
"""Seconds after which the queues of a reader that has not renewed its lease are free."""

LAST_QUEUE: Final = 2**31 - 1

_PLANS: Final = """
SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off;
SET enable_mergejoin = off; SET enable_sort = off; SET jit = off
"""
"""The tables are full and empty by turns; a plan made for one state must not serve the other."""


@dataclass(slots=True)
class Told:
    """Notifications: queues with new messages, and whether queues were deleted."""

    queues: set[int] = field(default_factory=set)
    gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquiredQueues:
    """The names of the queues that exist, and their `readings`, unless another reader has one."""

    names: frozenset[str]
    readings: tuple[QueueReading, ...]


class QueueSession:
    """Reads queues on a connection of its own; every call may raise `psycopg.Error`."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._sql = queries("queues")
        self._consumer = 0
        self._told = Told()

    def begin(self) -> None:
        """Become a reader."""
        connection = self._connection
        # Psycopg's own handler decodes the payload, and raises if it can't.
        connection.pgconn.notify_handler = self._on_notify
        connection.execute(_PLANS)
        channel = connection.execute(self._sql["channel"]).fetchone()
        if channel is not None:
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel[0])))
        row = connection.execute(self._sql["become_consumer"], {"lease": LEASE}).fetchone()
        self._consumer = 0 if row is None else row[0]

    def end(self, readings: Sequence[QueueReading]) -> None:
        """Release the queues and stop being a reader."""
        self.release(readings)
        self._connection.execute(self._sql["forget_consumer"], {"consumer": self._consumer})

    def ask_for_notify(self, queues: Sequence[int]) -> int:
        """Have publishers notify from now on; transactions below the returned number may not."""
        self._set_asleep("ask_for_notify", queues)
        row = self._connection.execute(self._sql["youngest_transaction"]).fetchone()
        return 0 if row is None else int(row[0])

    def no_notify(self, queues: Sequence[int]) -> None:
        """Have publishers not notify: the reader polls these queues."""
        self._set_asleep("no_notify", queues)

    def open_transactions(self) -> OpenTransactions:
        """Return the open transactions that have changed something."""
        row = self._connection.execute(self._sql["open_transactions"]).fetchone()
        oldest, newest, still = (0, 0, ()) if row is None else row
        return OpenTransactions(oldest=oldest, newest=newest, open=frozenset(still))

    @property
    def has_been_told(self) -> bool:
        """Whether notifications came with answers since the last call of `told`.

        Those have been read from the socket, which is not readable for them any more.
        """
        return bool(self._told.queues) or self._told.gone

    def told(self) -> Told:
        """Return the notifications since the last call, without waiting."""
        pgconn = self._connection.pgconn
        pgconn.consume_input()
        while (notice := pgconn.notifies()) is not None:
            self._on_notify(notice)
        told, self._told = self._told, Told()
        return told

    def renew(self) -> frozenset[int]:
        """Renew the lease; return the ids of the queues it covers. Raises if it has been lost."""
        row = self._connection.execute(
            self._sql["renew"], {"lease": LEASE, "consumer": self._consumer}
        ).fetchone()
        if row is None:
            raise DatabaseUnavailableError("the lease on the queues is lost")
        return frozenset(row[0])

    def acquire(self, queues: Sequence[QueueSpec], prefetch: int) -> AcquiredQueues:
        """Become the reader of the queues: of all, or of none."""
        specs = {queue.name: queue for queue in queues}
        parameters = {"consumer": self._consumer, "names": list(specs)}
        rows = self._connection.execute(self._sql["acquire"], parameters).fetchall()
        readings = tuple(
            QueueReading(spec=specs[name], id=queue, redelivered_up_to=known, prefetch=prefetch)
            for name, queue, known, acquired in rows
            if acquired
        )
        names = frozenset(row[0] for row in rows)
        return AcquiredQueues(names=names, readings=readings if len(names) == len(specs) else ())

    def release(self, readings: Sequence[QueueReading]) -> None:
        """Release queues to other readers; messages given out are marked as redelivered."""
        parameters = {
            "consumer": self._consumer,
            "queues": [one.id for one in readings],
            "delivered": [one.highest for one in readings],
        }
        self._connection.execute(self._sql["release"], parameters)

    def existing(self, readings: Sequence[QueueReading]) -> frozenset[int]:
        """Return the ids of the queues that still exist."""
        rows = self._connection.execute(
            "SELECT id FROM tenantry.queues WHERE id = ANY(%s)", [[one.id for one in readings]]
        )
        return frozenset(row[0] for row in rows)

    def promising(self, floors: Mapping[int, int], known: Iterable[int]) -> list[tuple[int, int]]:
        """Return queues with messages, unsettled ones too, each with its last message's number.

        A `known` queue with a floor is returned if a message lies beyond it, and one without a
        floor never. All other queues, not only this reader's, are returned if they hold any
        message.
        """
        bounds = sorted(known)
        parameters = {
            "queues": integer_array(list(floors)),
            "floors": bigint_array(list(floors.values())),
            "lows": integer_array([0, *bounds]),
            "highs": integer_array([*bounds, LAST_QUEUE]),
        }
        cursor = self._connection.cursor(binary=True)
        return cursor.execute(self._sql["promising"], parameters, prepare=True).fetchall()

    def fetch(
        self,
        readings: Sequence[QueueReading],
        in_hand: Sequence[int],
        room: int = BYTES,
        *,
        most: int = MESSAGES,
        whole: bool = False,
        oldest_other: int = 0,
    ) -> list[tuple[QueueReading, list[Row]]]:
        """Fetch new messages of some queues, within their credit and the `room` in bytes.

        Of each queue `most` messages come at most. The last message may exceed the room, unless
        messages must fit as a `whole`. No transaction below `oldest_other` is waited for.
        """
        room = min(room, BYTES)
        mosts = [min(one.credit, most) for one in readings]
        parameters = {
            "consumer": self._consumer,
            "queues": [one.id for one in readings],
            "floors": [one.floor for one in readings],
            "most": mosts,
            "in_hand": bigint_array(in_hand),
            "bytes": room,
            "whole": room if whole else None,
        }
        cursor = self._connection.cursor(binary=True)
        found = cursor.execute(self._sql["fetch"], parameters, prepare=True).fetchall()
        # If bytes were the limit, any of the queues may have more.
        full = whole or sum(row[7] for row in found) >= room
        for reading in readings:
            reading.hungry = full
        parts: list[tuple[QueueReading, list[Row]]] = []
        for place, group in groupby(found, itemgetter(0)):
            reading, rows = readings[place - 1], list(group)
            reading.fetched(
                rows[-1][1],
                exhausted=len(rows) < mosts[place - 1] and not full,
                oldest_open=max(rows[0][8], oldest_other),
                youngest=rows[0][9],
            )
            parts.append((reading, rows))
        there = {place for place, _ in groupby(found, itemgetter(0))}
        for place, reading in enumerate(readings, start=1):
            if not full and place not in there:
                reading.caught_up()
        return parts

    def acknowledge(self, places: Sequence[Place]) -> None:
        """Remove messages from their queues."""
        self._connection.execute(self._sql["acknowledge"], _columns(places))

    def reject(self, places: Sequence[Place]) -> None:
        """Make messages dead letters of their tenant."""
        self._connection.execute(self._sql["reject"], _columns(places))

    def _set_asleep(self, name: str, queues: Sequence[int]) -> None:
        self._connection.execute(
            self._sql[name], {"queues": list(queues), "consumer": self._consumer}
        )

    def _on_notify(self, notice: pq.PGnotify) -> None:
        # Whatever the payload says is only a hint.
        payload = notice.extra
        if payload.isdigit() and len(payload) < 10:
            self._told.queues.add(int(payload))
        elif payload.startswith(b"-"):
            self._told.gone = True


def _columns(places: Sequence[Place]) -> dict[str, object]:
    return {
        "queues": integer_array([reading.id for reading, _ in places]),
        "seqs": bigint_array([seq for _, seq in places]),
    }
