"""The backends of a leading daemon's actors: database, broker, and the loops beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Self

import structlog

from tenantry.broker import select
from tenantry.broker.adapter import BrokerLinks, TermFence
from tenantry.broker.pending import PendingCounts
from tenantry.database.installation import find_installation
from tenantry.database.migrations import migrate
from tenantry.database.pool import STATEMENT_TIMEOUT, Database
from tenantry.database.rights import open_to_tenants
from tenantry.database.server import Shares
from tenantry.dead_letters.postgres import PostgresDeadLetterIndex
from tenantry.dead_letters.telling import DeadLetterEvents
from tenantry.handlers.attempt_runner import TRANSACTIONS
from tenantry.handlers.attempts import RetryPolicy
from tenantry.handlers.handler_pool import HandlerPool, OnHandled
from tenantry.handlers.message import Handler
from tenantry.handlers.store import HandlingStore
from tenantry.isolation.sessions import TenantsSessions
from tenantry.journal.listener import JournalListener
from tenantry.journal.parts_postgres import PostgresJournalParts
from tenantry.journal.postgres import InlineProjection, PostgresEventStore
from tenantry.messages.port import MessageStore
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.messages.sql_access_postgres import PostgresSqlAccess
from tenantry.messages.watch import DatabaseWatch
from tenantry.process.threads import Threads
from tenantry.projections.tenants import (
    PasswordConfirmation,
    PostgresTenantDirectory,
    TenantProjection,
)
from tenantry.settings import Settings
from tenantry.terms.lease import Term
from tenantry.tracing import Tracer
from tenantry.turns.room import Room
from tenantry.turns.storing import StoringTurns
from tenantry.turns.turns import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """A daemon's stores in the database; they write only if the sessions may."""

    database: Database
    journal: PostgresEventStore
    parts: PostgresJournalParts
    directory: PostgresTenantDirectory
    messages: PostgresMessageStore
    dead_letters: PostgresDeadLetterIndex
    dead_letter_events: DeadLetterEvents

    @classmethod
    def on(
        cls,
        database: Database,
        projection: TenantProjection | None = None,
        listener: JournalListener | None = None,
        turns: StoringTurns | None = None,
        tracer: Tracer | None = None,
    ) -> Self:
        """Make the stores on a database; a reader needs neither projection nor listener.

        Batches are stored in the tenants' `turns`.
        """
        projections: list[InlineProjection] = []
        if projection is not None:
            projections = [projection, PasswordConfirmation()]
        journal = PostgresEventStore(database, projections=projections, listener=listener)
        messages = PostgresMessageStore(database, turns=turns, tracer=tracer)
        return cls(
            database=database,
            journal=journal,
            parts=PostgresJournalParts(database),
            directory=PostgresTenantDirectory(database, journal),
            messages=messages,
            dead_letter_events=DeadLetterEvents(
                journal, lambda tenant_id: messages.counts(tenant_id).dead_lettered
            ),
            dead_letters=PostgresDeadLetterIndex(database),
        )


log: Final = structlog.get_logger("daemon")

KEPT_FREE: Final = 5
"""One in this many of the pool's connections is kept from storing, for the journal and the API."""

IDLE_MARGIN: Final = 30.0
"""Seconds beyond a handler's timeout after which the server ends its idle transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """The backends, connected or connecting; `handling` is the store with its handlers.

    The `installation` is the name that marks the broker's objects as this installation's.
    """

    stores: Stores
    handling: MessageStore
    sql_access: PostgresSqlAccess
    tenants_sessions: TenantsSessions
    links: BrokerLinks
    pending: PendingCounts
    probes: Mapping[str, Callable[[], bool]]
    shares: Shares
    weights: Weights
    turns: StoringTurns | None
    troubles: Sequence[Callable[[], str | None]]
    installation: str


def connect_backends(
    settings: Settings,
    sessions: Database,
    term: Term,
    *,
    node: str,
    shares: Shares,
    handlers: Mapping[str, Handler],
    threads: Threads,
    stack: ExitStack,
    on_overrun: Callable[[str], None],
    on_handled: OnHandled,
    tracer: Tracer,
) -> Backends:
    """Migrate the schema, connect, fence the former leader; `stack` undoes it all.

    `sessions` write under the term; `shares` limits the connections of each kind. Raises
    `DatabaseError`, `JournalError`, `BrokerError`.
    """
    stack.callback(sessions.close)
    sessions.open()
    migrate(sessions)
    installation = find_installation(sessions)
    with sessions.connection() as connection:
        for opening in open_to_tenants(connection):
            log.warning("rights.open_to_tenants", what=opening)
    tenants_sessions = TenantsSessions(sessions)
    tenants_sessions.mend()
    watch = DatabaseWatch(sessions)
    threads.start("database-watch", watch, vital=False)
    listener = JournalListener(sessions)
    threads.start("journal-listener", listener)
    projection = TenantProjection()
    projection.ensure_current(sessions)
    weights, turns = Weights(), None
    if settings.consumer.stored_at_once:
        connections = shares.pool - shares.pool // KEPT_FREE
        room = Room(least=settings.consumer.stored_at_once, most=connections)
        turns = StoringTurns(weights, room=room, connections=connections)
    stores = Stores.on(sessions, projection, listener, turns, tracer)
    fence = TermFence(term.number, term.valid, installation, node)
    links = select.connect(settings, sessions, fence)
    stack.callback(links.close)
    links.prepare()
    for name, loop in links.loops.items():
        threads.start(name, loop)
    pending = PendingCounts(links.queues)
    threads.start("broker-pending", pending)
    return Backends(
        stores=stores,
        handling=_with_handlers(
            stores.messages,
            handlers,
            sessions,
            settings,
            connections=shares.handlers,
            weights=weights,
            turns=turns,
            stack=stack,
            on_overrun=on_overrun,
            on_handled=on_handled,
            tracer=tracer,
        ),
        sql_access=PostgresSqlAccess(sessions),
        tenants_sessions=tenants_sessions,
        links=links,
        installation=installation,
        pending=pending,
        probes={
            "the broker": links.connected,
            "the database": lambda: listener.connected,
            "the term": term.valid,
        },
        shares=shares,
        weights=weights,
        turns=turns,
        troubles=[lambda: watch.trouble],
    )


def _with_handlers(
    plain: PostgresMessageStore,
    handlers: Mapping[str, Handler],
    database: Database,
    settings: Settings,
    *,
    connections: int,
    weights: Weights,
    turns: StoringTurns | None,
    stack: ExitStack,
    on_overrun: Callable[[str], None],
    on_handled: OnHandled,
    tracer: Tracer,
) -> MessageStore:
    """Return the store that runs the handlers, if there are any; `stack` closes its resources.

    As many handlers run at once as there are `connections`.
    """
    if not handlers:
        return plain
    seconds = settings.handler.timeout_seconds
    own = database.beside(
        pool_size=connections,
        statement_timeout=max(seconds, STATEMENT_TIMEOUT),
        idle_timeout=seconds + IDLE_MARGIN,
    )
    stack.callback(own.close)
    own.open()
    pool = HandlerPool(
        places=connections,
        timeout=seconds,
        weights=weights,
        on_overrun=on_overrun,
        tracer=tracer,
        on_handled=on_handled,
    )
    stack.callback(pool.close)
    retry = RetryPolicy(attempts=settings.retry.attempts, pauses=settings.retry.backoff_seconds)
    store = HandlingStore(
        database, own, handlers, pool=pool, retry=retry, turns=turns, tracer=tracer
    )
    store.sweep()
    log.info("handlers.ready", topics=sorted(handlers), timeout_seconds=seconds)
    return store


def abandoned(store: MessageStore) -> int:
    """Count the abandoned threads, whose handlers hang."""
    return store.abandoned if isinstance(store, HandlingStore) else 0


def store_patience(handlers: Mapping[str, Handler], settings: Settings) -> float | None:
    """Return the seconds a batch may take with handlers; None without handlers."""
    if not handlers:
        return None
    hang, one = settings.supervision.hang_seconds, settings.handler.timeout_seconds
    return hang + (TRANSACTIONS + 1) * one
