"""Both event stores, and both read models, do what a few lines of plain Python do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tenantry.database.pool import Database
from tenantry.domain import names
from tenantry.domain.commands import Command, DomainError
from tenantry.domain.events import Event, TenantPaused
from tenantry.domain.tenant import TenantState, decide, fold
from tenantry.journal.codec import tenant_events
from tenantry.journal.port import (
    ANY,
    EventStore,
    Expected,
    JournalUnavailableError,
    Metadata,
    RecordedEvent,
    Snapshot,
    VersionConflictError,
)
from tenantry.journal.postgres import PostgresEventStore
from tenantry.journal.tenants import load_tenant
from tenantry.projections.port import TenantDirectory
from tenantry.projections.tenants import PostgresTenantDirectory, TenantProjection
from tests.depth import examples
from tests.fakes.stores import InMemoryEventStore, InMemoryTenantDirectory, InMemoryTenantProjection
from tests.property.strategies import commands, events

METADATA = Metadata(actor="model", correlation_id="one")
TENANTS = ["a", "b", "a-b"]
# Streams that no projection follows take any event; tenants' lives only what `decide` allows.
STREAMS = ["ops-1", "ops-2", "other-1-2", *map(names.dead_letter_journal_stream, TENANTS)]


class JournalModel(RuleBasedStateMachine):
    """A list of `(position, stream, version, id, event)` is the model; subclasses bring a store."""

    store: EventStore
    directory: TenantDirectory

    first_error: Exception | None = None

    used_ids = Bundle("used_ids")

    @initialize()
    def begin(self) -> None:
        self.model: list[tuple[int, str, int, UUID, Event]] = []
        self.snapshots: dict[str, Snapshot] = {}
        self.ids = 0
        self.open()

    def open(self) -> None:
        raise NotImplementedError

    def version(self, stream: str) -> int:
        return sum(1 for one in self.model if one[1] == stream)

    def same(self, got: Sequence[RecordedEvent], wanted: Sequence[tuple[Any, ...]]) -> None:
        assert [(one.position, one.stream, one.version, one.id, one.event) for one in got] == list(
            wanted
        )
        assert all(one.metadata == METADATA for one in got)

    @rule(
        target=used_ids,
        stream=st.sampled_from(STREAMS),
        batch=st.lists(events, max_size=4),
        ahead=st.sampled_from([None, 0, 0, 0, 1, -1]),
        repeated=st.lists(used_ids, max_size=2),
    )
    def append(
        self, stream: str, batch: list[Event], ahead: int | None, repeated: list[UUID]
    ) -> Any:
        # Numbered, not random: an example that is run again is the same.
        new = [UUID(int=self.ids + number) for number, _ in enumerate(batch, 1)]
        self.ids += len(batch)
        ids = (repeated + new)[: len(batch)]
        expected: int | Expected = ANY if ahead is None else self.version(stream) + ahead
        known = {one[3] for one in self.model}
        fresh: dict[UUID, Event] = {}
        for one, event in zip(ids, batch, strict=True):
            if one not in known:
                fresh.setdefault(one, event)
        if fresh and expected not in (ANY, self.version(stream)):
            with pytest.raises(VersionConflictError) as caught:
                self.store.append(stream, batch, expected=expected, metadata=METADATA, ids=ids)
            assert caught.value.actual == self.version(stream)
            return multiple()
        wanted = [
            (len(self.model) + number, stream, self.version(stream) + number, one, event)
            for number, (one, event) in enumerate(fresh.items(), 1)
        ]
        got = self.store.append(stream, batch, expected=expected, metadata=METADATA, ids=ids)
        self.same(got, wanted)
        self.model += wanted
        return multiple(*fresh)

    @rule(data=st.data(), tenant_id=st.sampled_from(TENANTS))
    def command(self, data: st.DataObject, tenant_id: str) -> None:
        state = load_tenant(self.store, tenant_id)
        wish: Command = data.draw(commands(tenant_id))
        try:
            happened = decide(state, wish)
        except DomainError:
            return
        stream = names.journal_stream(tenant_id)
        expected = self.version(stream)
        recorded = self.store.append(stream, happened, expected=expected, metadata=METADATA)
        wanted = [
            (len(self.model) + number, stream, expected + number, one.id, event)
            for number, (one, event) in enumerate(zip(recorded, happened, strict=True), 1)
        ]
        self.same(recorded, wanted)
        self.model += wanted

    @rule(tenant_id=st.sampled_from(TENANTS), behind=st.integers(1, 3))
    def stale_command(self, tenant_id: str, behind: int) -> None:
        stream = names.journal_stream(tenant_id)
        if self.version(stream) < behind:
            return
        with pytest.raises(VersionConflictError):
            self.store.append(
                stream,
                [TenantPaused(tenant_id=tenant_id)],
                expected=self.version(stream) - behind,
                metadata=METADATA,
            )

    @rule(
        stream=st.sampled_from(STREAMS),
        after=st.integers(0, 8),
        limit=st.none() | st.integers(1, 5),
    )
    def read_stream(self, stream: str, after: int, limit: int | None) -> None:
        wanted = [one for one in self.model if one[1] == stream and one[2] > after][:limit]
        self.same(self.store.read_stream(stream, after=after, limit=limit), wanted)

    @rule(
        after=st.integers(0, 20),
        limit=st.integers(1, 10),
        categories=st.none()
        | st.lists(st.sampled_from(["tenant", "ops", "other", "dead_letters", "none"]), max_size=3),
    )
    def read_all(self, after: int, limit: int, categories: list[str] | None) -> None:
        wanted = [
            one
            for one in self.model
            if one[0] > after and (categories is None or names.category(one[1]) in categories)
        ][:limit]
        self.same(self.store.read_all(after=after, limit=limit, categories=categories), wanted)

    @rule(tenant_id=st.sampled_from(TENANTS), after=st.integers(0, 20), limit=st.integers(1, 10))
    def read_tenant(self, tenant_id: str, after: int, limit: int) -> None:
        streams = (f"tenant-{tenant_id}", f"dead_letters-{tenant_id}")
        wanted = [one for one in self.model if one[0] > after and one[1] in streams][:limit]
        self.same(self.store.read_tenant(tenant_id, after=after, limit=limit), wanted)

    @rule(stream=st.sampled_from(STREAMS), version=st.integers(1, 5), schema=st.integers(1, 2))
    def save_snapshot(self, stream: str, version: int, schema: int) -> None:
        new = Snapshot(
            stream=stream, version=version, schema_version=schema, data={"v": [version, "é"]}
        )
        kept = self.snapshots.get(stream)
        self.store.save_snapshot(new)
        if kept is None or (kept.schema_version, kept.version) <= (schema, version):
            self.snapshots[stream] = new
        assert self.store.load_snapshot(stream) == self.snapshots[stream]

    def teardown(self) -> None:
        error = sys.exception()
        if isinstance(error, Exception) and type(self).first_error is None:
            type(self).first_error = error

    @invariant()
    def the_head_is_known(self) -> None:
        if self.model:
            assert self.store.wait_for_events(len(self.model) - 1, 0) is True
        assert self.store.wait_for_events(len(self.model), 0) is False

    @invariant()
    def the_read_model_is_the_fold_of_the_journal(self) -> None:
        existing: list[TenantState] = []
        for tenant_id in TENANTS:
            stream = names.journal_stream(tenant_id)
            state = fold(tenant_events(self.store.read_stream(stream)))
            assert self.directory.get(tenant_id) == state
            assert self.directory.as_of_version(tenant_id, self.version(stream)) == state
            if state is not None and state.exists:
                existing.append(state)
        assert self.directory.page() == sorted(existing, key=lambda one: one.tenant_id)


class InMemoryModel(JournalModel):
    def open(self) -> None:
        projection = InMemoryTenantProjection()
        self.store = InMemoryEventStore(projections=[projection])
        self.directory = InMemoryTenantDirectory(self.store, projection)


EMPTY = """
SET LOCAL session_replication_role = replica;
TRUNCATE tenantry.events, tenantry.snapshots, tenantry.tenants, tenantry.projection_checkpoints;
UPDATE tenantry.journal_head SET position = 0
"""
"""Past the triggers that keep a journal as it is. A database for each example would cost more than
all that is tried in it."""


class PostgresModel(JournalModel):
    database: Database

    def open(self) -> None:
        with self.database.connection() as connection, connection.transaction():
            connection.execute(EMPTY)
        self.projection = TenantProjection()
        self.store = PostgresEventStore(self.database, projections=[self.projection])
        self.directory = PostgresTenantDirectory(self.database, self.store)

    @rule()
    def rebuild(self) -> None:
        self.projection.rebuild(self.database)
        assert self.projection.ensure_current(self.database) is False


COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


def hold(model: type[JournalModel], **depth: int) -> None:
    """Hold a store against the model."""
    try:
        run_state_machine_as_test(model, settings=settings(**depth, **COMMON))
    except Flaky as repetition:
        # What failed once and then went well: Hypothesis speaks of the repetition alone, and where
        # an example was run on, of a strategy that had changed.
        raise model.first_error or repetition from repetition


def test_the_store_in_memory_is_the_model() -> None:
    hold(type("Model", (InMemoryModel,), {}), max_examples=examples(8, 100), stateful_step_count=40)


def test_the_store_on_postgresql_is_the_model(database: Database) -> None:
    hold(
        type("Model", (PostgresModel,), {"database": database}),
        max_examples=examples(4, 40),
        stateful_step_count=30,
    )


class FailsOnce(InMemoryModel):
    """A store whose database is away for a moment, at the beginning or in between."""

    opened = 0
    fails_at = 1

    def open(self) -> None:
        super().open()
        type(self).opened += 1
        if self.opened == self.fails_at:
            raise JournalUnavailableError("away for a moment")


@pytest.mark.parametrize("example", [1, 2])
def test_what_fails_once_is_told_as_it_was(example: int) -> None:
    with pytest.raises(JournalUnavailableError, match="away for a moment"):
        hold(
            type("Model", (FailsOnce,), {"fails_at": example}),
            max_examples=3,
            stateful_step_count=5,
        )
