"""What the directory of tenants promises, in memory and on PostgreSQL, beside its event store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from tenantry.actors.tenant_aggregate import SNAPSHOT_EVERY, snapshot_due
from tenantry.database.pool import Database
from tenantry.domain import names
from tenantry.domain.commands import (
    Command,
    ConfirmDeleted,
    ConfirmProvisioned,
    CreateTenant,
    PauseTenant,
    RequestDeletion,
    ResizeWorkers,
)
from tenantry.domain.events import MessageDeadLettered
from tenantry.domain.tenant import Lifecycle, TenantState, decide, fold
from tenantry.journal.codec import tenant_events
from tenantry.journal.port import ANY, EventStore, JournalError, Metadata
from tenantry.journal.postgres import PostgresEventStore
from tenantry.journal.tenants import load_tenant, snapshot_of
from tenantry.projections.port import TenantDirectory
from tenantry.projections.tenants import PostgresTenantDirectory, TenantProjection
from tests.fakes.stores import InMemoryEventStore, InMemoryTenantDirectory, InMemoryTenantProjection


@dataclass
class Tenants:
    """A store with its directory, and a way to carry out commands on them."""

    store: EventStore
    directory: TenantDirectory

    def do(self, command: Command) -> TenantState:
        state = load_tenant(self.store, command.tenant_id)
        version = 0 if state is None else state.version
        events = decide(state, command)
        recorded = self.store.append(
            names.journal_stream(command.tenant_id),
            events,
            expected=version,
            metadata=Metadata(actor="test"),
        )
        folded = fold(tenant_events(recorded), state)
        assert folded is not None
        return folded

    def create(self, tenant_id: str) -> TenantState:
        self.do(CreateTenant(tenant_id=tenant_id, name=f"Tenant {tenant_id}", workers=3))
        return self.do(ConfirmProvisioned(tenant_id=tenant_id))

    def delete(self, tenant_id: str) -> TenantState:
        self.do(RequestDeletion(tenant_id=tenant_id))
        return self.do(ConfirmDeleted(tenant_id=tenant_id, queued=1, stored=2))


@pytest.fixture(params=["memory", "postgres"])
def tenants(request: pytest.FixtureRequest) -> Iterator[Tenants]:
    if request.param == "memory":
        projection = InMemoryTenantProjection()
        store = InMemoryEventStore(projections=[projection])
        yield Tenants(store, InMemoryTenantDirectory(store, projection))
    else:
        database: Database = request.getfixturevalue("database")
        journal = PostgresEventStore(database, projections=[TenantProjection()])
        yield Tenants(journal, PostgresTenantDirectory(database, journal))


def test_a_tenant_is_there_as_soon_as_its_command_is_answered(tenants: Tenants) -> None:
    assert tenants.directory.get("acme") is None
    state = tenants.create("acme")
    assert tenants.directory.get("acme") == state
    assert state.lifecycle is Lifecycle.ACTIVE
    assert load_tenant(tenants.store, "acme") == state


def test_a_deleted_tenant_is_found_but_not_listed(tenants: Tenants) -> None:
    tenants.create("acme")
    tenants.create("keep")
    gone = tenants.delete("acme")
    assert tenants.directory.get("acme") == gone
    assert [one.tenant_id for one in tenants.directory.page()] == ["keep"]


def test_an_id_can_be_used_again_after_deletion(tenants: Tenants) -> None:
    tenants.create("acme")
    tenants.delete("acme")
    again = tenants.create("acme")
    assert again.version == 6
    assert tenants.directory.get("acme") == again
    assert [one.tenant_id for one in tenants.directory.page()] == ["acme"]


def test_the_list_is_ordered_by_id_and_paged(tenants: Tenants) -> None:
    ids = ["b", "a-1", "a", "1", "a1", "10", "2"]
    for one in ids:
        tenants.create(one)
    listed: list[str] = []
    while page := tenants.directory.page(after=listed[-1] if listed else None, limit=3):
        assert len(page) <= 3
        listed += [one.tenant_id for one in page]
    assert listed == sorted(ids)


def test_tenants_are_found_by_a_part_of_their_id_or_name_whatever_its_case(
    tenants: Tenants,
) -> None:
    for one in ("b", "a-1", "acme"):
        tenants.create(one)
    gone = tenants.create("gone")
    tenants.delete("gone")
    find, several = tenants.directory.search, tenants.directory.several
    assert [one.tenant_id for one in find("")] == ["a-1", "acme", "b"]
    assert find("NANT A-") == [("a-1", "Tenant a-1", "active")]
    assert find("%") == find("gone") == []
    assert [one.tenant_id for one in several(["gone", "b", "nobody", "a-1"])] == [
        "gone",
        "b",
        "a-1",
    ]
    assert several([]) == []
    assert several(["gone"])[0].version == gone.version + 2


def test_the_past_is_told_by_version(tenants: Tenants) -> None:
    tenants.create("acme")
    tenants.do(ResizeWorkers(tenant_id="acme", workers=9))
    paused = tenants.do(PauseTenant(tenant_id="acme"))
    told = [tenants.directory.as_of_version("acme", version) for version in range(6)]
    assert told[0] is None
    assert [one.lifecycle.value for one in told[1:5] if one] == [
        "provisioning",
        "active",
        "active",
        "paused",
    ]
    assert [one.workers for one in told[1:5] if one] == [3, 3, 9, 9]
    assert told[4] == paused
    assert told[5] is None
    assert tenants.directory.as_of_version("nobody", 1) is None


def test_the_past_is_told_by_time(tenants: Tenants) -> None:
    tenants.create("acme")
    paused = tenants.do(PauseTenant(tenant_id="acme"))
    times = [one.recorded_at for one in tenants.store.read_stream("tenant-acme")]
    hour = timedelta(hours=1)
    assert tenants.directory.as_of_time("acme", times[0] - hour) is None
    assert tenants.directory.as_of_time("acme", times[-1]) == paused
    assert tenants.directory.as_of_time("acme", times[-1] + hour) == paused
    for number, at in enumerate(times, 1):
        state = tenants.directory.as_of_time("acme", at)
        assert state is not None
        assert state.version >= number
    assert tenants.directory.as_of_time("nobody", times[0]) is None
    with pytest.raises(ValueError, match="zone"):
        tenants.directory.as_of_time("acme", times[0].replace(tzinfo=None))


def test_dead_letters_change_no_tenant(tenants: Tenants) -> None:
    state = tenants.create("acme")
    letter = MessageDeadLettered(
        tenant_id="acme",
        message_id="7",
        topic="events",
        partition=0,
        reason="not-json",
        error="",
        first_error="",
        attempts=1,
        size=3,
    )
    tenants.store.append(
        names.dead_letter_journal_stream("acme"),
        [letter],
        expected=ANY,
        metadata=Metadata(actor="worker"),
    )
    assert tenants.directory.get("acme") == state
    assert [one.event for one in tenants.store.read_tenant("acme")][-1] == letter


def test_a_dead_letter_in_a_life_is_an_error_not_a_guess(tenants: Tenants) -> None:
    tenants.create("acme")
    recorded = tenants.store.read_stream("tenant-acme")
    letter = MessageDeadLettered(
        tenant_id="acme",
        message_id=None,
        topic="t",
        partition=0,
        reason="r",
        error="e",
        first_error="e",
        attempts=1,
        size=0,
    )
    with pytest.raises(JournalError):
        list(tenant_events([replace(recorded[0], event=letter)]))


def test_a_tenant_is_loaded_from_its_snapshot_and_what_came_after(tenants: Tenants) -> None:
    state = tenants.create("acme")
    workers = [1, 2]
    snapshots = 0
    for number in range(2 * SNAPSHOT_EVERY):
        before = state.version
        state = tenants.do(ResizeWorkers(tenant_id="acme", workers=workers[number % 2]))
        if snapshot_due(before, state.version):
            tenants.store.save_snapshot(snapshot_of(state))
            snapshots += 1
    assert snapshots == 2
    kept = tenants.store.load_snapshot("tenant-acme")
    assert kept is not None
    assert kept.version == 200
    assert load_tenant(tenants.store, "acme") == state
    assert fold(tenant_events(tenants.store.read_stream("tenant-acme"))) == state
    for version in (1, 150, 200, 201, state.version):
        told = tenants.directory.as_of_version("acme", version)
        assert told is not None
        assert told.version == version


def test_a_snapshot_of_another_shape_is_not_used(tenants: Tenants) -> None:
    state = tenants.create("acme")
    good = snapshot_of(state)
    for bad in (
        replace(good, schema_version=99, data={"what": "ever"}),
        replace(good, schema_version=99, version=50),
        replace(good, data={}),
        replace(good, data={**good.data, "lifecycle": "asleep"}),
        replace(good, version=1),
    ):
        tenants.store.save_snapshot(bad)
        assert load_tenant(tenants.store, "acme") == state
