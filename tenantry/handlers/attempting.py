"""Attempts at messages: what is made of them, and what is written down of those in vain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import psycopg
import structlog

from tenantry.handlers.attempts import KILLED, WORKER_KILLED, Attempts, Note, RetryPolicy, in_words
from tenantry.handlers.connection import tidy
from tenantry.handlers.crew import Crew
from tenantry.handlers.message import Handler
from tenantry.handlers.tally import Tally
from tenantry.handlers.transaction import (
    ConflictError,
    Entry,
    Failure,
    HandledTransaction,
    Outcome,
    Pace,
    RacedError,
    RefusedError,
    SpoiledError,
)
from tenantry.messages import validation
from tenantry.messages.port import Held, Tried, Unstorable
from tenantry.messages.reuse import differing

if TYPE_CHECKING:
    from tenantry.database.pool import Connection, Database

log = structlog.get_logger(__name__)

TRANSACTIONS: Final = 5
"""How often a transaction is begun anew that others have come in the way of."""


class Trying:
    """Makes attempts. No handler is begun after `until`, but the first; the rest is left."""

    def __init__(
        self,
        database: Database,
        handlers: Mapping[str, Handler],
        *,
        crew: Crew,
        retry: RetryPolicy,
        attempts: Attempts,
    ) -> None:
        self._database = database
        self._handlers = handlers
        self._crew = crew
        self._retry = retry
        self._attempts = attempts
        self._pace = Pace()

    def guarded(self, tenant_id: str, entries: list[Entry], until: float, tally: Tally) -> None:
        """Note first that the daemon has ended in this attempt; then see whether it does."""
        by = 1 if len(entries) == 1 else 0
        notes = [
            Note(
                entry.key,
                entry.attempts + by,
                WORKER_KILLED,
                KILLED,
                self._retry.pause(entry.attempts + by) if by else 0.0,
            )
            for entry in entries
        ]
        with self._database.connection() as connection:
            self._attempts.note(connection, tenant_id, notes)
        for entry in entries:
            entry.noted = True
        self.together(tenant_id, entries, until, tally)

    def together(self, tenant_id: str, entries: list[Entry], until: float, tally: Tally) -> None:
        """Handle and store entries; again, where something else than a handler was in the way."""
        for last in (*[False] * (TRANSACTIONS - 1), True):
            try:
                with self._database.connection() as connection:
                    self._transaction(connection, tenant_id, entries, until, tally)
            except RacedError:
                continue
            except RefusedError as error:
                gone = {id(entry) for entry, _ in error.refused}
                entries = [entry for entry in entries if id(entry) not in gone]
                tally.unstorable += [
                    Unstorable(index=entry.index, reason=validation.REFUSED, error=text)
                    for entry, text in error.refused
                ]
            except ConflictError as error:
                if last:
                    self._spoiled(tenant_id, entries, error.failure, tally)
                    return
            except SpoiledError as error:
                self._spoiled(tenant_id, entries, error.failure, tally)
                return
            else:
                return
        tally.leave(entries)

    def _transaction(
        self,
        connection: Connection,
        tenant_id: str,
        entries: list[Entry],
        until: float,
        tally: Tally,
    ) -> None:
        work = HandledTransaction(
            connection,
            tenant_id,
            handlers=self._handlers,
            crew=self._crew,
            pace=self._pace,
            until=until,
        )
        try:
            with connection.transaction():
                outcome = work.handle(entries)
                firsts = self._note(connection, tenant_id, outcome.failed)
                over = [one.key for one in (*outcome.passed, *outcome.duplicates) if one.noted]
                if over:
                    self._attempts.forget(connection, tenant_id, over)
                if outcome.passed or outcome.duplicates:
                    work.store(outcome)
                else:
                    # Nothing is acknowledged for it before something else is committed: an attempt
                    # less is known after a crash of the database, and that is all.
                    connection.execute("SET LOCAL synchronous_commit = off")
        except psycopg.OperationalError:
            if work.severed is None:
                raise
            raise work.severed from None
        except SpoiledError:
            # A handler that ended the transaction may have left its settings behind.
            connection.close()
            raise
        self._tell(outcome, firsts, tally)
        tidy(connection)
        if outcome.duplicates:
            tally.reused += _reused(connection, tenant_id, outcome.duplicates)

    def _spoiled(
        self, tenant_id: str, entries: Sequence[Entry], failure: Failure, tally: Tally
    ) -> None:
        """Note a failure that took the transaction with it; everything else is still to be done."""
        with self._database.connection() as connection, connection.transaction():
            firsts = self._note(connection, tenant_id, [failure])
        others = [entry for entry in entries if entry is not failure.entry]
        self._tell(Outcome(failed=[failure], left=others), firsts, tally)

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
                self._retry.pause(failure.entry.attempts + 1),
            )
            for failure in failed
        ]
        return self._attempts.note(connection, tenant_id, notes)

    def _is_spent(self, entry: Entry) -> bool:
        return entry.attempts + 1 >= self._retry.attempts

    def _tell(self, outcome: Outcome, firsts: Mapping[bytes, str], tally: Tally) -> None:
        """Put what is committed into the tally."""
        tally.stored += len(outcome.passed)
        tally.duplicates += len(outcome.duplicates)
        tally.leave(outcome.left)
        for failure in outcome.failed:
            entry, error = failure.entry, in_words(failure.error)
            attempts = entry.attempts + 1
            tally.failures.append(failure.reason)
            spent = self._is_spent(entry)
            log.warning(
                "handler.failed",
                message_id=validation.shown(entry.message.id),
                topic=entry.message.topic,
                reason=failure.reason,
                error=error,
                attempt=attempts,
                last=spent,
            )
            if spent:
                tally.unstorable.append(
                    Unstorable(
                        index=entry.index,
                        reason=failure.reason,
                        error=error,
                        attempts=attempts,
                        first_error=firsts.get(entry.key, error),
                    )
                )
                continue
            tally.held.append(
                Held(
                    index=entry.index,
                    seconds=self._retry.pause(attempts),
                    tried=Tried(attempts, failure.reason),
                )
            )


def _reused(connection: Connection, tenant_id: str, entries: Sequence[Entry]) -> list[int]:
    messages = [entry.stored_as for entry in entries]
    places = differing(connection, tenant_id, messages, [entry.is_json for entry in entries])
    return [entries[at].index for at in places]
