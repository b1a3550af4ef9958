"""To archive old parts changes no tenant, now or later; and restored, they are what they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenantry.database.pool import Database
from tenantry.domain import names
from tenantry.domain.commands import DomainError
from tenantry.domain.tenant import TenantState, decide
from tenantry.journal.parts import Digest
from tenantry.journal.parts_postgres import PostgresJournalParts
from tenantry.journal.port import ANY, Metadata
from tenantry.journal.postgres import PostgresEventStore
from tenantry.journal.tenants import load_tenant, snapshot_of
from tenantry.projections.tenants import PostgresTenantDirectory, TenantProjection
from tests.depth import examples
from tests.property.strategies import commands, events

METADATA = Metadata(actor="model", correlation_id="one")
TENANTS = ["a", "b"]
AS_NEW = """
SET LOCAL session_replication_role = replica;
TRUNCATE tenantry.snapshots, tenantry.tenants, tenantry.journal_parts, tenantry.archived_streams;
DO $$
DECLARE
    one regclass;
BEGIN
    FOR one IN SELECT i.inhrelid FROM pg_inherits AS i
               WHERE i.inhparent = 'tenantry.events'::regclass
    LOOP
        EXECUTE format('DROP TABLE %s', one);
    END LOOP;
END
$$;
SELECT tenantry.attach_spare_part(1), tenantry.attach_spare_part(2);
INSERT INTO tenantry.journal_parts (part, first_position) VALUES (1, 1);
UPDATE tenantry.journal_head SET position = 0, part = 1
"""

steps = st.lists(
    st.one_of(
        st.sampled_from(TENANTS).flatmap(commands),
        st.sampled_from(TENANTS).flatmap(commands),
        st.tuples(st.sampled_from(["dead_letters-a", "placement-b", "ops-1"]), events),
        st.sampled_from(["part", "snapshot"]),
    ),
    min_size=3,
    max_size=25,
)


class Journal:
    """A journal as new, on which steps are taken."""

    def __init__(self, database: Database) -> None:
        with database.connection() as connection, connection.transaction():
            connection.execute(AS_NEW.encode())
        self.database = database
        self.projection = TenantProjection()
        self.store = PostgresEventStore(database, projections=[self.projection])
        self.directory = PostgresTenantDirectory(database, self.store)
        self.parts = PostgresJournalParts(database)
        self.projection.ensure_current(database)

    def take(self, step: Any) -> None:
        match step:
            case "part":
                self.parts.begin(1)
            case "snapshot":
                for state in self.states():
                    if state is not None:
                        self.store.save_snapshot(snapshot_of(state))
            case (str() as stream, event):
                self.store.append(stream, [event], expected=ANY, metadata=METADATA)
            case command:
                state = load_tenant(self.store, command.tenant_id)
                try:
                    happened = decide(state, command)
                except DomainError:
                    return
                stream = names.journal_stream(command.tenant_id)
                version = 0 if state is None else state.version
                self.store.append(stream, happened, expected=version, metadata=METADATA)

    def states(self) -> list[TenantState | None]:
        return [load_tenant(self.store, one) for one in TENANTS]

    def shown(self) -> list[TenantState | None]:
        return [self.directory.get(one) for one in TENANTS]

    def rows(self, up_to: int) -> list[tuple[object, ...]]:
        with self.database.connection() as connection:
            return connection.execute(
                "SELECT * FROM tenantry.events WHERE position <= %s ORDER BY position", [up_to]
            ).fetchall()

    def archive(self, part: int) -> list[str]:
        digest = Digest()
        lines = [line for _, line in self.parts.lines(part)]
        for line in lines:
            digest.add(line.encode())
        self.parts.archive(part, digest=digest.hexdigest(), archive="x:/y", metadata=METADATA)
        return lines

    def restore(self, part: int, lines: Sequence[str]) -> None:
        last = 0
        for n in range(0, len(lines), 7):
            last = self.parts.put_back(part, lines[n : n + 7], after=last)
        self.parts.restore(part, METADATA)


def test_archived_and_restored_the_journal_is_what_it_was_and_tenants_never_differ(
    database: Database,
) -> None:
    @settings(
        max_examples=examples(7, 200),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(before=steps, after=steps, share=st.integers(1, 5))
    def law(before: list[Any], after: list[Any], share: int) -> None:
        plain = Journal(database)
        for step in [*before, *after]:
            plain.take(step)
        wanted = plain.states()

        journal = Journal(database)
        for step in before:
            journal.take(step)
        journal.parts.begin(1)
        every = journal.parts.listed()
        head = every[-1].first_position - 1
        rows, states = journal.rows(head), journal.states()
        kept = [one.number for one in every if not one.open][:share]
        archived = {one: journal.archive(one) for one in kept}
        assert journal.states() == journal.shown() == states
        assert journal.projection.ensure_current(database) is False
        journal.projection.rebuild(database)
        assert journal.shown() == states
        for step in after:
            journal.take(step)
        # Times differ from one run to the other, and what happened does not.
        assert [said(one) for one in journal.states()] == [said(one) for one in wanted]
        states = journal.states()
        for one in reversed(kept):
            journal.restore(one, archived[one])
        assert journal.rows(head) == rows
        assert journal.states() == journal.shown() == states

    law()


def said(state: TenantState | None) -> object:
    """Leave the times out of a state."""
    return (
        None
        if state is None
        else [
            getattr(state, name)
            for name in (
                "version",
                "lifecycle",
                "workers",
                "topics",
                "name",
                "incarnation",
                "limits",
            )
        ]
    )
