"""What is kept in PostgreSQL, in memory: events, the read model of tenants, terms. For tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID, uuid4

from tenantry.domain import names
from tenantry.domain.events import Event
from tenantry.domain.tenant import TenantState, fold
from tenantry.journal.codec import CODEC, decode_metadata, encode_metadata, tenant_events
from tenantry.journal.listener import AppendSignal
from tenantry.journal.port import (
    EventsArchivedError,
    Expected,
    Metadata,
    RecordedEvent,
    Snapshot,
    VersionConflictError,
)
from tenantry.journal.tenants import TENANT_CATEGORY, snapshot_of
from tenantry.projections.port import Found
from tenantry.projections.tenants import TenantsPast
from tenantry.terms.port import Holder, Standing

_NOBODY = Holder(instance="", host="", pid=0)


class Follower(Protocol):
    """What is brought forward together with every append."""

    def apply(self, recorded: Sequence[RecordedEvent]) -> None:
        """Take up what has just been recorded, in order."""


class InMemoryEventStore:
    """An event store (`tenantry.journal.port.EventStore`) that lives as long as its object."""

    def __init__(
        self,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        projections: Sequence[Follower] = (),
    ) -> None:
        self._clock = clock
        self._projections = tuple(projections)
        self._lock = threading.RLock()
        self._events: list[RecordedEvent] = []
        self._ids: set[UUID] = set()
        self._versions: dict[str, int] = {}
        self._snapshots: dict[str, tuple[int, int, str]] = {}
        self._appends = AppendSignal()
        self._archived: list[RecordedEvent] = []
        self._archive = ""

    def append(
        self,
        stream: str,
        events: Sequence[Event],
        *,
        expected: int | Expected,
        metadata: Metadata,
        ids: Sequence[UUID] | None = None,
    ) -> list[RecordedEvent]:
        """See `EventStore.append`."""
        given = [uuid4() for _ in events] if ids is None else list(ids)
        # Through the codec, so that what is read back is what PostgreSQL would give.
        metadata = decode_metadata(encode_metadata(metadata))
        plain = [CODEC.decode(*CODEC.encode(event)) for event in events]
        with self._lock:
            fresh: dict[UUID, Event] = {}
            for one, event in zip(given, plain, strict=True):
                if one not in self._ids:
                    fresh.setdefault(one, event)
            if not fresh:
                return []
            actual = self._versions.get(stream, 0)
            if not isinstance(expected, Expected) and expected != actual:
                raise VersionConflictError(stream, expected, actual)
            moment = self._clock().astimezone(UTC)
            if self._events:
                moment = max(moment, self._events[-1].recorded_at)
            recorded = [
                RecordedEvent(
                    position=len(self._archived) + len(self._events) + number,
                    stream=stream,
                    version=actual + number,
                    id=one,
                    event=event,
                    metadata=metadata,
                    recorded_at=moment,
                )
                for number, (one, event) in enumerate(fresh.items(), 1)
            ]
            self._events += recorded
            self._ids.update(fresh)
            self._versions[stream] = recorded[-1].version
            for projection in self._projections:
                projection.apply(recorded)
        self._appends.notify(recorded[-1].position)
        return recorded

    def read_stream(
        self, stream: str, *, after: int = 0, limit: int | None = None
    ) -> list[RecordedEvent]:
        """See `EventStore.read_stream`."""
        with self._lock:
            self._refuse_archived(lambda one: one.stream == stream and one.version > after)
            return [one for one in self._events if one.stream == stream and one.version > after][
                :limit
            ]

    def read_all(
        self, *, after: int = 0, limit: int = 500, categories: Sequence[str] | None = None
    ) -> list[RecordedEvent]:
        """See `EventStore.read_all`."""
        with self._lock:
            self._refuse_archived(lambda one: one.position > after)
            return [
                one
                for one in self._beyond(after)
                if categories is None or names.category(one.stream) in categories
            ][:limit]

    def read_tenant(
        self, tenant_id: str, *, after: int = 0, limit: int = 500
    ) -> list[RecordedEvent]:
        """See `EventStore.read_tenant`."""
        streams = names.streams_of(tenant_id)
        with self._lock:
            self._refuse_archived(lambda one: one.position > after and one.stream in streams)
            return [one for one in self._beyond(after) if one.stream in streams][:limit]

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """See `EventStore.save_snapshot`."""
        new = snapshot.schema_version, snapshot.version, json.dumps(snapshot.data)
        with self._lock:
            kept = self._snapshots.get(snapshot.stream)
            if kept is None or kept[:2] <= new[:2]:
                self._snapshots[snapshot.stream] = new

    def load_snapshot(self, stream: str) -> Snapshot | None:
        """See `EventStore.load_snapshot`."""
        with self._lock:
            kept = self._snapshots.get(stream)
        if kept is None:
            return None
        schema_version, version, data = kept
        return Snapshot(
            stream=stream, version=version, schema_version=schema_version, data=json.loads(data)
        )

    def load_base(self, stream: str) -> Snapshot | None:
        """See `EventStore.load_base`."""
        with self._lock:
            gone = [one for one in self._archived if one.stream == stream]
        if not gone or names.category(stream) != TENANT_CATEGORY:
            return None
        state = fold(tenant_events(gone))
        return None if state is None else snapshot_of(state)

    def wait_for_events(self, after: int, timeout: float) -> bool:
        """See `EventStore.wait_for_events`."""
        return self._appends.wait(after, timeout)

    def archive(self, up_to: int, place: str) -> None:
        """Take the events up to a position out of it."""
        with self._lock:
            self._archive = place
            gone, self._events = self._events, self._beyond(up_to)
            self._archived += [one for one in gone if one.position <= up_to]

    def _beyond(self, after: int) -> list[RecordedEvent]:
        return self._events[max(0, after - len(self._archived)) :]

    def _refuse_archived(self, asked: Callable[[RecordedEvent], bool]) -> None:
        if gone := [one for one in self._archived if asked(one)]:
            raise EventsArchivedError(gone[-1].position, gone[-1].recorded_at, [self._archive])


class InMemoryTenantProjection:
    """The tenants' states, brought forward by the store it is given to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[str, TenantState] = {}

    def apply(self, recorded: Sequence[RecordedEvent]) -> None:
        """Take up what has just been recorded, in order."""
        with self._lock:
            for one in recorded:
                if names.category(one.stream) == TENANT_CATEGORY:
                    key = one.event.tenant_id
                    state = fold(tenant_events([one]), self._states.get(key))
                    if state is not None:
                        self._states[key] = state

    def states(self) -> dict[str, TenantState]:
        """Give every tenant's state by id, deleted ones too."""
        with self._lock:
            return dict(self._states)


class InMemoryTenantDirectory(TenantsPast):
    """A directory (`tenantry.projections.port.TenantDirectory`) of tenants in memory."""

    def __init__(self, store: InMemoryEventStore, projection: InMemoryTenantProjection) -> None:
        super().__init__(store)
        self._projection = projection

    def get(self, tenant_id: str) -> TenantState | None:
        """See `TenantDirectory.get`."""
        return self._projection.states().get(tenant_id)

    def page(self, *, after: str | None = None, limit: int = 50) -> list[TenantState]:
        """See `TenantDirectory.page`."""
        existing = sorted(
            (one for one in self._projection.states().values() if one.exists),
            key=lambda one: one.tenant_id,
        )
        return [one for one in existing if after is None or one.tenant_id > after][:limit]

    def search(self, text: str) -> list[Found]:
        """See `TenantDirectory.search`."""
        return [
            Found(one.tenant_id, one.name, one.lifecycle.value)
            for one in self.page(limit=len(self._projection.states()))
            if text.lower() in f"{one.tenant_id}\n{one.name}".lower()
        ]

    def several(self, tenant_ids: Sequence[str]) -> list[TenantState]:
        """See `TenantDirectory.several`."""
        states = self._projection.states()
        return [states[one] for one in tenant_ids if one in states]


class InMemoryTerms:
    """The terms of one scope (`tenantry.terms.port.Terms`), shared by whoever has the object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._standing = Standing(
            number=0, beat=0, held=False, holder=_NOBODY, since=datetime.now(UTC)
        )

    def look(self) -> Standing:
        """See `Terms.look`."""
        return self._standing

    def take(self, seen: Standing, by: Holder) -> Standing | None:
        """See `Terms.take`."""
        with self._lock:
            now = self._standing
            if (now.number, now.beat) != (seen.number, seen.beat):
                return None
            self._standing = Standing(
                number=now.number + 1,
                beat=now.beat + 1,
                held=True,
                holder=by,
                since=datetime.now(UTC),
            )
            return self._standing

    def renew(self, number: int) -> bool:
        """See `Terms.renew`."""
        with self._lock:
            mine = self._standing.held and self._standing.number == number
            if mine:
                self._standing = replace(self._standing, beat=self._standing.beat + 1)
            return mine

    def release(self, number: int) -> None:
        """See `Terms.release`."""
        with self._lock:
            if self._standing.held and self._standing.number == number:
                self._standing = replace(self._standing, beat=self._standing.beat + 1, held=False)
