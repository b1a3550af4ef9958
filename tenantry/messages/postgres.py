"""The message store on PostgreSQL: one round trip a batch, into the tenant's partition by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, LiteralString

import psycopg
import structlog
from psycopg import RawCursor, errors, sql
from psycopg.rows import TupleRow, class_row

from tenantry import failpoints
from tenantry.database.failures import UNFIT, PortErrors, one_line
from tenantry.domain import names
from tenantry.messages import cloudevents, pages, validation
from tenantry.messages.encoding import bigint_array, columns
from tenantry.messages.port import (
    FIRST,
    NOTHING,
    Counts,
    ForeignRowsError,
    Incoming,
    MessageStoreError,
    Order,
    PartitionMissingError,
    Partitions,
    StoredMessage,
    StoreResult,
    StoreUnavailableError,
    Tried,
    Unstorable,
    Whose,
)
from tenantry.messages.validation import BodyKind
from tenantry.tracing import Tracer
from tenantry.turns.storing import StoringTurns

if TYPE_CHECKING:
    from tenantry.database.pool import Connection, Database
    from tenantry.domain.tenant import TenantState

log = structlog.get_logger(__name__)

MAX_BYTES: Final = 16 * 1024 * 1024
"""Bytes of the largest body that is stored; `jsonb` itself ends at 256 MiB."""

_PARTITIONS: Final[LiteralString] = """
SELECT tenant_id, coalesce(leaf.attached, false) AND totals.tenant_id IS NOT NULL,
       totals.incarnation, totals.since, totals.stored, totals.duplicates, totals.dead_lettered
FROM (SELECT substr(c.relname, 10) AS tenant_id, i.inhrelid IS NOT NULL AS attached
      FROM pg_class AS c
      LEFT JOIN pg_inherits AS i
        ON i.inhrelid = c.oid AND i.inhparent = 'public.messages'::regclass
        AND NOT i.inhdetachpending
      WHERE c.relnamespace = 'tenantry'::regnamespace AND c.relkind = 'r'
        AND starts_with(c.relname, 'messages_')) AS leaf
FULL JOIN tenantry.tenant_counters AS totals USING (tenant_id)
"""

FOREIGN_ROWS: Final = "TN002"
"""What `tenantry.refuse_foreign_rows` says of a detached partition."""

_STORE: Final[LiteralString] = """
SELECT stored, duplicates FROM tenantry.store_messages(
    %s::text, %b, %b, %b, %b, %b, %b, %b, %b, 0)
"""

_STORE_TAKEN: Final[LiteralString] = """
SELECT stored, duplicates FROM tenantry.store_taken(
    %s::text, %b, %b, %b, %b, %b, %b, %b, %b, 0, %b)
"""


class UnwritableError(psycopg.DataError):
    """A value that can't be put into PostgreSQL's format."""


REFUSALS: Final = (
    errors.DataError,
    errors.ProgramLimitExceeded,
    errors.StatementTooComplex,
    errors.CheckViolation,
    errors.NotNullViolation,
    UnwritableError,
)
"""What PostgreSQL says of a value it will never take, however often it is tried; and the error
of a value that can't even be written down for it."""

LONGEST_ERROR: Final = 500


def store_errors(
    tenant_id: str | None = None, *, waited_for: tuple[type[psycopg.Error], ...] = ()
) -> PortErrors:
    """Give the port's errors of what goes wrong with a tenant's partition, or with no one's."""

    def otherwise(error: psycopg.Error) -> MessageStoreError | None:
        if tenant_id is not None and isinstance(error, errors.UndefinedTable):
            return PartitionMissingError(f"tenant {tenant_id!r} has no partition")
        if error.sqlstate == FOREIGN_ROWS:
            return ForeignRowsError(one_line(error))
        return None

    return PortErrors(
        StoreUnavailableError, MessageStoreError, waited_for=waited_for, otherwise=otherwise
    )


class PostgresMessageStore:
    """Keeps each tenant's messages in a partition of `public.messages`."""

    def __init__(
        self,
        database: Database,
        *,
        max_bytes: int = MAX_BYTES,
        turns: StoringTurns | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """Where tenants are to take `turns`, a batch waits for its own before it is stored."""
        self._database = database
        self._tracer = tracer or Tracer()
        self._max_bytes = max_bytes
        self._turns = turns

    def vacate(self, former: TenantState) -> None:
        """See `MessageStore.vacate`."""
        self._forget(former.tenant_id)
        self._call(
            "SELECT tenantry.vacate(%s, %s, %s)",
            former.tenant_id,
            former.incarnation,
            former.updated_at,
        )

    def create_partition(self, tenant_id: str, whose: Whose = FIRST) -> None:
        """See `MessageStore.create_partition`."""
        self._call(
            "SELECT tenantry.open_partition(%s, %s, %s)", tenant_id, whose.incarnation, whose.since
        )

    def drop_partition(self, tenant_id: str, *, retain: bool) -> int:
        """Drop the tenant's partition, unless `retain`, and the list of its dead letters.

        These have gone with its queues either way.
        """
        self._forget(tenant_id)
        if retain:
            return 0
        row = self._call("SELECT tenantry.drop_messages_partition(%s)", tenant_id)
        return int(row[0]) if row else 0

    def partitions(self) -> Partitions:
        """See `MessageStore.partitions`."""
        with store_errors(), self._database.connection() as connection:
            rows = connection.execute(_PARTITIONS).fetchall()
        return Partitions(
            whole={
                tenant_id: (
                    Whose(incarnation, since),
                    Counts(stored=stored, duplicates=duplicates, dead_lettered=dead_lettered),
                )
                for tenant_id, is_whole, incarnation, since, stored, duplicates, dead_lettered in (
                    rows
                )
                if is_whole
            },
            partial=frozenset(row[0] for row in rows if not row[1]),
        )

    def store(
        self,
        tenant_id: str,
        batch: Sequence[Incoming],
        again: Mapping[int, Tried | None] = NOTHING,  # noqa: ARG002 - nothing is tried twice here
        *,
        in_order: bool = False,  # noqa: ARG002 - positions are given out in the batch's order
    ) -> StoreResult:
        """Store a batch; what can't be stored is set aside and named in the result.

        In order, always: parts of a batch are stored one after the other, and rows are counted as
        they stand in it. All of it is left where its turn has not come in time.
        """
        turns, turn, bodies = self._turns, None, 0
        if turns is not None:
            bodies = sum([len(one.body) for one in batch])
            if (turn := turns.take(tenant_id, len(batch), bodies)) is None:
                return StoreResult(stored=0, duplicates=0, left=tuple(range(len(batch))))
        size = 0
        try:
            with (
                store_errors(tenant_id, waited_for=UNFIT),
                self._database.connection() as connection,
            ):
                sifted = sift(connection, batch, self._max_bytes)
                with self._tracer.storing():
                    stored, duplicates = insert(connection, tenant_id, sifted)
                reused = _reused(connection, tenant_id, sifted) if duplicates else ()
                size = sifted.size
        finally:
            if turns is not None and turn is not None:
                turns.ended(turn, max(0, size - bodies))
        failpoints.reach("after_commit")
        unstorable = tuple(sorted(sifted.unstorable, key=lambda one: one.index))
        return StoreResult(
            stored=stored, duplicates=duplicates, unstorable=unstorable, reused=reused
        )

    def page(
        self,
        tenant_id: str,
        *,
        topic: str | None = None,
        after: int | None = None,
        limit: int = 50,
        order: Order = Order.ASCENDING,
    ) -> list[StoredMessage]:
        """Read a page of a tenant's messages by position; an index gives it at constant cost."""
        query = pages.rows(tenant_id, of_topic=topic is not None, order=order)
        after = pages.begin(order) if after is None else after
        wanted = (after, limit) if topic is None else (after, limit, topic)

        def read(connection: Connection) -> list[StoredMessage]:
            cursor = RawCursor(connection, row_factory=class_row(StoredMessage))
            return cursor.execute(query, wanted, prepare=False).fetchall()

        with store_errors(tenant_id):
            return self._database.read(read)

    def counts(self, tenant_id: str) -> Counts:
        """Give the tenant's running totals."""
        row = self._call(
            "SELECT stored, duplicates, dead_lettered FROM tenantry.tenant_counters"
            " WHERE tenant_id = %s",
            tenant_id,
        )
        if row is None:
            return Counts(stored=0, duplicates=0, dead_lettered=0)
        return Counts(stored=row[0], duplicates=row[1], dead_lettered=row[2])

    def _forget(self, tenant_id: str) -> None:
        """Forget what is known of messages that were not stored."""
        self._call("SELECT tenantry.drop_letters(%s)", tenant_id)
        self._call("DELETE FROM tenantry.attempts WHERE tenant_id = %s RETURNING key", tenant_id)

    def _call(self, query: LiteralString, *parameters: object) -> TupleRow | None:
        with store_errors(), self._database.connection() as connection:
            return connection.execute(query, parameters).fetchone()


@dataclass(slots=True, kw_only=True)
class Sifted:
    """A batch, the indexes of what may be stored (`is_json` beside them), and what may not.

    Parts of a batch share `messages` and `unstorable` with it.
    """

    messages: Sequence[Incoming]
    indexes: list[int] = field(default_factory=list)
    is_json: list[bool] = field(default_factory=list)
    unstorable: list[Unstorable] = field(default_factory=list)
    size: int = 0
    """Bytes that went to the database, where all of it went at once."""

    def refuse(self, index: int, reason: str, error: str) -> None:
        """Set a message aside."""
        self.unstorable.append(Unstorable(index=index, reason=reason, error=error))

    def part(self, start: int, end: int) -> Sifted:
        """Give a part of what may be stored."""
        return replace(self, indexes=self.indexes[start:end], is_json=self.is_json[start:end])


def sift(connection: Connection, messages: Sequence[Incoming], max_bytes: int) -> Sifted:
    """Set aside what can't be stored before the rest goes to the database, which may be asked.

    Events are given as they are stored: under their own ids.
    """
    understood = [*messages]
    sifted = Sifted(messages=understood)
    for index, message in enumerate(messages):
        try:
            flaw = validation.flaw(message, max_bytes)
            # Nearly all have neither headers nor another type: no call for them.
            is_plain = not message.headers and message.content_type == validation.JSON
            if flaw is None and not is_plain and validation.may_be_event(message):
                understood[index] = cloudevents.understood(message)
            kind = validation.body_kind(message) if flaw is None else BodyKind.BYTES
            if kind is not BodyKind.BYTES:
                doubtful = kind is BodyKind.DOUBTFUL
                flaw = validation.flaw_of_numbers(message.body, max_bytes, doubtful=doubtful)
        except cloudevents.InvalidEventError as error:
            flaw, kind = (validation.INVALID_EVENT, str(error)), BodyKind.BYTES
        except Exception as error:  # noqa: BLE001 - whatever one message does, it does alone
            flaw, kind = (validation.UNREADABLE, _in_words(error)), BodyKind.BYTES
        if flaw is None and kind is BodyKind.DOUBTFUL:
            flaw = _ask(connection, message.body)
        if flaw is None:
            sifted.indexes.append(index)
            sifted.is_json.append(kind is not BodyKind.BYTES)
        else:
            sifted.refuse(index, *flaw)
    return sifted


def insert(connection: Connection, tenant_id: str, batch: Sifted) -> tuple[int, int]:
    """Insert a batch in one call; where the database refuses a row, find it by halving."""
    try:
        return call_store(connection, tenant_id, batch)
    except REFUSALS as error:
        return _halve(connection, tenant_id, batch, error)


def _halve(
    connection: Connection, tenant_id: str, batch: Sifted, refusal: psycopg.Error
) -> tuple[int, int]:
    """Store the halves of a batch that was refused as a whole, down to the refused row."""
    if len(batch.indexes) == 1:
        batch.refuse(batch.indexes[0], validation.REFUSED, one_line(refusal))
        return 0, 0
    middle = len(batch.indexes) // 2
    stored = duplicates = 0
    for half in (batch.part(0, middle), batch.part(middle, len(batch.indexes))):
        try:
            counts = call_store(connection, tenant_id, half)
        except REFUSALS as error:
            counts = _halve(connection, tenant_id, half, error)
        stored += counts[0]
        duplicates += counts[1]
    return stored, duplicates


def call_store(connection: Connection, tenant_id: str, batch: Sifted) -> tuple[int, int]:
    """Insert a batch in one call; give how many rows are new, and how many were there."""
    messages = [batch.messages[index] for index in batch.indexes]
    try:
        arrays = columns(messages, batch.is_json)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UnwritableError(_in_words(error)) from error
    batch.size = sum(len(one.data) for one in arrays)
    query, parameters = _STORE, (tenant_id, *arrays)
    receipts = [message.receipt for message in messages if message.receipt is not None]
    if receipts:
        query, parameters = _STORE_TAKEN, (*parameters, bigint_array(receipts))
    failpoints.reach("before_commit")
    row = connection.execute(query, parameters, prepare=True).fetchone()
    if row is None:
        raise MessageStoreError("store_messages gave no row")
    return row[0], row[1]


def _ask(connection: psycopg.Connection[tuple[object, ...]], body: bytes) -> tuple[str, str] | None:
    """Ask the database whether it can hold a body as `jsonb`."""
    try:
        connection.execute("SELECT %s::text::jsonb IS NULL", (body.decode(),))
    except UnicodeDecodeError as error:
        return validation.NOT_JSON, f"not UTF-8: {error}"
    except errors.UntranslatableCharacter as error:
        return validation.NUL, one_line(error)
    except REFUSALS as error:
        return validation.NOT_JSON, one_line(error)
    return None


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:LONGEST_ERROR]


def _reused(connection: Connection, tenant_id: str, sifted: Sifted) -> tuple[int, ...]:
    messages = [sifted.messages[index] for index in sifted.indexes]
    places = differing(connection, tenant_id, messages, sifted.is_json)
    refused = {one.index for one in sifted.unstorable}
    return tuple(index for at in places if (index := sifted.indexes[at]) not in refused)


def differing(
    connection: Connection,
    tenant_id: str,
    messages: Sequence[Incoming],
    is_json: Sequence[bool],
) -> list[int]:
    """Give the places of messages under whose id something else is stored.

    JSON is compared as JSON. To be asked after messages were found to be duplicates, in no
    transaction: what has been stored is stored, and an answer that fails is none.
    """
    try:
        ids, _, _, payloads, bodies, *_ = columns(messages, is_json)
        parameters = (ids, payloads, bodies, tenant_id)
        rows = connection.execute(_query(tenant_id), parameters).fetchall()
    except (psycopg.Error, ValueError, TypeError, OverflowError, RecursionError) as error:
        log.debug("message.ids_not_compared", tenant=tenant_id, error=one_line(error))
        return []
    return [place for (place,) in rows]


@lru_cache(maxsize=1024)
def _query(tenant_id: str) -> bytes:
    table = sql.Identifier("tenantry", names.partition_table_name(tenant_id))
    return (
        sql.SQL(
            "SELECT (m.n - 1)::integer FROM unnest(%b, %b, %b)"
            " WITH ORDINALITY AS m(id, payload, body, n)"
            " JOIN {} AS s ON s.tenant_id = %s AND s.id = m.id"
            " WHERE s.payload IS DISTINCT FROM m.payload OR s.body IS DISTINCT FROM m.body"
            " ORDER BY m.n"
        )
        .format(table)
        .as_bytes(None)
    )
