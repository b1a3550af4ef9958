"""A journal on PostgreSQL of which parts are archived and restored, for tests."""

from __future__ import annotations

from collections.abc import Sequence

from tenantry.database.pool import Database
from tenantry.domain import names
from tenantry.domain.commands import Command, ConfirmProvisioned, CreateTenant, ResizeWorkers
from tenantry.domain.events import MessageDeadLettered
from tenantry.domain.tenant import decide
from tenantry.journal.parts import Digest
from tenantry.journal.parts_postgres import PostgresJournalParts
from tenantry.journal.port import Metadata
from tenantry.journal.postgres import PostgresEventStore
from tenantry.journal.tenants import load_tenant
from tenantry.projections.tenants import PostgresTenantDirectory, TenantProjection

METADATA = Metadata(actor="test")
HERE = "here:/archive/journal-00001.jsonl.gz"


class Journal:
    """A journal with its read model, and what is done to it in a test."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.projection = TenantProjection()
        self.store = PostgresEventStore(database, projections=[self.projection])
        self.directory = PostgresTenantDirectory(database, self.store)
        self.parts = PostgresJournalParts(database)
        self.projection.ensure_current(database)

    def live(self, tenant_id: str, *workers: int) -> None:
        """Create a tenant unless it is there, and resize it so often."""
        commands: list[Command] = [
            ResizeWorkers(tenant_id=tenant_id, workers=one) for one in workers
        ]
        if load_tenant(self.store, tenant_id) is None:
            made = CreateTenant(tenant_id=tenant_id, name="Ünï \N{SNOWMAN}", workers=3)
            commands = [made, ConfirmProvisioned(tenant_id=tenant_id), *commands]
        for command in commands:
            state = load_tenant(self.store, tenant_id)
            version = 0 if state is None else state.version
            stream = names.journal_stream(tenant_id)
            self.store.append(stream, decide(state, command), expected=version, metadata=METADATA)

    def lines(self, part: int) -> list[str]:
        return [line for _, line in self.parts.lines(part)]

    def archive(self, part: int, place: str = HERE) -> list[str]:
        lines = self.lines(part)
        self.parts.archive(part, digest=digest_of(lines), archive=place, metadata=METADATA)
        return lines

    def restore(self, part: int, lines: Sequence[str], *, at_once: int = 2) -> None:
        last = 0
        for n in range(0, len(lines), at_once):
            last = self.parts.put_back(part, lines[n : n + at_once], after=last)
        self.parts.restore(part, METADATA)

    def rows(self, table: str = "events", up_to: int = 10**9) -> list[tuple[object, ...]]:
        with self.database.connection() as connection:
            query = f"SELECT * FROM tenantry.{table} WHERE position <= %s ORDER BY position"
            return connection.execute(query.encode(), [up_to]).fetchall()

    def head(self) -> int:
        with self.database.connection() as connection:
            row = connection.execute("SELECT position FROM tenantry.journal_head").fetchone()
        assert row is not None
        return int(row[0])


def digest_of(lines: Sequence[str]) -> str:
    digest = Digest()
    for line in lines:
        digest.add(line.encode())
    return digest.hexdigest()


def dead(tenant_id: str) -> MessageDeadLettered:
    return MessageDeadLettered(
        tenant_id=tenant_id,
        message_id='"\\ \n',
        topic="events",
        partition=0,
        reason="not-json",
        error="Expecting value ☃",
        first_error="Expecting value",
        attempts=1,
        size=12,
    )
