"""The message store on PostgreSQL: one round trip a batch, into the tenant's partition by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from tenantry.turns.rests import Timed
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
"""The SQLSTATE with which `tenantry.refuse_foreign_rows` refuses a detached partition."""

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
"""Errors for a value that PostgreSQL will never accept, however often it is tried; and the error of
a value that can't even be encoded for it."""

LONGEST_ERROR: Final = 500


def store_errors(
    tenant_id: str | None = None, *, waited_for: tuple[type[psycopg.Error], ...] = ()
) -> PortErrors:
    """Return the port's errors for failures with a tenant's partition, or with no tenant's."""

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
        """With `turns`, a batch waits for its tenant's turn before it is stored."""
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

        The dead letters themselves are gone with its queues either way.
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
        more: bool = False,
        beside: bool = False,
    ) -> StoreResult:
        """Store a batch; unstorable messages are set aside and named in the result.

        Always in order: parts of a batch are stored one after the other, and rows get their
        positions in the batch's order. If its turn does not come in time, the whole batch is left.
        """
        turns, turn, bodies = self._turns, None, 0
        storing: AbstractContextManager[Timed] = nullcontext(Timed())
        if turns is not None:
            bodies = sum([len(one.body) for one in batch])
            storing = turns.rests.storing(tenant_id, len(batch), bodies, backlog=more or beside)
            turn = turns.take(tenant_id, len(batch), bodies, more=more, beside=beside)
            if turn is None:
                return StoreResult(stored=0, duplicates=0, left=tuple(range(len(batch))))
        size, done = 0, False
        try:
            with (
                store_errors(tenant_id, waited_for=UNFIT),
                storing as timed,
                self._database.connection() as connection,
            ):
                sifted = sift(connection, batch, self._max_bytes)
                with self._tracer.storing():
                    stored, duplicates = insert(connection, tenant_id, sifted)
                timed.plain = not (sifted.unstorable or duplicates)
                reused = _reused(connection, tenant_id, sifted) if duplicates else ()
                size = sifted.size
            done = True
        finally:
            if turns is not None and turn is not None:
                turns.ended(turn, max(0, size - bodies), stored=done)
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
        """Read a page of a tenant's messages by position; an index makes the cost constant."""
        query = pages.rows(tenant_id, of_topic=topic is not None, order=order)
        after = pages.begin(order) if after is None else after
        wanted = (after, limit) if topic is None else (after, limit, topic)

        def read(connection: Connection) -> list[StoredMessage]:
            cursor = RawCursor(connection, row_factory=class_row(StoredMessage))
            return cursor.execute(query, wanted, prepare=False).fetchall()

        with store_errors(tenant_id):
            return self._database.read(read)

    def counts(self, tenant_id: str) -> Counts:
        """Return the tenant's running totals."""
        row = self._call(
            "SELECT stored, duplicates, dead_lettered FROM tenantry.tenant_counters"
            " WHERE tenant_id = %s",
            tenant_id,
        )
        if row is None:
            return Counts(stored=0, duplicates=0, dead_lettered=0)
        return Counts(stored=row[0], duplicates=row[1], dead_lettered=row[2])

    def _forget(self, tenant_id: str) -> None:
        """Forget the records of messages that were not stored."""
        self._call("SELECT tenantry.drop_letters(%s)", tenant_id)
        self._call("DELETE FROM tenantry.attempts WHERE tenant_id = %s RETURNING key", tenant_id)

    def _call(self, query: LiteralString, *parameters: object) -> TupleRow | None:
        with store_errors(), self._database.connection() as connection:
            return connection.execute(query, parameters).fetchone()


@dataclass(slots=True, kw_only=True)
class Sifted:
    """A batch: the indexes of storable messages (`is_json` beside them), and the unstorable ones.

    Parts of a batch share `messages` and `unstorable` with it.
    """

    messages: Sequence[Incoming]
    indexes: list[int] = field(default_factory=list)
    is_json: list[bool] = field(default_factory=list)
    unstorable: list[Unstorable] = field(default_factory=list)
    size: int = 0
    """Bytes sent to the database, if the whole batch was sent at once."""

    def refuse(self, index: int, reason: str, error: str) -> None:
        """Set a message aside."""
        self.unstorable.append(Unstorable(index=index, reason=reason, error=error))

    def part(self, start: int, end: int) -> Sifted:
        """Return a part of the storable messages."""
        return replace(self, indexes=self.indexes[start:end], is_json=self.is_json[start:end])


def sift(connection: Connection, messages: Sequence[Incoming], max_bytes: int) -> Sifted:
    """Set unstorable messages aside before the rest is stored; this may ask the database.

    CloudEvents are converted to their stored form: under their own ids.
    """
    understood = [*messages]
    sifted = Sifted(messages=understood)
    for index, message in enumerate(messages):
        try:
            flaw = validation.flaw(message, max_bytes)
            # Nearly all messages are JSON without headers: they skip the check for events.
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
    """Insert a batch in one call; if the database refuses a row, find it by halving."""
    try:
        return call_store(connection, tenant_id, batch)
    except REFUSALS as error:
        return _halve(connection, tenant_id, batch, error)


def _halve(
    connection: Connection, tenant_id: str, batch: Sifted, refusal: psycopg.Error
) -> tuple[int, int]:
    """Store the halves of a refused batch, down to the refused row."""
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
    """Insert a batch in one call; return how many rows are new, and how many existed."""
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
    connection: Connection, tenant_id: str, messages: Sequence[Incoming], is_json: Sequence[bool]
) -> list[int]:
    """Return the places of messages under whose id something else is stored.

    JSON is compared as JSON. Call it once messages were found to be duplicates, outside a
    transaction: what has been stored stays stored, and a failed answer counts as none.
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
            " CROSS JOIN LATERAL (SELECT r.payload, r.body FROM {} AS r"
            " WHERE r.tenant_id = %s AND r.id = m.id OFFSET 0) AS s"
            " WHERE s.payload IS DISTINCT FROM m.payload OR s.body IS DISTINCT FROM m.body"
            " ORDER BY m.n"
        )
        .format(table)
        .as_bytes(None)
    )
