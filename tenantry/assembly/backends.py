"""What the actors of a leading daemon work with: database, broker, and the loops beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import structlog

from tenantry.assembly.handlers import with_handlers
from tenantry.broker import select
from tenantry.broker.adapter import BrokerLinks, TermFence
from tenantry.broker.pending import PendingCounts
from tenantry.database.installation import find_installation
from tenantry.database.migrations import migrate
from tenantry.database.pool import Database
from tenantry.database.rights import open_to_tenants
from tenantry.database.server import Shares
from tenantry.dead_letters.postgres import PostgresDeadLetterIndex
from tenantry.handlers.message import Handler
from tenantry.isolation.sessions import TenantsSessions
from tenantry.journal.listener import JournalListener
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """What a daemon keeps; it writes only where the sessions may."""

    database: Database
    journal: PostgresEventStore
    directory: PostgresTenantDirectory
    messages: PostgresMessageStore
    dead_letters: PostgresDeadLetterIndex

    @classmethod
    def on(
        cls,
        database: Database,
        projection: TenantProjection | None = None,
        listener: JournalListener | None = None,
    ) -> Self:
        """Stand on a database; for reading only, without the projection and the listener."""
        projections: list[InlineProjection] = []
        if projection is not None:
            projections = [projection, PasswordConfirmation()]
        journal = PostgresEventStore(database, projections=projections, listener=listener)
        return cls(
            database=database,
            journal=journal,
            directory=PostgresTenantDirectory(database, journal),
            messages=PostgresMessageStore(database),
            dead_letters=PostgresDeadLetterIndex(database),
        )


log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """Everything is connected, or on its way to be; `handling` is the store with its handlers."""

    stores: Stores
    handling: MessageStore
    sql_access: PostgresSqlAccess
    tenants_sessions: TenantsSessions
    links: BrokerLinks
    pending: PendingCounts
    probes: Mapping[str, Callable[[], bool]]
    shares: Shares
    troubles: Sequence[Callable[[], str | None]]


def connect_backends(
    settings: Settings,
    sessions: Database,
    term: Term,
    *,
    shares: Shares,
    handlers: Mapping[str, Handler],
    threads: Threads,
    stack: ExitStack,
    on_overrun: Callable[[str], None],
) -> Backends:
    """Bring the schema up to date, connect, shut out who led before; `stack` undoes it all.

    `sessions` write under the term; `shares` says how many there may be of each kind. Raises
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
    stores = Stores.on(sessions, projection, listener)
    fence = TermFence(term.number, term.valid, installation)
    links = select.connect(settings, sessions, fence)
    stack.callback(links.close)
    links.prepare()
    for name, loop in links.loops.items():
        threads.start(name, loop)
    pending = PendingCounts(links.queues)
    threads.start("broker-pending", pending)
    return Backends(
        stores=stores,
        handling=with_handlers(
            stores.messages,
            handlers,
            sessions,
            settings,
            connections=shares.handlers,
            stack=stack,
            on_overrun=on_overrun,
        ),
        sql_access=PostgresSqlAccess(sessions),
        tenants_sessions=tenants_sessions,
        links=links,
        pending=pending,
        probes={
            "the broker": links.connected,
            "the database": lambda: listener.connected,
            "the term": term.valid,
        },
        shares=shares,
        troubles=[lambda: watch.trouble],
    )
