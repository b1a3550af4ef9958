"""The event store on PostgreSQL."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC
from typing import Any, Final, Protocol
from uuid import UUID, uuid4

from psycopg import errors
from psycopg.rows import TupleRow

from tenantry import failpoints
from tenantry.database.failures import UNFIT, PortErrors
from tenantry.database.pool import Connection, Database
from tenantry.domain import names
from tenantry.domain.events import Event
from tenantry.journal.codec import CODEC, decode_metadata, encode_metadata
from tenantry.journal.listener import AppendSignal, JournalListener
from tenantry.journal.port import (
    EventsArchivedError,
    Expected,
    JournalError,
    JournalUnavailableError,
    Metadata,
    RecordedEvent,
    Snapshot,
    VersionConflictError,
)
from tenantry.journal.tenants import TENANT_CATEGORY
from tenantry.sql import queries

POLL: Final = 0.5
"""Seconds between looks at the journal's head while no listener is connected."""

POLL_BESIDE_LISTENER: Final = 5.0
"""Seconds between looks beside a listener: notifications can be lost with their connection."""


LAST_PART: Final = 2**31 - 1
LOOK_AT_PARTS: Final = 60.0
"""Seconds between a reader's looks at which parts the journal has."""


class InlineProjection(Protocol):
    """A read model that is updated in the transaction that appends a tenant's events."""

    def apply(self, connection: Connection, recorded: Sequence[RecordedEvent]) -> None:
        """Update the read model; an error here rolls back the append."""


class PostgresEventStore:
    """An event store (`tenantry.journal.port.EventStore`) in PostgreSQL's table `events`.

    An append is one statement in one round trip, and durable when it returns. An append to a
    tenant's life, which projections follow, is a short transaction. All appends queue for the one
    row of the journal's head, so positions are committed in order. Safe to use from any thread.
    """

    def __init__(
        self,
        database: Database,
        *,
        projections: Sequence[InlineProjection] = (),
        listener: JournalListener | None = None,
    ) -> None:
        self._database = database
        self._projections = tuple(projections)
        self._listener = listener
        self._appends = AppendSignal() if listener is None else listener.appends
        self._sql = queries("journal")
        self._beginnings: list[TupleRow] = []
        self._beginnings_due = 0.0

    def append(
        self,
        stream: str,
        events: Sequence[Event],
        *,
        expected: int | Expected,
        metadata: Metadata,
        ids: Sequence[UUID] | None = None,
    ) -> list[RecordedEvent]:
        """See `EventStore.append`."""
        given = [uuid4() for _ in events] if ids is None else list(ids)
        by_id: dict[UUID, Event] = {}
        encoded = []
        for one, event in zip(given, events, strict=True):
            written = CODEC.encode(event)
            encoded.append(written)
            by_id.setdefault(one, CODEC.decode(*written))
        if not encoded:
            return []
        plain_metadata = encode_metadata(metadata)
        metadata = decode_metadata(plain_metadata)
        parameters = {
            "stream": stream,
            "expected": None if isinstance(expected, Expected) else expected,
            "ids": given,
            "types": [name for name, _, _ in encoded],
            "schema_versions": [version for _, version, _ in encoded],
            "data": [json.dumps(data) for _, _, data in encoded],
            "metadata": json.dumps(plain_metadata),
            "new_ids": ids is None,
        }
        projections = self._projections if names.category(stream) == TENANT_CATEGORY else ()
        failpoints.reach("before_append")
        with journal_connection(self._database) as connection:
            if projections:
                with connection.transaction():
                    recorded = self._record(connection, parameters, by_id, metadata)
                    if recorded:
                        for projection in projections:
                            projection.apply(connection, recorded)
            else:
                recorded = self._record(connection, parameters, by_id, metadata)
        failpoints.reach("after_append")
        if recorded:
            self._appends.notify(recorded[-1].position)
        return recorded

    def read_stream(
        self, stream: str, *, after: int = 0, limit: int | None = None
    ) -> list[RecordedEvent]:
        """See `EventStore.read_stream`."""
        found = self._read("read_stream", stream=stream, after=after, limit=limit)
        if not found or found[0].version != max(0, after) + 1:
            self._refuse_archived("archived_of_stream", stream=stream, after=after)
            if found:  # the missing events were restored in between
                found = self._read("read_stream", stream=stream, after=after, limit=limit)
        return found

    def read_all(
        self, *, after: int = 0, limit: int = 500, categories: Sequence[str] | None = None
    ) -> list[RecordedEvent]:
        """See `EventStore.read_all`."""
        if categories is None:
            found = self._read_on(after, limit)
            # Positions are dense: a gap means archived events, and the event about them follows.
            if found and found[0].position != max(0, after) + 1:
                self._refuse_archived("archived", after=after)
                # Not refused: the events were restored in between.
                found = self._read_on(after, limit)
            return found
        wanted = sorted(set(categories))
        found = self._read("read_categories", after=after, limit=limit, categories=wanted)
        self._refuse_archived("archived", after=after)
        return found

    def read_tenant(
        self, tenant_id: str, *, after: int = 0, limit: int = 500
    ) -> list[RecordedEvent]:
        """See `EventStore.read_tenant`."""
        streams = names.streams_of(tenant_id)
        found = self._read("read_streams", streams=streams, after=after, limit=limit)
        self._refuse_archived("archived_of_streams", streams=streams, after=after)
        return found

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """See `EventStore.save_snapshot`."""
        parameters = {
            "stream": snapshot.stream,
            "version": snapshot.version,
            "schema_version": snapshot.schema_version,
            "data": json.dumps(snapshot.data),
        }
        with journal_connection(self._database) as connection:
            connection.execute(self._sql["save_snapshot"], parameters)

    def load_snapshot(self, stream: str) -> Snapshot | None:
        """See `EventStore.load_snapshot`."""
        rows = journal_rows(self._database, self._sql["load_snapshot"], {"stream": stream})
        if not rows:
            return None
        version, schema_version, data = rows[0]
        return Snapshot(stream=stream, version=version, schema_version=schema_version, data=data)

    def load_base(self, stream: str) -> Snapshot | None:
        """See `EventStore.load_base`."""
        rows = self._of_archives("load_base", stream=stream)
        if not rows or rows[0][2] is None:
            return None
        version, schema_version, data = rows[0]
        return Snapshot(stream=stream, version=version, schema_version=schema_version, data=data)

    def wait_for_events(self, after: int, timeout: float) -> bool:
        """See `EventStore.wait_for_events`. Raises `JournalUnavailableError`."""
        deadline = time.monotonic() + timeout
        while True:
            if self._appends.wait(after, 0):
                return True
            for (position,) in journal_rows(self._database, self._sql["head"]):
                self._appends.notify(position)
            left = deadline - time.monotonic()
            listening = self._listener is not None and self._listener.connected
            if self._appends.wait(after, min(left, POLL_BESIDE_LISTENER if listening else POLL)):
                return True
            if left <= 0:
                return False

    def _record(
        self,
        connection: Connection,
        parameters: Mapping[str, Any],
        by_id: Mapping[UUID, Event],
        metadata: Metadata,
    ) -> list[RecordedEvent]:
        rows = connection.execute(self._sql["append"], parameters).fetchall()
        stream, expected = parameters["stream"], parameters["expected"]
        if rows and rows[0][1] is None:
            raise VersionConflictError(stream, expected, rows[0][2])
        return [
            RecordedEvent(
                position=position,
                stream=stream,
                version=version,
                id=one,
                event=by_id[one],
                metadata=metadata,
                recorded_at=recorded_at.astimezone(UTC),
            )
            for one, position, version, recorded_at in rows
        ]

    def _read(self, query: str, **parameters: object) -> list[RecordedEvent]:
        rows = journal_rows(self._database, self._sql[query], parameters)
        return [recorded_event(row) for row in rows]

    def _read_on(self, after: int, limit: int) -> list[RecordedEvent]:
        """Read the events beyond a position from only the parts that can hold them."""
        if self._beginnings_due < time.monotonic():
            self._beginnings_due = time.monotonic() + LOOK_AT_PARTS
            self._beginnings = self._of_archives("beginnings")
        known = self._beginnings
        if len(known) <= 1:
            return self._read("read_all", after=after, limit=limit)
        # Positions are dense, and a part's beginning never changes. Newer parts may exist that are
        # not known yet: the range is open behind the last known part.
        first = max((part for begins, part in known if begins <= after + 1), default=0)
        last = max((part for begins, part in known if begins <= after + limit), default=0)
        if last == known[-1][1]:
            last = LAST_PART
        return self._read("read_all_of_parts", after=after, limit=limit, first=first, last=last)

    def _refuse_archived(self, query: str, **parameters: object) -> None:
        """Raise where events above the position or version `after` are archived.

        Called after the events were read: events archived in between would be missing there.
        """
        for position, until, archives in self._of_archives(query, **parameters):
            if position is not None:
                raise EventsArchivedError(position, until.astimezone(UTC), archives)

    def _of_archives(self, query: str, **parameters: object) -> list[TupleRow]:
        """Query the archives' records; none in the schema of an older daemon that leads."""
        try:
            return journal_rows(self._database, self._sql[query], parameters)
        except JournalError as error:
            if isinstance(error.__cause__, errors.UndefinedTable):
                return []
            raise


def recorded_event(row: tuple[Any, ...]) -> RecordedEvent:
    """Read a row: position, stream, version, id, type, schema_version, data, metadata, time.

    Raises `UnknownEventError`, `JournalError`.
    """
    position, stream, version, one, name, schema_version, data, metadata, recorded_at = row
    return RecordedEvent(
        position=position,
        stream=stream,
        version=version,
        id=one,
        event=CODEC.decode(name, schema_version, data),
        metadata=decode_metadata(metadata),
        recorded_at=recorded_at.astimezone(UTC),
    )


@contextmanager
def journal_connection(database: Database) -> Iterator[Connection]:
    """Lend a connection; the database's failures become the journal's."""
    with journal_errors(database), database.connection() as connection:
        yield connection


def journal_rows(
    database: Database, query: bytes, parameters: Mapping[str, object] | None = None
) -> list[TupleRow]:
    """Run a read-only query; the database's failures become the journal's."""
    with journal_errors(database):
        return database.read(lambda one: one.execute(query, parameters).fetchall())


def journal_errors(database: Database) -> PortErrors:
    """Return the journal's errors for the database's failures."""
    return PortErrors(JournalUnavailableError, JournalError, where=database.where, waited_for=UNFIT)
