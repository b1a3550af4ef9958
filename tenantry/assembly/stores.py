"""Everything that is kept in PostgreSQL, behind its ports, over the sessions of one `Database`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from tenantry.database.pool import Database
from tenantry.dead_letters.postgres import PostgresDeadLetterIndex
from tenantry.journal.listener import JournalListener
from tenantry.journal.postgres import InlineProjection, PostgresEventStore
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.projections.passwords import PasswordConfirmation
from tenantry.projections.tenants import PostgresTenantDirectory, TenantProjection


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
