"""The event store in memory: for tests, and for trying things out. It forgets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID, uuid4

from tenantry.domain import names
from tenantry.domain.events import Event
from tenantry.journal.bell import Bell
from tenantry.journal.codec import CODEC, decode_metadata, encode_metadata
from tenantry.journal.port import (
    Expected,
    Metadata,
    RecordedEvent,
    Snapshot,
    VersionConflictError,
)


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
        self._bell = Bell()

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
                    position=len(self._events) + number,
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
        self._bell.ring(recorded[-1].position)
        return recorded

    def read_stream(
        self, stream: str, *, after: int = 0, limit: int | None = None
    ) -> list[RecordedEvent]:
        """See `EventStore.read_stream`."""
        with self._lock:
            return [one for one in self._events if one.stream == stream and one.version > after][
                :limit
            ]

    def read_all(
        self, *, after: int = 0, limit: int = 500, categories: Sequence[str] | None = None
    ) -> list[RecordedEvent]:
        """See `EventStore.read_all`."""
        with self._lock:
            return [
                one
                for one in self._events[max(0, after) :]
                if categories is None or names.category(one.stream) in categories
            ][:limit]

    def read_tenant(
        self, tenant_id: str, *, after: int = 0, limit: int = 500
    ) -> list[RecordedEvent]:
        """See `EventStore.read_tenant`."""
        streams = names.journal_stream(tenant_id), names.dead_letter_journal_stream(tenant_id)
        with self._lock:
            return [one for one in self._events[max(0, after) :] if one.stream in streams][:limit]

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

    def wait_for_events(self, after: int, timeout: float) -> bool:
        """See `EventStore.wait_for_events`."""
        return self._bell.wait(after, timeout)
