"""The message store on PostgreSQL: one round trip a batch, into the tenant's partition by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, LiteralString, TypeAlias

import psycopg
from psycopg import errors
from psycopg.rows import TupleRow, class_row

from tenantry import failpoints
from tenantry.database.errors import DatabaseUnavailableError
from tenantry.messages import pages, validation
from tenantry.messages.encoding import columns
from tenantry.messages.port import (
    NOTHING,
    Counts,
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
)
from tenantry.messages.validation import Verdict

if TYPE_CHECKING:
    from tenantry.database.pool import Database

MAX_BYTES: Final = 16 * 1024 * 1024
"""Bytes of the largest body that is stored; `jsonb` itself ends at 256 MiB."""

_STORE: Final[LiteralString] = """
SELECT stored, duplicates FROM tenantry.store_messages(
    %s::text, %b, %b, %b, %b, %b, %b, %b, %b, %s::integer)
"""

_PARTITIONS: Final[LiteralString] = """
SELECT tenant_id, coalesce(leaf.attached, false) AND totals.tenant_id IS NOT NULL
FROM (SELECT substr(relname, 10) AS tenant_id, relispartition AS attached
      FROM pg_class
      WHERE relnamespace = 'tenantry'::regnamespace AND relkind = 'r'
        AND starts_with(relname, 'messages_')) AS leaf
FULL JOIN tenantry.tenant_counters AS totals USING (tenant_id)
"""

_REFUSALS: Final = (
    errors.DataError,
    errors.ProgramLimitExceeded,
    errors.StatementTooComplex,
    errors.CheckViolation,
    errors.NotNullViolation,
)
"""What PostgreSQL says of a value it will never take, however often it is tried."""


Connection: TypeAlias = psycopg.Connection[TupleRow]


@dataclass(slots=True, kw_only=True)
class _Sifted:
    """A batch, the indexes of what may be stored (`is_json` beside them), and what may not.

    Parts of a batch share `messages` and `unstorable` with it.
    """

    messages: Sequence[Incoming]
    indexes: list[int] = field(default_factory=list)
    is_json: list[bool] = field(default_factory=list)
    unstorable: list[Unstorable] = field(default_factory=list)

    def refuse(self, index: int, reason: str, error: str) -> None:
        self.unstorable.append(Unstorable(index=index, reason=reason, error=error))

    def part(self, start: int, end: int) -> _Sifted:
        return replace(self, indexes=self.indexes[start:end], is_json=self.is_json[start:end])


class PostgresMessageStore:
    """Keeps each tenant's messages in a partition of `public.messages`."""

    def __init__(self, database: Database, *, max_bytes: int = MAX_BYTES) -> None:
        self._database = database
        self._max_bytes = max_bytes

    def create_partition(self, tenant_id: str) -> None:
        """Make the tenant's partition and counters, unless they are there."""
        self._call("SELECT tenantry.create_messages_partition(%s)", tenant_id)

    def drop_partition(self, tenant_id: str, *, retain: bool) -> int:
        """Drop the tenant's partition, unless `retain`, and the list of its dead letters.

        These have gone with its queues either way.
        """
        self._call("SELECT tenantry.drop_letters(%s)", tenant_id)
        self._call("DELETE FROM tenantry.attempts WHERE tenant_id = %s RETURNING key", tenant_id)
        if retain:
            return 0
        row = self._call("SELECT tenantry.drop_messages_partition(%s)", tenant_id)
        return int(row[0]) if row else 0

    def partitions(self) -> Partitions:
        """See `MessageStore.partitions`."""
        try:
            with self._database.connection() as connection:
                rows = connection.execute(_PARTITIONS).fetchall()
        except DatabaseUnavailableError as error:
            raise StoreUnavailableError(str(error)) from error
        except psycopg.Error as error:
            raise MessageStoreError(_one_line(error)) from error
        whole = frozenset(tenant_id for tenant_id, is_whole in rows if is_whole)
        return Partitions(
            whole=whole, partial=frozenset(tenant_id for tenant_id, _ in rows) - whole
        )

    def store(
        self,
        tenant_id: str,
        batch: Sequence[Incoming],
        again: Mapping[int, Tried | None] = NOTHING,  # noqa: ARG002 - nothing is tried twice here
    ) -> StoreResult:
        """Store a batch; what can't be stored is set aside and named in the result."""
        try:
            with self._database.connection() as connection:
                sifted = self._sift(connection, batch)
                stored, duplicates = self._insert(connection, tenant_id, sifted)
        except DatabaseUnavailableError as error:
            raise StoreUnavailableError(str(error)) from error
        except errors.UndefinedTable as error:
            raise PartitionMissingError(f"tenant {tenant_id!r} has no partition") from error
        except psycopg.Error as error:
            raise MessageStoreError(_one_line(error)) from error
        failpoints.reach("after_commit")
        unstorable = tuple(sorted(sifted.unstorable, key=lambda one: one.index))
        return StoreResult(stored=stored, duplicates=duplicates, unstorable=unstorable)

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
        wanted = {"topic": topic, "after": after, "limit": limit}
        try:
            with (
                self._database.connection() as connection,
                connection.cursor(row_factory=class_row(StoredMessage)) as cursor,
            ):
                return cursor.execute(query, wanted, prepare=False).fetchall()
        except DatabaseUnavailableError as error:
            raise StoreUnavailableError(str(error)) from error
        except errors.UndefinedTable as error:
            raise PartitionMissingError(f"tenant {tenant_id!r} has no partition") from error
        except psycopg.Error as error:
            raise MessageStoreError(_one_line(error)) from error

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

    def _sift(self, connection: Connection, messages: Sequence[Incoming]) -> _Sifted:
        """Set aside what can't be stored before the rest goes to the database."""
        sifted = _Sifted(messages=messages)
        for index, message in enumerate(messages):
            flaw = validation.flaw(message, self._max_bytes)
            verdict = validation.look(message) if flaw is None else Verdict.BYTES
            if verdict is Verdict.DOUBTFUL:
                flaw = _ask(connection, message.body)
            if flaw is None:
                sifted.indexes.append(index)
                sifted.is_json.append(verdict is not Verdict.BYTES)
            else:
                sifted.refuse(index, *flaw)
        return sifted

    def _insert(self, connection: Connection, tenant_id: str, batch: _Sifted) -> tuple[int, int]:
        """Insert a batch in one call; where the database refuses a row, find it by halving."""
        try:
            return self._call_store(connection, tenant_id, batch, len(batch.unstorable))
        except _REFUSALS as error:
            stored, duplicates = self._halve(connection, tenant_id, batch, error)
        self._call_store(connection, tenant_id, batch.part(0, 0), len(batch.unstorable))
        return stored, duplicates

    def _halve(
        self, connection: Connection, tenant_id: str, batch: _Sifted, refusal: psycopg.Error
    ) -> tuple[int, int]:
        """Store the halves of a batch that was refused as a whole, down to the refused row."""
        if len(batch.indexes) == 1:
            batch.refuse(batch.indexes[0], validation.REFUSED, _one_line(refusal))
            return 0, 0
        middle = len(batch.indexes) // 2
        stored = duplicates = 0
        for half in (batch.part(0, middle), batch.part(middle, len(batch.indexes))):
            try:
                counts = self._call_store(connection, tenant_id, half, 0)
            except _REFUSALS as error:
                counts = self._halve(connection, tenant_id, half, error)
            stored += counts[0]
            duplicates += counts[1]
        return stored, duplicates

    @staticmethod
    def _call_store(
        connection: Connection, tenant_id: str, batch: _Sifted, dead_lettered: int
    ) -> tuple[int, int]:
        rows = columns([batch.messages[index] for index in batch.indexes], batch.is_json)
        failpoints.reach("before_commit")
        row = connection.execute(_STORE, (tenant_id, *rows, dead_lettered), prepare=True).fetchone()
        if row is None:
            raise MessageStoreError("store_messages gave no row")
        return row[0], row[1]

    def _call(self, query: LiteralString, tenant_id: str) -> TupleRow | None:
        try:
            with self._database.connection() as connection:
                return connection.execute(query, (tenant_id,)).fetchone()
        except DatabaseUnavailableError as error:
            raise StoreUnavailableError(str(error)) from error
        except psycopg.Error as error:
            raise MessageStoreError(_one_line(error)) from error


def _ask(connection: psycopg.Connection[tuple[object, ...]], body: bytes) -> tuple[str, str] | None:
    """Ask the database whether it can hold a body as `jsonb`."""
    try:
        connection.execute("SELECT %s::text::jsonb IS NULL", (body.decode(),))
    except UnicodeDecodeError as error:
        return validation.NOT_JSON, f"not UTF-8: {error}"
    except errors.UntranslatableCharacter as error:
        return validation.NUL, _one_line(error)
    except _REFUSALS as error:
        return validation.NOT_JSON, _one_line(error)
    return None


def _one_line(error: BaseException) -> str:
    diag = getattr(error, "diag", None)
    primary = getattr(diag, "message_primary", None)
    detail = getattr(diag, "message_detail", None)
    text = f"{primary}: {detail}" if primary and detail else primary or str(error)
    return " ".join(str(text).split())[:500]
