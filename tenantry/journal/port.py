"""The port of the event store. One contract suite holds every adapter to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Final, Protocol
from uuid import UUID, uuid4

from tenantry.domain.events import Event
from tenantry.unavailable import UnavailableError

_NAMED: Final = 3


class JournalError(Exception):
    """The journal could not be read or written."""


class JournalUnavailableError(JournalError, UnavailableError):
    """The journal can't be reached now; the same call may succeed later."""


class VersionConflictError(JournalError):
    """The stream is not at the expected version: another writer appended first."""

    def __init__(self, stream: str, expected: int, actual: int) -> None:
        super().__init__(f"stream {stream!r} is at version {actual}, not at {expected}")
        self.stream = stream
        self.expected = expected
        self.actual = actual


class EventsArchivedError(JournalError):
    """The requested events were archived, and are not in the journal any more.

    All events up to `position`, recorded by `until` (UTC), are gone; `archives` hold them.
    """

    def __init__(self, position: int, until: datetime, archives: Sequence[str]) -> None:
        named = ", ".join(archives[-_NAMED:])
        rest = f" and {len(archives) - _NAMED} before" if len(archives) > _NAMED else ""
        super().__init__(
            f"events up to position {position}, recorded by {until:%Y-%m-%dT%H:%M:%S.%fZ}, are "
            f"archived: {named}{rest}; `tenantry events --archive` reads them there, "
            "`tenantry events restore` brings them back"
        )
        self.position = position
        self.until = until
        self.archives = tuple(archives)


class UnknownEventError(JournalError):
    """The journal holds an event this program does not know; a newer one wrote it."""


class Expected(Enum):
    """An expected version that is no number."""

    ANY = "any"


ANY: Final = Expected.ANY
"""Append at whatever version the stream has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """The cause of an event, and the request and trace it belongs to.

    `actor` names the person or program (`uid=0`, `supervisor`); `correlation_id` is shared by
    everything one request caused; `causation_id` is the id of the event or command before it.
    `trace_id`, of 32 hexadecimal digits, is the trace in which that was recorded, if it was.
    """

    actor: str
    correlation_id: str = field(default_factory=lambda: uuid4().hex)
    causation_id: str | None = None
    trace_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEvent:
    """An event as the journal holds it.

    `position` (from 1) orders the whole journal without gaps a reader could fall into;
    `version` (from 1, dense) orders the stream. `recorded_at` is UTC.
    """

    position: int
    stream: str
    version: int
    id: UUID
    event: Event
    metadata: Metadata
    recorded_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A folded state as of `version` of a stream; `schema_version` tells the shape of `data`."""

    stream: str
    version: int
    schema_version: int
    data: dict[str, object]


class EventStore(Protocol):
    """An append-only store of events in streams.

    Old events may be archived. A call that would have to return or skip archived events raises
    `EventsArchivedError`.
    """

    def append(
        self,
        stream: str,
        events: Sequence[Event],
        *,
        expected: int | Expected,
        metadata: Metadata,
        ids: Sequence[UUID] | None = None,
    ) -> list[RecordedEvent]:
        """Append all of `events` or none; 0 expects a stream that does not exist yet.

        With `ids`, an event whose id the journal already holds is skipped, so a repeated
        append is harmless; only the newly recorded events are returned.
        Raises `VersionConflictError`, `JournalUnavailableError`.
        """

    def read_stream(
        self, stream: str, *, after: int = 0, limit: int | None = None
    ) -> list[RecordedEvent]:
        """Read a stream's events above version `after`, oldest first; none if it is unknown."""

    def read_all(
        self, *, after: int = 0, limit: int = 500, categories: Sequence[str] | None = None
    ) -> list[RecordedEvent]:
        """Read every stream's events above `after`, in order of position.

        A reader that continues from the last position it saw misses no event, even during appends.
        `categories` keeps only streams of these categories.
        """

    def read_tenant(
        self, tenant_id: str, *, after: int = 0, limit: int = 500
    ) -> list[RecordedEvent]:
        """Read a tenant's events above position `after`: of its life and its dead letters."""

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Save a snapshot, replacing an older one of the same stream."""

    def load_snapshot(self, stream: str) -> Snapshot | None:
        """Return the newest snapshot of a stream, if there is one."""

    def load_base(self, stream: str) -> Snapshot | None:
        """Return the base state of a tenant's archived events; None where none are archived.

        The kept events of its stream continue from that state.
        """

    def wait_for_events(self, after: int, timeout: float) -> bool:
        """Block until the journal goes beyond position `after`, at most `timeout` seconds.

        Returns whether it does.
        """
