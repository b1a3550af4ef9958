"""The parts of the journal in PostgreSQL: partitions of the table `events`."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

import structlog
from psycopg import errors, sql

from tenantry import failpoints
from tenantry.database.failures import UNFIT, PortErrors, one_line
from tenantry.database.locks import end_holders
from tenantry.database.pool import Connection, Database
from tenantry.domain import names
from tenantry.domain.events import EventsArchived, EventsRestored, SystemEvent
from tenantry.domain.tenant import TenantState, fold
from tenantry.journal.codec import (
    CODEC,
    STATE_SCHEMA,
    decode_base,
    encode_metadata,
    encode_state,
    tenant_events,
)
from tenantry.journal.parts import LINES, NoSuchPartError, Part, PartsError
from tenantry.journal.port import (
    EventsArchivedError,
    JournalError,
    JournalUnavailableError,
    Metadata,
)
from tenantry.journal.postgres import journal_connection, journal_rows, recorded_event
from tenantry.journal.tenants import TENANT_CATEGORY
from tenantry.sql import queries

LOOK_SECONDS: Final = 600.0
"""Seconds that a statement over all events of a part may take."""

PATIENCE_MS: Final = 500
"""Milliseconds to wait for the journal's readers to release it: appends wait meanwhile."""

TRIES: Final = 5
PAUSE: Final = 1.0
"""Seconds between two tries, at first; they double, with jitter."""

log = structlog.get_logger(__name__)


class PostgresJournalParts:
    """The parts (`tenantry.journal.parts.JournalParts`) of the journal in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = queries("journal_parts")
        self._journal = queries("journal")
        self._tenants = queries("tenants")

    def listed(self) -> list[Part]:
        """See `JournalParts.listed`."""
        return [_part(row) for row in journal_rows(self._database, self._sql["listed"])]

    def begin(self, most: int) -> int | None:
        """See `JournalParts.begin`."""
        with journal_connection(self._database) as connection:
            row = connection.execute(self._sql["begin"], {"most": most}).fetchone()
        number: int | None = None if row is None else row[0]
        if number is not None:
            log.info("journal.part_begun", part=number)
        return number

    def lines(self, part: int, *, after: int = 0, limit: int = LINES) -> list[tuple[int, str]]:
        """See `JournalParts.lines`."""
        parameters = {"part": part, "after": after, "limit": limit}
        rows = journal_rows(self._database, self._sql["lines"], parameters)
        if not rows:
            found = next((one for one in self.listed() if one.number == part), None)
            if found is None:
                raise NoSuchPartError(part)
            if found.archived_at is not None:
                last, at = found.last_position or 0, found.last_at or found.archived_at
                raise EventsArchivedError(last, at, [found.archive or ""])
        return [(position, line) for position, line in rows]

    def archive(self, part: int, *, digest: str, archive: str, metadata: Metadata) -> Part:
        """See `JournalParts.archive`."""
        with self._alone(part) as connection:
            found = self._found(connection, part)
            if found.archived_at is not None:
                return _archived_before(found, digest)
            _check_turn(self._all(connection), found)
            events, actual = self._digest(connection, part)
            if (events, actual) != (found.events, digest):
                raise PartsError(
                    f"part {part} has {found.events} events with the digest {actual}: the archive "
                    f"is of others ({digest}); nothing was removed, archive it anew"
                )
            self._keep_streams(connection, part)
            failpoints.reach("before_detach")
            self._insist_on_dropping(connection, part)
            given = {"part": part, "digest": digest, "archive": archive}
            connection.execute(self._sql["archived"], given)
            self._tell(
                connection,
                EventsArchived(
                    part=part,
                    first_position=found.first_position,
                    last_position=found.last_position or 0,
                    events=events,
                    until="" if found.last_at is None else found.last_at.isoformat(),
                    digest=digest,
                    archive=archive,
                ),
                metadata,
            )
            failpoints.reach("after_detach")
            result = self._found(connection, part)
        log.info("journal.part_archived", part=part, events=events, archive=archive)
        return result

    def put_back(self, part: int, lines: Sequence[str], *, after: int) -> int:
        """See `JournalParts.put_back`."""
        with self._alone(part) as connection:
            self._check_restorable(connection, part)
            waiting = _waiting(part)
            if not after:
                connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(waiting))
                connection.execute(
                    sql.SQL(
                        "CREATE TABLE {} (position bigint PRIMARY KEY, line text NOT NULL)"
                    ).format(waiting)
                )
            last = _last_position(connection, part)
            if last != after:
                raise PartsError(
                    f"of part {part} what is put back ends at position {last or 'none'}, not at "
                    f"{after}: another restores it, or it was begun anew; begin again"
                )
            insert = sql.SQL(
                "INSERT INTO {} (position, line)"
                " SELECT (one::jsonb ->> 'position')::bigint, one FROM unnest(%s::text[]) AS one"
            )
            try:
                connection.execute(insert.format(waiting), [list(lines)])
            except (errors.DataError, errors.IntegrityError) as error:
                raise PartsError(f"these are no lines of part {part}: {one_line(error)}") from error
            return _last_position(connection, part)

    def restore(self, part: int, metadata: Metadata) -> Part:
        """See `JournalParts.restore`."""
        with self._alone(part) as connection:
            found = self._check_restorable(connection, part)
            waiting = _waiting(part)
            if not _last_position(connection, part):
                raise PartsError(f"nothing of part {part} was put back yet")
            leaf = sql.Identifier("tenantry", f"events_{part}")
            connection.execute("SELECT tenantry.make_part(%s)", [part])
            connection.execute(
                sql.SQL(_PUT_BACK).format(leaf=leaf, waiting=waiting, part=sql.Literal(part))
            )
            connection.execute(sql.SQL("DROP TABLE {}").format(waiting))
            # Attaching neither waits for readers and appends nor blocks them.
            attach = sql.SQL("ALTER TABLE tenantry.events ATTACH PARTITION {} FOR VALUES IN ({})")
            connection.execute(attach.format(leaf, sql.Literal(part)))
            events, digest = self._digest(connection, part)
            if (events, digest) != (found.events, found.digest):
                raise PartsError(
                    f"this is not what part {part} was: {events} events with the digest {digest}, "
                    f"and {found.events} with {found.digest} were archived, to {found.archive}"
                )
            connection.execute(self._sql["forget_streams"], {"part": part})
            connection.execute(self._sql["restored"], {"part": part})
            restored = EventsRestored(
                part=part,
                first_position=found.first_position,
                last_position=found.last_position or 0,
                events=events,
            )
            self._tell(connection, restored, metadata)
            result = self._found(connection, part)
        log.info("journal.part_restored", part=part, events=events)
        return result

    @contextmanager
    def _alone(self, part: int) -> Iterator[Connection]:
        """Begin a transaction on a separate connection, in which no other session changes parts."""
        with (
            PortErrors(
                JournalUnavailableError, JournalError, where=self._database.where, waited_for=UNFIT
            ),
            self._database.listen_connection(statement_timeout=LOOK_SECONDS) as connection,
            connection.transaction(),
        ):
            try:
                rows = connection.execute(self._sql["lock"]).fetchall()
            except errors.LockNotAvailable:
                raise PartsError(
                    "another archives or restores a part at this moment; look again later"
                ) from None
            if (part,) not in rows:
                raise NoSuchPartError(part)
            yield connection

    def _all(self, connection: Connection) -> list[Part]:
        return [_part(row) for row in connection.execute(self._sql["listed"]).fetchall()]

    def _found(self, connection: Connection, part: int) -> Part:
        return next(one for one in self._all(connection) if one.number == part)

    def _digest(self, connection: Connection, part: int) -> tuple[int, str]:
        row = connection.execute(self._sql["digest"], {"part": part}).fetchone()
        events, digest = row or (0, "")
        return events, digest

    def _keep_streams(self, connection: Connection, part: int) -> None:
        """Keep the version of each stream, and the tenants' states, at the part's end."""
        states = self._states(connection, part)
        rows = connection.execute(self._sql["streams"], {"part": part}).fetchall()
        kept = [states.get(stream) for stream, *_ in rows]
        connection.execute(
            self._sql["keep_streams"],
            {
                "part": part,
                "streams": [stream for stream, *_ in rows],
                "versions": [version for _, version, *_ in rows],
                "positions": [position for _, _, position, _ in rows],
                "times": [at for *_, at in rows],
                "schemas": [None if state is None else STATE_SCHEMA for state in kept],
                "states": [
                    None if state is None else json.dumps(encode_state(state)) for state in kept
                ],
            },
        )

    def _states(self, connection: Connection, part: int) -> dict[str, TenantState]:
        """Fold the tenants' states at the end of a part, by their streams."""
        states: dict[str, TenantState] = {}
        position = 0
        while True:
            given = {"part": part, "category": TENANT_CATEGORY, "after": position, "limit": LINES}
            rows = connection.execute(self._sql["tenants_events"], given).fetchall()
            if not rows:
                return states
            recorded = [recorded_event(row) for row in rows]
            position = recorded[-1].position
            new = {one.stream for one in recorded} - states.keys()
            bases = connection.execute(self._tenants["bases"], {"streams": sorted(new)}).fetchall()
            for stream, version, schema, data in bases:
                states[stream] = decode_base(schema, data, stream=stream, version=version)
            for one in recorded:
                state = fold(tenant_events([one]), states.get(one.stream))
                if state is None or state.version != one.version:
                    raise JournalError(
                        f"{one.stream} has no version {one.version - 1} before position "
                        f"{one.position}: the part can't be archived"
                    )
                states[one.stream] = state

    def _insist_on_dropping(self, connection: Connection, part: int) -> None:
        """Drop a part; this needs the journal free of readers, and blocks others briefly."""
        pause = PAUSE
        for left in reversed(range(TRIES)):
            try:
                with connection.transaction():
                    connection.execute(f"SET LOCAL lock_timeout = {PATIENCE_MS}".encode())
                    # Lock the head first, as appends do: they hold it when they lock the table.
                    connection.execute(self._journal["lock_head"])
                    self._drop(connection, part)
            except errors.LockNotAvailable as error:
                held_by = end_holders(connection)
                log.info("journal.parts_wait", held_by=held_by, error=one_line(error))
                if not left:
                    raise PartsError(
                        "other sessions read the journal and don't let go of it (a backup, say); "
                        "nothing was changed, try again when they have ended"
                    ) from None
                time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                pause *= 2
            else:
                return

    def _drop(self, connection: Connection, part: int) -> None:
        leaf = sql.Identifier("tenantry", f"events_{part}")
        detach = sql.SQL("ALTER TABLE tenantry.events DETACH PARTITION {}")
        connection.execute(detach.format(leaf))
        connection.execute(sql.SQL("DROP TABLE {}").format(leaf))

    def _check_restorable(self, connection: Connection, part: int) -> Part:
        every = self._all(connection)
        found = next(one for one in every if one.number == part)
        archived = [one.number for one in every if one.archived_at is not None]
        if part not in archived:
            raise PartsError(f"part {part} is not archived: there is nothing to restore")
        if part != archived[-1]:
            raise PartsError(f"part {archived[-1]} was archived last: restore that first")
        return found

    def _tell(self, connection: Connection, event: SystemEvent, metadata: Metadata) -> None:
        name, schema_version, data = CODEC.encode(event)
        connection.execute(
            self._journal["append"],
            {
                "stream": names.PARTS_STREAM,
                "expected": None,
                "ids": [uuid4()],
                "types": [name],
                "schema_versions": [schema_version],
                "data": [json.dumps(data)],
                "metadata": json.dumps(encode_metadata(metadata)),
                "new_ids": True,
            },
        )


_PUT_BACK: Final = """
INSERT INTO {leaf} (position, stream, version, id, type, schema_version, data, metadata,
                    recorded_at, part)
SELECT w.position, w.one ->> 'stream', (w.one ->> 'version')::integer, (w.one ->> 'id')::uuid,
       w.one ->> 'type', (w.one ->> 'schema_version')::integer, w.one -> 'data',
       w.one -> 'metadata', (w.one ->> 'recorded_at')::timestamptz, {part}
FROM (SELECT position, line::jsonb AS one FROM {waiting}) AS w
ORDER BY w.position
"""


def _waiting(part: int) -> sql.Identifier:
    return sql.Identifier("tenantry", f"events_{part}_to_restore")


def _last_position(connection: Connection, part: int) -> int:
    """Return the last position put back for `restore`; 0 where there is none."""
    name = f"tenantry.events_{part}_to_restore"
    row = connection.execute("SELECT to_regclass(%s)", [name]).fetchone()
    if row is None or row[0] is None:
        return 0
    query = sql.SQL("SELECT coalesce(max(position), 0) FROM {}").format(_waiting(part))
    row = connection.execute(query).fetchone()
    return 0 if row is None else int(row[0])


def _check_turn(every: Sequence[Part], part: Part) -> None:
    if part.open:
        raise PartsError(f"part {part.number} is appended to: it can be archived once it has ended")
    older = [one.number for one in every if one.number < part.number and one.archived_at is None]
    if older:
        raise PartsError(f"part {older[0]} is older than part {part.number}: archive it first")


def _archived_before(part: Part, digest: str) -> Part:
    if part.digest == digest:
        return part
    raise PartsError(f"part {part.number} is archived already, to {part.archive}")


def _part(row: Sequence[Any]) -> Part:
    number, first, last, first_at, last_at, events, is_open, digest, archive, archived_at = row
    return Part(
        number=number,
        first_position=first,
        last_position=last,
        first_at=_utc(first_at),
        last_at=_utc(last_at),
        events=events,
        open=is_open,
        digest=digest,
        archive=archive,
        archived_at=_utc(archived_at),
    )


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC)
