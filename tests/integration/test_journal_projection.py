"""The read model of tenants on PostgreSQL: in step with the journal, and rebuildable from it."""

from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tenantry.database.loop import LoopQueries
from tenantry.database.migrations import migrate, migrations
from tenantry.database.pool import Database
from tenantry.domain import names
from tenantry.domain.commands import (
    AddTopics,
    Command,
    ConfirmDeleted,
    ConfirmProvisioned,
    CreateTenant,
    DomainError,
    ParkTenant,
    PauseTenant,
    RequestDeletion,
    ResizeWorkers,
    ResumeTenant,
)
from tenantry.domain.tenant import Lifecycle, TenantState, decide
from tenantry.journal.port import JournalUnavailableError, Metadata, VersionConflictError
from tenantry.journal.postgres import PostgresEventStore
from tenantry.journal.tenants import load_tenant, snapshot_of
from tenantry.projections import tenants
from tenantry.projections.tenants import (
    PostgresLoopDirectory,
    PostgresTenantDirectory,
    TenantProjection,
)
from tests.waiting import DEADLINE

METADATA = Metadata(actor="test")

DELETING = 23
"""The migration before which a tenant that is being deleted was called draining."""

AS_IT_WAS_WRITTEN = """
UPDATE tenantry.tenants
SET lifecycle = 'draining', state = jsonb_set(state, '{lifecycle}', '"draining"');
UPDATE tenantry.snapshots SET data = jsonb_set(data, '{lifecycle}', '"draining"');
"""


async def on_loop(database: Database, *tenant_ids: str) -> list[TenantState | None]:
    directory = PostgresLoopDirectory(database, LoopQueries(database))
    return [await directory.get(one) for one in tenant_ids]


def rows(database: Database) -> list[tuple[object, ...]]:
    with database.connection() as connection:
        return connection.execute("SELECT * FROM tenantry.tenants ORDER BY id").fetchall()


def do(store: PostgresEventStore, command: Command) -> None:
    state = load_tenant(store, command.tenant_id)
    try:
        events = decide(state, command)
    except DomainError:
        return
    stream = names.journal_stream(command.tenant_id)
    version = 0 if state is None else state.version
    store.append(stream, events, expected=version, metadata=METADATA)


def as_an_older_program_appends(store: PostgresEventStore) -> None:
    """Have a store append without what the function has been told since there are parts."""
    append = store._sql["append"].replace(b",\n    %(new_ids)s::boolean", b"")
    assert b"new_ids" not in append
    store._sql = {**store._sql, "append": append}


def some_command(chance: random.Random, tenant_id: str) -> Command:
    return chance.choice(
        [
            CreateTenant(tenant_id=tenant_id, name="Ünï ☃", workers=3, topics=("a",)),
            ConfirmProvisioned(tenant_id=tenant_id),
            ConfirmProvisioned(tenant_id=tenant_id),
            ResizeWorkers(tenant_id=tenant_id, workers=chance.randint(1, 64)),
            PauseTenant(tenant_id=tenant_id),
            ParkTenant(tenant_id=tenant_id, reason="it kept failing\n\0"),
            ResumeTenant(tenant_id=tenant_id),
            AddTopics(tenant_id=tenant_id, topics=(f"t{chance.randint(1, 5)}",)),
            RequestDeletion(tenant_id=tenant_id, retain=True),
            ConfirmDeleted(tenant_id=tenant_id, queued=0, stored=0),
        ]
    )


def live(store: PostgresEventStore, commands: int, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(commands):
        do(store, some_command(chance, f"t{chance.randint(1, 12)}"))


def test_rebuilding_gives_the_same_rows(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenants, "BATCH", 7)
    projection = TenantProjection()
    store = PostgresEventStore(database, projections=[projection])
    projection.ensure_current(database)
    live(store, 300, seed=1)
    before = rows(database)
    assert len(before) > 5
    assert projection.rebuild(database) == len(before)
    assert rows(database) == before
    assert projection.ensure_current(database) is False


def test_a_spoilt_read_model_is_made_good_by_rebuilding(database: Database) -> None:
    projection = TenantProjection()
    store = PostgresEventStore(database, projections=[projection])
    live(store, 100, seed=2)
    good = rows(database)
    with database.connection() as connection:
        connection.execute("DELETE FROM tenantry.tenants WHERE id < 't5'")
        connection.execute("UPDATE tenantry.tenants SET version = 99, state = '{}'")
    projection.rebuild(database)
    assert rows(database) == good


def test_what_was_appended_without_the_projection_is_noticed_at_the_start(
    database: Database,
) -> None:
    projection = TenantProjection()
    assert projection.ensure_current(database) is True
    assert projection.ensure_current(database) is False
    live(PostgresEventStore(database), 40, seed=3)
    # Appends with the projection don't hide that events before it were missed.
    live(PostgresEventStore(database, projections=[projection]), 40, seed=4)
    assert projection.ensure_current(database) is True
    kept = rows(database)
    projection.rebuild(database)
    assert rows(database) == kept


def test_a_tenant_behind_its_stream_is_folded_anew(database: Database) -> None:
    bare = PostgresEventStore(database)
    do(bare, CreateTenant(tenant_id="acme", name="Acme", workers=3))
    do(bare, ConfirmProvisioned(tenant_id="acme"))
    projected = PostgresEventStore(database, projections=[TenantProjection()])
    directory = PostgresTenantDirectory(database, projected)
    assert directory.get("acme") is None
    do(projected, ResizeWorkers(tenant_id="acme", workers=9))
    assert directory.get("acme") == load_tenant(bare, "acme")
    do(bare, PauseTenant(tenant_id="acme"))
    do(projected, ResumeTenant(tenant_id="acme"))
    assert directory.get("acme") == load_tenant(bare, "acme")


def test_an_event_loop_reads_the_same_of_each_tenant_after_each_change(
    database: Database,
) -> None:
    store = PostgresEventStore(database, projections=[TenantProjection()])
    directory = PostgresTenantDirectory(database, store)
    live(store, 100, seed=5)
    for tenant in (one.tenant_id for one in directory.page()):
        for workers in (7, 8):
            do(store, ResizeWorkers(tenant_id=tenant, workers=workers))
            (found, none) = asyncio.run(on_loop(database, tenant, "nobody"))
            assert found == directory.get(tenant) == load_tenant(store, tenant)
            assert none is None


def test_an_event_loop_is_told_that_the_database_is_away() -> None:
    with pytest.raises(JournalUnavailableError, match="connection refused"):
        asyncio.run(on_loop(Database("postgresql://nobody@127.0.0.1:1/nowhere"), "acme"))


def test_an_event_loop_waits_for_no_silent_database(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenants, "ANSWER_SECONDS", 0.2)
    with database.connection() as connection, connection.transaction():
        connection.execute("LOCK TABLE tenantry.tenants")
        with pytest.raises(JournalUnavailableError, match=r"no answer for 0\.2 s"):
            asyncio.run(on_loop(database, "acme"))
    monkeypatch.undo()
    assert asyncio.run(on_loop(database, "acme")) == [None]


def test_a_row_of_another_shape_is_folded_anew(database: Database) -> None:
    store = PostgresEventStore(database, projections=[TenantProjection()])
    do(store, CreateTenant(tenant_id="acme", name="Acme", workers=3))
    with database.connection() as connection:
        connection.execute('UPDATE tenantry.tenants SET state = \'{"colour": "red"}\'')
    do(store, ConfirmProvisioned(tenant_id="acme"))
    assert PostgresTenantDirectory(database, store).get("acme") == load_tenant(store, "acme")


def test_a_tenant_whose_deletion_an_older_program_began_is_deleting(
    empty_database_url: str,
) -> None:
    migrate(empty_database_url, known=[one for one in migrations() if one.number < DELETING])
    with closing(Database(empty_database_url)) as database:
        database.open()
        projection = TenantProjection()
        store = PostgresEventStore(database, projections=[projection])
        as_an_older_program_appends(store)
        do(store, CreateTenant(tenant_id="acme", name="Acme", workers=3))
        do(store, RequestDeletion(tenant_id="acme", retain=True))
        state = load_tenant(store, "acme")
        assert state is not None
        assert state.lifecycle is Lifecycle.DELETING
        store.save_snapshot(snapshot_of(state))
        expected = rows(database)
        with database.connection() as connection:
            connection.execute(AS_IT_WAS_WRITTEN)
        # As a daemon that stands by reads it, before its older leader has ended.
        directory = PostgresTenantDirectory(database, store)
        assert directory.get("acme") == load_tenant(store, "acme") == state
        assert migrate(database)[0].number == DELETING
        assert rows(database) == expected
        assert store.load_snapshot("tenant-acme") == snapshot_of(state)
        assert projection.rebuild(database) == 1
        assert rows(database) == expected


def test_appends_during_a_rebuild_are_neither_lost_nor_doubled(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenants, "BATCH", 5)
    projection = TenantProjection()
    store = PostgresEventStore(database, projections=[projection])
    directory = PostgresTenantDirectory(database, store)
    projection.ensure_current(database)
    live(store, 60, seed=5)
    done = threading.Event()

    def write(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            try:
                do(store, some_command(chance, f"t{chance.randint(1, 12)}"))
            except VersionConflictError:
                continue

    def rebuild() -> int:
        rebuilds = 0
        while not done.is_set() or rebuilds == 0:
            projection.rebuild(database)
            rebuilds += 1
        return rebuilds

    with ThreadPoolExecutor(4) as pool:
        rebuilding = pool.submit(rebuild)
        for writing in [pool.submit(write, seed) for seed in (6, 7, 8)]:
            writing.result(timeout=DEADLINE)
        done.set()
        assert rebuilding.result(timeout=DEADLINE) > 0
    for number in range(1, 13):
        assert directory.get(f"t{number}") == load_tenant(store, f"t{number}")
    kept = rows(database)
    projection.rebuild(database)
    assert rows(database) == kept


def test_readers_see_the_old_rows_until_the_new_ones_are_complete(database: Database) -> None:
    projection = TenantProjection()
    store = PostgresEventStore(database, projections=[projection])
    live(store, 60, seed=9)
    directory = PostgresTenantDirectory(database, store)
    listed = directory.page(limit=100)
    assert listed
    done = threading.Event()

    def read() -> bool:
        steady = True
        while not done.is_set():
            steady = steady and directory.page(limit=100) == listed
        return steady

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for _ in range(20):
            projection.rebuild(database)
        done.set()
        assert reading.result(timeout=DEADLINE) is True


def test_an_absent_database_is_told_as_such(database: Database) -> None:
    store = PostgresEventStore(database)
    directory = PostgresTenantDirectory(database, store)
    database.close()
    for call in (
        lambda: directory.get("acme"),
        directory.page,
        lambda: directory.as_of_version("acme", 1),
        lambda: TenantProjection().ensure_current(database),
    ):
        with pytest.raises(JournalUnavailableError):
            call()
