"""A message store that runs handlers, on top of the plain store, and deals with their failures.

A failed attempt is stored in the transaction that stores the other messages, and the message is
held. A message that was delivered before without a stored attempt may have killed the daemon: it is
tried under a lock, and the attempt is stored before, so that another crash is attributed to it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import structlog

from tenantry import failpoints
from tenantry.database.failures import UNFIT
from tenantry.handlers.attempt_runner import AttemptRunner, BatchResult
from tenantry.handlers.attempts import HANDLER_TIMEOUT, WORKER_KILLED, Attempts, RetryPolicy
from tenantry.handlers.handler_pool import HandlerPool
from tenantry.handlers.handler_transaction import Entry
from tenantry.handlers.in_order import InOrder, Unit
from tenantry.handlers.message import Handler
from tenantry.messages.port import NOTHING, Held, Incoming, StoreResult, Tried, Unstorable
from tenantry.messages.postgres import MAX_BYTES, PostgresMessageStore, sift, store_errors
from tenantry.tracing import Tracer
from tenantry.turns.storing import StoringTurns

if TYPE_CHECKING:
    from tenantry.database.pool import Connection, Database

log = structlog.get_logger(__name__)

TURN_SECONDS: Final = 0.25
"""How long handlers run before their work is committed, and the rest is given back."""

PLACE_SECONDS: Final = 2.0
LOCK_SECONDS: Final = 1.0
"""How long a worker waits for a handler's place, or for a suspect's lock, before giving back."""

FEW: Final = 8
GROUP: Final = 32
"""How many suspects are tried one by one, and how many together if there are more."""


class HandlingStore(PostgresMessageStore):
    """A message store whose topics may have handlers.

    Handlers use connections of the pool `own`: whatever they do, topics without one are not
    delayed.
    """

    def __init__(
        self,
        database: Database,
        own: Database,
        handlers: Mapping[str, Handler],
        *,
        pool: HandlerPool,
        retry: RetryPolicy,
        max_bytes: int = MAX_BYTES,
        turn: float = TURN_SECONDS,
        turns: StoringTurns | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        super().__init__(database, max_bytes=max_bytes, turns=turns, tracer=tracer)
        self._own = own
        self._handlers = handlers
        self._pool = pool
        self._retry = retry
        self._handle_for = turn
        self._attempts = Attempts()
        self._attempt_runner = AttemptRunner(
            database=own,
            handlers=handlers,
            pool=pool,
            retry=retry,
            attempts=self._attempts,
            tracer=self._tracer,
        )
        self._suspects = threading.Lock()

    def store(
        self,
        tenant_id: str,
        batch: Sequence[Incoming],
        again: Mapping[int, Tried | None] = NOTHING,
        *,
        in_order: bool = False,
        more: bool = False,
        beside: bool = False,
    ) -> StoreResult:
        """See `MessageStore.store`. Messages that would take long are left."""
        handlers = self._handlers
        mine = [index for index, one in enumerate(batch) if one.topic in handlers]
        if not mine:
            return super().store(tenant_id, batch, again, more=more, beside=beside)
        result = BatchResult()
        if len(mine) < len(batch):
            others = [index for index, one in enumerate(batch) if one.topic not in handlers]
            plain = [batch[index] for index in others]
            part = super().store(tenant_id, plain, more=more, beside=beside)
            result.add(part, others)
        with self._pool.place(tenant_id, PLACE_SECONDS) as taken:
            if not taken:
                result.left += mine
            else:
                # From our own statements: errors of a handler's are its message's failure.
                with store_errors(tenant_id, waited_for=UNFIT):
                    self._handle(tenant_id, batch, mine, again, result, in_order=in_order)
        failpoints.reach("after_commit")
        return result.as_store_result()

    @property
    def abandoned(self) -> int:
        """The number of threads abandoned with a handler that hangs."""
        return self._pool.abandoned

    def sweep(self) -> int:
        """Remove attempts at messages that have not come for days; give how many."""
        with self._own.connection() as connection:
            return self._attempts.sweep(connection)

    # Which messages are tried how.

    def _handle(
        self,
        tenant_id: str,
        batch: Sequence[Incoming],
        mine: Sequence[int],
        again: Mapping[int, Tried | None],
        result: BatchResult,
        *,
        in_order: bool,
    ) -> None:
        until = monotonic() + self._handle_for
        with self._own.connection() as connection:
            sifted = sift(connection, [batch[index] for index in mine], self._max_bytes)
            entries = [
                _entry(mine[at], sifted.messages[at], is_json)
                for at, is_json in zip(sifted.indexes, sifted.is_json, strict=True)
            ]
            result.unstorable += [replace(one, index=mine[one.index]) for one in sifted.unstorable]
            units = self._units(connection, tenant_id, entries, again, result)
        if in_order:
            self._one_behind_the_other(tenant_id, entries, units, until, result)
            return
        for number, unit in enumerate(units):
            if number and monotonic() >= until:
                result.leave(unit.entries)
            else:
                self._try(tenant_id, unit, until, result)

    def _one_behind_the_other(
        self,
        tenant_id: str,
        entries: Sequence[Entry],
        units: Sequence[Unit],
        until: float,
        result: BatchResult,
    ) -> None:
        """Try entries in the order of their partitions."""
        order = InOrder(entries, units, [one.index for one in result.held])
        began = False
        while (unit := order.next()) is not None:
            if began and monotonic() >= until:
                order.leave()
                break
            began = True
            self._try(tenant_id, unit, until, result, in_order=True)
            order.tried({*result.left, *(one.index for one in result.held)})
        result.leave(order.left)

    def _try(
        self,
        tenant_id: str,
        unit: Unit,
        until: float,
        result: BatchResult,
        *,
        in_order: bool = False,
    ) -> None:
        """Make an attempt at the entries of a unit."""
        if not unit.guarded:
            self._attempt_runner.together(tenant_id, unit.entries, until, result, in_order=in_order)
        elif self._suspects.acquire(timeout=LOCK_SECONDS):
            try:
                self._attempt_runner.guarded(
                    tenant_id, unit.entries, until, result, in_order=in_order
                )
            finally:
                self._suspects.release()
        else:
            result.held += [
                Held(
                    index=entry.index,
                    seconds=LOCK_SECONDS,
                    tried=Tried(entry.attempts, WORKER_KILLED),
                )
                for entry in unit.entries
            ]

    def _units(
        self,
        connection: Connection,
        tenant_id: str,
        entries: Sequence[Entry],
        again: Mapping[int, Tried | None],
        result: BatchResult,
    ) -> list[Unit]:
        """Group messages into units: suspects of a crash first, those that may hang last."""
        usual, killers, hanging = Unit([]), list[Unit](), list[Unit]()
        strangers: list[Entry] = []
        for entry in entries:
            tried = again.get(entry.index)
            if tried is not None:
                entry.attempts, entry.noted = tried.attempts, True
                if tried.reason == WORKER_KILLED:
                    killers.append(Unit([entry], guarded=True))
                elif tried.reason == HANDLER_TIMEOUT:
                    hanging.append(Unit([entry], alone=True))
                else:
                    usual.entries.append(entry)
            elif entry.index in again:
                strangers.append(entry)
            else:
                usual.entries.append(entry)
        unknown = self._recall(connection, tenant_id, strangers, killers, result)
        size = 1 if len(unknown) <= FEW else GROUP
        groups = [
            Unit(unknown[at : at + size], guarded=True) for at in range(0, len(unknown), size)
        ]
        return [*killers, *groups, *([usual] if usual.entries else []), *hanging]

    def _recall(
        self,
        connection: Connection,
        tenant_id: str,
        entries: Sequence[Entry],
        killers: list[Unit],
        result: BatchResult,
    ) -> list[Entry]:
        """Look up attempts at messages delivered before; give those without any."""
        if not entries:
            return []
        keys = [entry.key for entry in entries]
        facts = self._attempts.known(connection, tenant_id, keys)
        unknown: list[Entry] = []
        for entry, key in zip(entries, keys, strict=True):
            known = facts.get(key)
            if known is None:
                unknown.append(entry)
                continue
            entry.attempts, entry.noted = known.attempts, True
            refused = Unstorable(
                index=entry.index,
                reason=known.reason,
                error=known.last_error,
                attempts=known.attempts,
                first_error=known.first_error,
            )
            if known.judged or known.attempts >= self._retry.attempts:
                result.unstorable.append(refused)
            elif known.seconds > 0:
                tried = Tried(known.attempts, WORKER_KILLED)
                result.held.append(Held(index=entry.index, seconds=known.seconds, tried=tried))
            else:
                killers.append(Unit([entry], guarded=True))
        return unknown


def _entry(index: int, message: Incoming, is_json: bool) -> Entry:
    """Make an entry; a message without an id gets one, which the handler sees."""
    stored_as = message if message.id is not None else message._replace(id=str(uuid4()))
    return Entry(index, message, stored_as, is_json)
