"""Runs attempts at messages, and stores the failed ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import psycopg
import structlog

from tenantry.handlers.attempts import KILLED, WORKER_KILLED, Attempts, Note, RetryPolicy, in_words
from tenantry.handlers.connection import tidy
from tenantry.handlers.handler_pool import HandlerPool
from tenantry.handlers.handler_transaction import (
    ConflictError,
    Entry,
    Failure,
    HandlerTransaction,
    Pace,
    RacedError,
    RefusedError,
    SpoiledError,
    TransactionOutcome,
)
from tenantry.handlers.message import Handler
from tenantry.messages import validation
from tenantry.messages.port import Held, StoreResult, Tried, Unstorable
from tenantry.messages.postgres import differing
from tenantry.telemetry.logging import Sparing
from tenantry.tracing import Tracer

if TYPE_CHECKING:
    from tenantry.database.pool import Connection, Database

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class BatchResult:
    """The outcome of a batch so far."""

    stored: int = 0
    duplicates: int = 0
    unstorable: list[Unstorable] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    reused: list[int] = field(default_factory=list)

    def add(self, part: StoreResult, indexes: Sequence[int]) -> None:
        """Add the outcome of a part of the batch."""
        self.stored += part.stored
        self.duplicates += part.duplicates
        self.unstorable += [replace(one, index=indexes[one.index]) for one in part.unstorable]
        self.left += [indexes[index] for index in part.left]
        self.reused += [indexes[index] for index in part.reused]

    def leave(self, entries: Sequence[Entry]) -> None:
        """Note entries that were not tried."""
        self.left += [entry.index for entry in entries]

    def as_store_result(self) -> StoreResult:
        """Give the outcome of the whole batch."""
        return StoreResult(
            stored=self.stored,
            duplicates=self.duplicates,
            unstorable=tuple(sorted(self.unstorable, key=lambda one: one.index)),
            held=tuple(self.held),
            left=tuple(sorted(self.left)),
            failures=tuple(self.failures),
            reused=tuple(sorted(self.reused)),
        )


TRANSACTIONS: Final = 5
"""How often a transaction is retried after conflicts with others."""


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class AttemptRunner:
    """Makes attempts. After `until` no handler is begun but the first; the rest is left."""

    database: Database
    handlers: Mapping[str, Handler]
    pool: HandlerPool
    retry: RetryPolicy
    attempts: Attempts
    tracer: Tracer = field(default_factory=Tracer)
    pace: Pace = field(default_factory=Pace)
    sparing: Sparing = field(default_factory=Sparing)

    def guarded(
        self,
        tenant_id: str,
        entries: list[Entry],
        until: float,
        result: BatchResult,
        *,
        in_order: bool = False,
    ) -> None:
        """Before the attempt, store it as one that ended the daemon; correct that afterwards."""
        by = 1 if len(entries) == 1 else 0
        notes = [
            Note(
                entry.key,
                entry.attempts + by,
                WORKER_KILLED,
                KILLED,
                self.retry.pause(entry.attempts + by) if by else 0.0,
            )
            for entry in entries
        ]
        with self.database.connection() as connection:
            self.attempts.note(connection, tenant_id, notes)
        for entry in entries:
            entry.noted = True
        before = len(result.left)
        self.together(tenant_id, entries, until, result, in_order=in_order)
        if by:
            return
        # These were not tried, and did not end the daemon: there is nothing to store of them.
        left = set(result.left[before:])
        unknown = [one.key for one in entries if one.index in left and not one.attempts]
        if unknown:
            with self.database.connection() as connection:
                self.attempts.forget(connection, tenant_id, unknown)

    def together(
        self,
        tenant_id: str,
        entries: list[Entry],
        until: float,
        result: BatchResult,
        *,
        in_order: bool = False,
    ) -> None:
        """Handle and store entries; retry if something other than a handler was in the way."""
        for last in (*[False] * (TRANSACTIONS - 1), True):
            try:
                with self.database.connection() as connection:
                    self._transaction(
                        connection, tenant_id, entries, until, result, in_order=in_order
                    )
            except RacedError:
                continue
            except RefusedError as error:
                gone = {id(entry) for entry, _ in error.refused}
                entries = [entry for entry in entries if id(entry) not in gone]
                result.unstorable += [
                    Unstorable(index=entry.index, reason=validation.REFUSED, error=text)
                    for entry, text in error.refused
                ]
            except ConflictError as error:
                if last:
                    self._spoiled(tenant_id, entries, error.failure, result)
                    return
            except SpoiledError as error:
                self._spoiled(tenant_id, entries, error.failure, result)
                return
            else:
                return
        result.leave(entries)

    def _transaction(
        self,
        connection: Connection,
        tenant_id: str,
        entries: list[Entry],
        until: float,
        result: BatchResult,
        *,
        in_order: bool,
    ) -> None:
        work = HandlerTransaction(
            connection=connection,
            tenant_id=tenant_id,
            handlers=self.handlers,
            pool=self.pool,
            pace=self.pace,
            until=until,
            in_order=in_order,
        )
        try:
            # The span of storing ends with the commit.
            with ExitStack() as storing, connection.transaction():
                outcome = work.handle(entries)
                firsts = self._note(connection, tenant_id, outcome.failed)
                over = [one.key for one in (*outcome.passed, *outcome.duplicates) if one.noted]
                if over:
                    self.attempts.forget(connection, tenant_id, over)
                if outcome.passed or outcome.duplicates:
                    storing.enter_context(self.tracer.storing())
                    work.store(outcome)
                else:
                    # Nothing is acknowledged before a later commit: a crash of the database loses
                    # the count of an attempt, and nothing else.
                    connection.execute("SET LOCAL synchronous_commit = off")
        except psycopg.OperationalError:
            if work.severed is None:
                raise
            raise work.severed from None
        except SpoiledError:
            # A handler that ended the transaction may have left its settings behind.
            connection.close()
            raise
        self._tell(tenant_id, outcome, firsts, result)
        tidy(connection)
        if outcome.duplicates:
            result.reused += _reused(connection, tenant_id, outcome.duplicates)

    def _spoiled(
        self, tenant_id: str, entries: Sequence[Entry], failure: Failure, result: BatchResult
    ) -> None:
        """Note a failure that ended the transaction; all other entries are still to do."""
        with self.database.connection() as connection, connection.transaction():
            firsts = self._note(connection, tenant_id, [failure])
        others = [entry for entry in entries if entry is not failure.entry]
        self._tell(tenant_id, TransactionOutcome(failed=[failure], left=others), firsts, result)

    def _note(
        self, connection: Connection, tenant_id: str, failed: Sequence[Failure]
    ) -> Mapping[bytes, str]:
        if not failed:
            return {}
        notes = [
            Note(
                failure.entry.key,
                failure.entry.attempts + 1,
                failure.reason,
                in_words(failure.error),
                self.retry.pause(failure.entry.attempts + 1),
            )
            for failure in failed
        ]
        return self.attempts.note(connection, tenant_id, notes)

    def _tell(
        self,
        tenant_id: str,
        outcome: TransactionOutcome,
        firsts: Mapping[bytes, str],
        result: BatchResult,
    ) -> None:
        """Add what was committed to the batch's result."""
        result.stored += len(outcome.passed)
        result.duplicates += len(outcome.duplicates)
        result.leave(outcome.left)
        for failure in outcome.failed:
            entry, error = failure.entry, in_words(failure.error)
            attempts = entry.attempts + 1
            result.failures.append(failure.reason)
            spent = attempts >= self.retry.attempts
            left_out = self.sparing.left_out(tenant_id)
            if left_out is not None:
                log.warning(
                    "handler.failed",
                    message_id=validation.shown(entry.message.id),
                    topic=entry.message.topic,
                    reason=failure.reason,
                    error=error,
                    attempt=attempts,
                    last=spent,
                    left_out=left_out,
                )
            if spent:
                result.unstorable.append(
                    Unstorable(
                        index=entry.index,
                        reason=failure.reason,
                        error=error,
                        attempts=attempts,
                        first_error=firsts.get(entry.key, error),
                    )
                )
                continue
            result.held.append(
                Held(
                    index=entry.index,
                    seconds=self.retry.pause(attempts),
                    tried=Tried(attempts, failure.reason),
                )
            )


def _reused(connection: Connection, tenant_id: str, entries: Sequence[Entry]) -> list[int]:
    messages = [entry.stored_as for entry in entries]
    places = differing(connection, tenant_id, messages, [entry.is_json for entry in entries])
    return [entries[at].index for at in places]
