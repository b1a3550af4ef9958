"""One transaction in which messages are handled and stored: both, or neither.

Handlers run first, then the rows are written: so the lock on the tenant's counters, which orders
its positions, is held only during the insert, and workers run handlers in parallel. Duplicates are
looked up before; if another worker stores one of the messages meanwhile, the insert fails, and
everything is done again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from time import monotonic
from typing import TYPE_CHECKING, Final

import psycopg
import structlog
from psycopg import errors, sql
from psycopg.pq import TransactionStatus

from tenantry.database.failures import one_line
from tenantry.database.session import SEARCH_PATH
from tenantry.dead_letters.port import fingerprint
from tenantry.domain import names
from tenantry.handlers.attempts import HANDLER_FAILED, HANDLER_TIMEOUT
from tenantry.handlers.connection import HandlerCursor, as_it_was, sever
from tenantry.handlers.handler_pool import Call, HandlerHangsError, HandlerPool, Ran
from tenantry.handlers.message import Handler, Message, parse
from tenantry.messages.headers import UnreadableHeadersError
from tenantry.messages.port import Incoming
from tenantry.messages.postgres import REFUSALS, Sifted, call_store

if TYPE_CHECKING:
    from tenantry.database.pool import Connection

log = structlog.get_logger(__name__)

SMALLEST_CHUNK: Final = 4
_CHECK: Final = b"""\
SAVEPOINT tenantry_check; SET CONSTRAINTS ALL IMMEDIATE;
ROLLBACK TO SAVEPOINT tenantry_check; RELEASE SAVEPOINT tenantry_check"""
"""Checks deferred constraints before the commit, where a failure could be attributed to no message;
undone afterwards, as later handlers may rely on their being deferred."""

_OURS_AGAIN: Final = (
    f"RESET SESSION AUTHORIZATION; RESET ROLE; SET LOCAL search_path = {SEARCH_PATH}".encode()
)
"""A handler may have set another role with fewer rights; the rows are written as our own."""

LARGEST_CHUNK: Final = 1024


@dataclass(slots=True)
class Entry:
    """A message to be handled. `attempts` were made before; `noted`, if there is a row of them."""

    index: int
    message: Incoming
    stored_as: Incoming
    is_json: bool
    attempts: int = 0
    noted: bool = False

    @property
    def lane(self) -> tuple[str, int]:
        """Its topic and partition."""
        return self.message.topic, self.message.partition

    @property
    def key(self) -> bytes:
        """The message's key in the table of attempts."""
        return fingerprint(self.message)


@dataclass(frozen=True, slots=True)
class Failure:
    """A message whose attempt failed, and why."""

    entry: Entry
    reason: str
    error: BaseException


@dataclass(slots=True)
class TransactionOutcome:
    """The outcome of entries, once the transaction is committed."""

    passed: list[Entry] = field(default_factory=list)
    duplicates: list[Entry] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)


class RacedError(Exception):
    """Another worker has stored one of the messages meanwhile: retry the transaction."""


class RefusedError(Exception):
    """The database refuses rows that passed our checks; `refused` has each entry, and why."""

    def __init__(self, refused: Sequence[tuple[Entry, str]]) -> None:
        super().__init__("rows were refused")
        self.refused = refused


class SpoiledError(Exception):
    """A handler has aborted the whole transaction; the failure is its own message's."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class ConflictError(SpoiledError):
    """The transaction conflicts with another one (a deadlock, say): retry it."""


class Pace:
    """The number of messages handled under one savepoint.

    While no handler fails, all of them. A failure rolls back the earlier messages of its chunk,
    which are handled again: then chunks become small, and grow while all goes well. With these
    steps one failure in a hundred leads to chunks of about fifteen, where the cost is least.
    """

    def __init__(self) -> None:
        self.size = LARGEST_CHUNK

    def well(self) -> None:
        """Note a chunk without a failure."""
        self.size = min(LARGEST_CHUNK, self.size + max(1, self.size // 8))

    def failed(self) -> None:
        """Note a failure behind other messages of its chunk."""
        self.size = max(SMALLEST_CHUNK, self.size // 2)

    def alone(self) -> None:
        """Go on one by one, to find which message of a chunk fails."""
        self.size = 1


@dataclass(eq=False, slots=True, kw_only=True)
class HandlerTransaction:
    """Handles and stores a tenant's messages, inside the caller's transaction.

    After `until` no handler is begun but the first. With `in_order` none is begun for a message
    behind a failed or left message of its partition.
    """

    connection: Connection
    tenant_id: str
    handlers: Mapping[str, Handler]
    pool: HandlerPool
    pace: Pace
    until: float
    in_order: bool = False
    severed: SpoiledError | None = None
    """Why the connection was severed, if it was: the connection's own error does not tell."""

    def handle(self, entries: Sequence[Entry]) -> TransactionOutcome:
        """Run handlers inside the open transaction; nothing is stored yet.

        Raises `SpoiledError`, `ConflictError`, and `psycopg.OperationalError` for a lost
        connection.
        """
        outcome = TransactionOutcome()
        there = self._stored_before(entries)
        todo: list[Entry] = []
        seen: set[str | None] = set()
        stopped: set[tuple[str, int]] = set()
        for entry in entries:
            identity = entry.stored_as.id
            if stopped and entry.lane in stopped:
                outcome.left.append(entry)
            elif identity in there:
                outcome.duplicates.append(entry)
            elif identity in seen:
                # A second message of this id waits for the outcome of the first.
                outcome.left.append(entry)
                if self.in_order:
                    stopped.add(entry.lane)
            else:
                seen.add(identity)
                todo.append(entry)
        self._run(todo, outcome)
        return outcome

    def store(self, outcome: TransactionOutcome) -> None:
        """Write the rows. Raises `RacedError`, `RefusedError`: roll back, and begin again."""
        entries = [*outcome.passed, *outcome.duplicates]
        try:
            with self.connection.transaction():
                _, duplicates = self._call_store(entries)
        except REFUSALS as refusal:
            raise RefusedError(self._refused(entries, refusal)) from refusal
        if duplicates != len(outcome.duplicates):
            raise RacedError

    # Running handlers.

    def _run(self, todo: list[Entry], outcome: TransactionOutcome) -> None:
        pace = self.pace
        began = False
        while todo and (monotonic() < self.until or not (outcome.passed or outcome.failed)):
            chunk = todo[: pace.size]
            if not began:
                # Handlers find tables by the search_path of their own configuration.
                self.connection.execute(
                    "SET LOCAL search_path TO DEFAULT; SAVEPOINT tenantry_chunk"
                )
                began = True
            ran, failure = self._run_chunk(chunk)
            outcome.failed += [
                Failure(chunk[place], HANDLER_FAILED, error)
                for place, error in ran.harmless.items()
            ]
            well = [one for place, one in enumerate(chunk) if place not in ran.harmless]
            if failure is None and (refused := self._refused_at_the_end()) is not None:
                # The failing handler is known only if there was just one.
                handled = well[: ran.count - len(ran.harmless)]
                if not handled:
                    raise refused
                self.connection.execute("ROLLBACK TO SAVEPOINT tenantry_chunk")
                if len(handled) == 1:
                    outcome.failed.append(Failure(handled[0], HANDLER_FAILED, refused))
                    well.remove(handled[0])
                todo[: len(chunk)] = well
                self._leave_behind(todo, outcome)
                pace.alone()
                continue
            if failure is None:
                outcome.passed += well[: ran.count - len(ran.harmless)]
                del todo[: ran.count]
                pace.well()
                self._leave_behind(todo, outcome)
                if ran.count < len(chunk) and not (self.in_order and ran.harmless):
                    break
                if todo:
                    self.connection.execute(
                        "RELEASE SAVEPOINT tenantry_chunk; SAVEPOINT tenantry_chunk"
                    )
                continue
            # Those before it succeeded; they are handled again without it. The savepoint stays.
            self.connection.execute("ROLLBACK TO SAVEPOINT tenantry_chunk")
            outcome.failed.append(failure)
            well.remove(failure.entry)
            todo[: len(chunk)] = well
            self._leave_behind(todo, outcome)
            if ran.count > len(ran.harmless):
                pace.failed()
        if began:
            self.connection.execute(_OURS_AGAIN)
        outcome.left += todo

    def _leave_behind(self, todo: list[Entry], outcome: TransactionOutcome) -> None:
        """With order, leave the messages behind a failure in their partition."""
        if not self.in_order or not outcome.failed:
            return
        failed: dict[tuple[str, int], int] = {}
        for one in outcome.failed:
            lane, index = one.entry.lane, one.entry.index
            failed[lane] = min(index, failed.get(lane, index))
        behind = [one for one in todo if one.index > failed.get(one.lane, one.index)]
        if behind:
            outcome.left += behind
            gone = {one.index for one in behind}
            todo[:] = [one for one in todo if one.index not in gone]

    def _run_chunk(self, chunk: Sequence[Entry]) -> tuple[Ran, Failure | None]:
        calls = [self._call(entry) for entry in chunk]
        cursor = HandlerCursor(self.connection)
        try:
            ran = self.pool.run(calls, cursor, until=self.until, in_order=self.in_order)
        except HandlerHangsError as error:
            self.severed = SpoiledError(Failure(chunk[error.count], HANDLER_TIMEOUT, error))
            sever(self.connection)
            raise self.severed from error
        finally:
            as_it_was(self.connection)
        if ran.error is None:
            return ran, None
        failure = Failure(chunk[ran.count], HANDLER_FAILED, ran.error)
        self._judge(failure)
        return ran, failure

    def _refused_at_the_end(self) -> psycopg.Error | None:
        """Give the error that deferred constraints and triggers would raise at the commit."""
        try:
            self.connection.execute(_CHECK)
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            return error
        return None

    def _judge(self, failure: Failure) -> None:
        """Check whether the transaction can go on after a failure."""
        connection, error = self.connection, failure.error
        if connection.broken:
            raise psycopg.OperationalError("the connection was lost while a handler ran") from error
        status = connection.pgconn.transaction_status
        if connection.closed or status in (TransactionStatus.IDLE, TransactionStatus.ACTIVE):
            raise SpoiledError(failure) from error
        if status == TransactionStatus.INERROR and isinstance(
            error, errors.DeadlockDetected | errors.SerializationFailure
        ):
            raise ConflictError(failure) from error

    def _call(self, entry: Entry) -> Call:
        handler = self.handlers[entry.message.topic]
        payload = None
        if entry.is_json:
            try:
                payload = parse(entry.message.body)
            except (ValueError, RecursionError) as error:
                # JSON that only the database accepts is the message's failure as well.
                handler = partial(_raise, error)
        message = entry.stored_as
        headers: Mapping[str, object] = message.headers or {}
        try:
            headers = dict(headers)
        except UnreadableHeadersError as error:
            handler, headers = partial(_raise, error), {}
        shown = Message(
            id=message.id or "",
            tenant_id=self.tenant_id,
            topic=message.topic,
            partition=message.partition,
            payload=payload,
            body=None if entry.is_json else message.body,
            content_type=message.content_type,
            headers=headers,
            attempt=entry.attempts + 1,
        )
        return Call(handler, shown)

    # Rows.

    def _stored_before(self, entries: Sequence[Entry]) -> set[str]:
        ids = [entry.stored_as.id for entry in entries]
        wanted = {"tenant": self.tenant_id, "ids": ids}
        rows = self.connection.execute(_find(self.tenant_id), wanted).fetchall()
        return {identity for (identity,) in rows}

    def _call_store(self, entries: Sequence[Entry]) -> tuple[int, int]:
        sifted = Sifted(
            messages=[entry.stored_as for entry in entries],
            indexes=list(range(len(entries))),
            is_json=[entry.is_json for entry in entries],
        )
        return call_store(self.connection, self.tenant_id, sifted)

    def _refused(self, entries: Sequence[Entry], refusal: psycopg.Error) -> list[tuple[Entry, str]]:
        """Find the refused rows by trying halves, each rolled back."""
        if len(entries) == 1:
            return [(entries[0], one_line(refusal))]
        found: list[tuple[Entry, str]] = []
        middle = len(entries) // 2
        for half in (entries[:middle], entries[middle:]):
            try:
                with self.connection.transaction(force_rollback=True):
                    self._call_store(half)
            except REFUSALS as error:
                found += self._refused(half, error)
        return found


def _raise(error: Exception, _message: Message, _cursor: object) -> None:
    raise error


@lru_cache(maxsize=1024)
def _find(tenant_id: str) -> bytes:
    """Give the query for ids that are stored already, or are remembered after their removal."""
    table = sql.Identifier("tenantry", names.partition_table_name(tenant_id))
    query = sql.SQL(
        "SELECT id FROM {} WHERE tenant_id = %(tenant)s AND id = ANY(%(ids)s) UNION ALL"
        " SELECT id FROM tenantry.remembered_of(%(tenant)s, %(ids)s) AS id"
    )
    return query.format(table).as_bytes(None)
