"""The inline projections of tenants' events: the read model, and the state of passwords.

Past states of tenants are folded from the journal.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import takewhile
from typing import Any, Final, Literal, NamedTuple

from tenantry.database.errors import DatabaseUnavailableError
from tenantry.database.failures import PortErrors
from tenantry.database.loop import LoopQueries
from tenantry.database.pool import Connection, Database
from tenantry.domain import names
from tenantry.domain.events import (
    ConsumerAccessGranted,
    ConsumerAccessRevoked,
    CredentialsRotated,
    TenantProvisioned,
)
from tenantry.domain.names import UserKind
from tenantry.domain.tenant import TenantState, fold
from tenantry.journal.codec import (
    STATE_SCHEMA,
    MalformedEventError,
    decode_base,
    decode_state,
    encode_state,
    tenant_events,
)
from tenantry.journal.port import (
    EventsArchivedError,
    EventStore,
    JournalError,
    JournalUnavailableError,
    RecordedEvent,
)
from tenantry.journal.postgres import (
    journal_connection,
    journal_errors,
    journal_rows,
    recorded_event,
)
from tenantry.journal.tenants import TENANT_CATEGORY, base_state, snapshot_state
from tenantry.projections.port import Found
from tenantry.sql import queries

CHECKPOINT: Final[Mapping[str, object]] = {"name": "tenants", "shape": STATE_SCHEMA}
BATCH: Final = 500
REBUILD_STATEMENT_TIMEOUT: Final = 300.0

log = logging.getLogger(__name__)


class TenantProjection:
    """Keeps `tenantry.tenants` in step with the journal, as the event store's inline projection."""

    def __init__(self) -> None:
        self._sql = queries("tenants")
        self._journal = queries("journal")

    def apply(self, connection: Connection, recorded: Sequence[RecordedEvent]) -> None:
        """Update the read model within the caller's transaction.

        Events that the row has already are skipped; if the row lacks earlier events, those are read
        from the journal.
        """
        self._fold_in(connection, recorded)

    def rebuild(self, database: Database) -> int:
        """Rebuild the read model from the journal; return the number of tenants.

        Appends wait meanwhile; readers see the old read model until the new one is complete.
        Raises `JournalUnavailableError`, `JournalError`; the old one then stays in place.
        """
        with (
            PortErrors(JournalUnavailableError, JournalError, where=database.where),
            database.listen_connection(statement_timeout=REBUILD_STATEMENT_TIMEOUT) as connection,
            connection.transaction(),
        ):
            return self._rebuild(connection)

    def ensure_current(self, database: Database) -> bool:
        """Rebuild the read model if it is behind the journal or of another shape; return whether.

        Raises as `rebuild` does.
        """
        parameters = {**CHECKPOINT, "category": TENANT_CATEGORY}
        with journal_connection(database) as connection:
            row = connection.execute(self._sql["is_current"], parameters).fetchone()
        if row is not None and row[0]:
            return False
        count = self.rebuild(database)
        log.info("rebuilt the read model of %d tenants", count)
        return True

    def _rebuild(self, connection: Connection) -> int:
        # Under the journal's lock no append can slip in between the last batch and the commit.
        connection.execute(self._journal["lock_head"])
        connection.execute(self._sql["clear"])
        position = 0
        # Archived events can't be folded: their base states stand for them.
        bases = self._bases(connection, None)
        connection.execute(self._sql["put"], _columns(bases))
        tenants = {one.tenant_id for one in bases}
        while batch := self._read(connection, position):
            self._fold_in(connection, batch)
            tenants.update(one.event.tenant_id for one in batch)
            position = batch[-1].position
        connection.execute(self._sql["save_checkpoint"], {**CHECKPOINT, "position": position})
        return len(tenants)

    def _fold_in(self, connection: Connection, recorded: Iterable[RecordedEvent]) -> None:
        streams: dict[str, list[RecordedEvent]] = {}
        for one in recorded:
            streams.setdefault(one.event.tenant_id, []).append(one)
        rows = connection.execute(self._sql["get_many"], {"ids": list(streams)}).fetchall()
        states = {key: _known(data) for key, data in rows}
        changed = [
            state
            for key, events in streams.items()
            if (state := self._advance(connection, states.get(key), events)) is not None
        ]
        connection.execute(self._sql["put"], _columns(changed))

    def _advance(
        self, connection: Connection, state: TenantState | None, events: Sequence[RecordedEvent]
    ) -> TenantState | None:
        version = 0 if state is None else state.version
        fresh: Sequence[RecordedEvent] = [one for one in events if one.version > version]
        if fresh and fresh[0].version != version + 1:
            # The row is missing or behind: another writer appended without this projection.
            parameters = {"stream": fresh[0].stream, "after": version, "limit": None}
            rows = connection.execute(self._journal["read_stream"], parameters).fetchall()
            fresh = [recorded_event(row) for row in rows]
            if fresh and fresh[0].version != version + 1:
                (state,) = self._bases(connection, fresh[0].stream)
        return fold(tenant_events(fresh), state)

    def _bases(self, connection: Connection, stream: str | None) -> list[TenantState]:
        """Return the base states of archived events: of one stream, or of all."""
        streams = None if stream is None else [stream]
        rows = connection.execute(self._sql["bases"], {"streams": streams}).fetchall()
        return [
            decode_base(schema_version, data, stream=named, version=version)
            for named, version, schema_version, data in rows
        ]

    def _read(self, connection: Connection, after: int) -> list[RecordedEvent]:
        parameters = {"categories": [TENANT_CATEGORY], "after": after, "limit": BATCH}
        rows = connection.execute(self._journal["read_categories"], parameters).fetchall()
        return [recorded_event(row) for row in rows]


class TenantsPast:
    """Tenants as they were, folded from the journal: half of a `TenantDirectory`."""

    def __init__(self, store: EventStore) -> None:
        self._store = store

    def as_of_version(self, tenant_id: str, version: int) -> TenantState | None:
        """See `TenantDirectory.as_of_version`."""
        if version < 1:
            return None
        state = snapshot_state(self._store, tenant_id, up_to=version)
        after = 0 if state is None else state.version
        if after < version:
            stream = names.journal_stream(tenant_id)
            try:
                recorded = self._store.read_stream(stream, after=after, limit=version - after)
            except EventsArchivedError:
                state = base_state(self._store, tenant_id)
                if state is None or state.version > version:
                    raise
                left = version - state.version
                recorded = []
                if left:
                    recorded = self._store.read_stream(stream, after=state.version, limit=left)
            state = fold(tenant_events(recorded), state)
        return state if state is not None and state.version == version else None

    def as_of_time(self, tenant_id: str, at: datetime) -> TenantState | None:
        """See `TenantDirectory.as_of_time`. Raises `ValueError` for a time without a zone."""
        if at.tzinfo is None:
            raise ValueError("a time without a zone names no moment")
        stream, state = names.journal_stream(tenant_id), None
        try:
            recorded = self._store.read_stream(stream)
        except EventsArchivedError:
            state = base_state(self._store, tenant_id)
            if state is None:
                raise
            if at < state.updated_at:
                if at < state.created_at and state.incarnation == 1:
                    return None
                raise
            recorded = self._store.read_stream(stream, after=state.version)
        happened = takewhile(lambda one: one.recorded_at <= at, recorded)
        return fold(tenant_events(happened), state)


class PostgresTenantDirectory(TenantsPast):
    """A directory (`tenantry.projections.port.TenantDirectory`) of tenants on PostgreSQL.

    The present comes from the read model.
    """

    def __init__(self, database: Database, store: EventStore) -> None:
        super().__init__(store)
        self._database = database
        self._sql = queries("tenants")

    def get(self, tenant_id: str) -> TenantState | None:
        """See `TenantDirectory.get`."""
        found = self._read("get", id=tenant_id)
        return found[0] if found else None

    def page(self, *, after: str | None = None, limit: int = 50) -> list[TenantState]:
        """See `TenantDirectory.page`."""
        return self._read("page", after=after or "", limit=limit)

    def search(self, text: str) -> list[Found]:
        """See `TenantDirectory.search`."""
        rows = journal_rows(self._database, self._sql["search"], {"text": text})
        return [Found(*row) for row in rows]

    def several(self, tenant_ids: Sequence[str]) -> list[TenantState]:
        """See `TenantDirectory.several`."""
        wanted = {"ids": list(tenant_ids)}
        rows = journal_rows(self._database, self._sql["get_many"], wanted)
        states = {tenant_id: decode_state(data) for tenant_id, data in rows}
        return [states[one] for one in tenant_ids if one in states]

    def _read(self, query: str, **parameters: object) -> list[TenantState]:
        rows = journal_rows(self._database, self._sql[query], parameters)
        return [decode_state(data) for (data,) in rows]


ANSWER_SECONDS: Final = 10.0
"""How long a server may take to tell of a tenant: a frozen one would keep a call for longer."""

_GET: Final = b"SELECT (SELECT state::text FROM tenantry.tenants WHERE id = $1)"
_READ: Final = 1000


class PostgresLoopDirectory:
    """A directory of tenants for an event loop (`tenantry.projections.port.LoopDirectory`)."""

    def __init__(self, database: Database, queries: LoopQueries) -> None:
        """`queries` go to this database."""
        self._where = database.where
        self._errors = journal_errors(database)
        self._queries = queries

    async def get(self, tenant_id: str) -> TenantState | None:
        """See `TenantDirectory.get`."""
        with self._errors:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    (state,) = await self._queries.row(_GET, [tenant_id.encode()], tenant_id)
            except TimeoutError:
                raise DatabaseUnavailableError(
                    f"{self._where}: no answer for {ANSWER_SECONDS:g} s"
                ) from None
        return None if state is None else _read(state)


@lru_cache(_READ)
def _read(state: bytes) -> TenantState:
    """Read a state once, not with each call: most come without a change in between."""
    return decode_state(json.loads(state))


def _known(data: Mapping[str, object]) -> TenantState | None:
    """Read a row's state; a row in an older program's shape counts as missing."""
    try:
        return decode_state(data)
    except MalformedEventError:
        return None


def _columns(states: Sequence[TenantState]) -> Mapping[str, Any]:
    return {
        "ids": [one.tenant_id for one in states],
        "versions": [one.version for one in states],
        "lifecycles": [one.lifecycle.value for one in states],
        "states": [json.dumps(encode_state(one)) for one in states],
        "created": [one.created_at for one in states],
        "updated": [one.updated_at for one in states],
    }


class PasswordConfirmation:
    """The event store's inline projection that confirms pending passwords.

    A password is confirmed in the transaction that appends the event about it: never one without
    the other, whenever the daemon dies.
    """

    def __init__(self) -> None:
        self._sql = queries("tenants")

    def apply(self, connection: Connection, recorded: Sequence[RecordedEvent]) -> None:
        """Confirm the pending passwords of users to which the events give a new password.

        A revoked user's password is removed.
        """
        for one in recorded:
            if (change := password_change(one)) is not None:
                query = self._sql[f"{change.verb}_{change.kind}_credentials"]
                connection.execute(query, {"ids": [one.event.tenant_id]})


class PasswordChange(NamedTuple):
    """The change that an event makes to the password of a tenant's user."""

    verb: Literal["confirm", "remove"]
    kind: UserKind


def password_change(recorded: RecordedEvent) -> PasswordChange | None:
    """Return the change that an event makes to a tenant's password; None if it makes none."""
    match recorded.event:
        case TenantProvisioned() | CredentialsRotated():
            return PasswordChange("confirm", UserKind.PRODUCER)
        case ConsumerAccessGranted():
            return PasswordChange("confirm", UserKind.CONSUMER)
        case ConsumerAccessRevoked():
            return PasswordChange("remove", UserKind.CONSUMER)
        case _:
            return None
