"""Messages into a tenant's partition: sifted, then inserted by one call a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, LiteralString, TypeAlias

import psycopg
from psycopg import errors
from psycopg.rows import TupleRow

from tenantry import failpoints
from tenantry.database.failures import one_line
from tenantry.messages import validation
from tenantry.messages.encoding import bigint_array, columns
from tenantry.messages.port import Incoming, MessageStoreError, Unstorable
from tenantry.messages.validation import Verdict

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
"""What PostgreSQL says of a value it will never take, however often it is tried; and what says of
one that it can't even be written down for it."""

LONGEST_ERROR: Final = 500

Connection: TypeAlias = psycopg.Connection[TupleRow]


@dataclass(slots=True, kw_only=True)
class Sifted:
    """A batch, the indexes of what may be stored (`is_json` beside them), and what may not.

    Parts of a batch share `messages` and `unstorable` with it.
    """

    messages: Sequence[Incoming]
    indexes: list[int] = field(default_factory=list)
    is_json: list[bool] = field(default_factory=list)
    unstorable: list[Unstorable] = field(default_factory=list)

    def refuse(self, index: int, reason: str, error: str) -> None:
        """Set a message aside."""
        self.unstorable.append(Unstorable(index=index, reason=reason, error=error))

    def part(self, start: int, end: int) -> Sifted:
        """Give a part of what may be stored."""
        return replace(self, indexes=self.indexes[start:end], is_json=self.is_json[start:end])


def sift(connection: Connection, messages: Sequence[Incoming], max_bytes: int) -> Sifted:
    """Set aside what can't be stored before the rest goes to the database, which may be asked."""
    sifted = Sifted(messages=messages)
    for index, message in enumerate(messages):
        try:
            flaw = validation.flaw(message, max_bytes)
            verdict = validation.look(message) if flaw is None else Verdict.BYTES
        except Exception as error:  # noqa: BLE001 - whatever one message does, it does alone
            flaw, verdict = (validation.UNREADABLE, _in_words(error)), Verdict.BYTES
        if verdict is Verdict.DOUBTFUL:
            flaw = _ask(connection, message.body)
        if flaw is None:
            sifted.indexes.append(index)
            sifted.is_json.append(verdict is not Verdict.BYTES)
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
