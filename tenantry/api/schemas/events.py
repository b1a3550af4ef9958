"""Events of the journal: which are read, and how they are described."""

from __future__ import annotations

from typing import Any, Final, Self

from pydantic import Field

from tenantry.api.schemas.common import EXAMPLE_CURSOR, EXAMPLE_TIME, Answer, PageQuery, Time
from tenantry.journal.codec import CODEC
from tenantry.journal.port import EventsArchivedError, RecordedEvent

MAX_WAIT: Final = 30


class EventsQuery(PageQuery):
    """Which part of the journal, and how long to wait for it."""

    wait: float = Field(
        default=0,
        ge=0,
        le=MAX_WAIT,
        allow_inf_nan=False,
        description="Seconds to wait for an event where there is none yet.",
    )


class JournalEntry(Answer):
    """An event of the journal."""

    position: int = Field(description="Place in the whole journal.", examples=[12])
    stream: str = Field(examples=["tenant-acme"])
    version: int = Field(description="Place in its stream.", examples=[2])
    id: str = Field(examples=["8a9c6f0e-3f5f-4c55-a36e-0d6a3f9f0f11"])
    tenant_id: str | None = Field(
        description="Null for what is about no single one.", examples=["acme"]
    )
    type: str = Field(examples=["WorkersResized"])
    schema_version: int = Field(examples=[1])
    data: dict[str, Any] = Field(examples=[{"tenant_id": "acme", "previous": 3, "workers": 5}])
    actor: str = Field(description="Who caused it.", examples=["uid=0 pid=4711"])
    correlation_id: str
    causation_id: str | None
    trace_id: str | None = Field(
        description="The trace in which it was recorded, if it was.",
        examples=["4bf92f3577b34da6a3ce929d0e0e4736"],
    )
    recorded_at: Time = Field(examples=[EXAMPLE_TIME])

    @classmethod
    def of(cls, recorded: RecordedEvent) -> Self:
        """Describe an event."""
        type_name, schema_version, data = CODEC.encode(recorded.event)
        return cls.made_of(
            recorded,
            id=str(recorded.id),
            tenant_id=recorded.event.tenant_id or None,
            type=type_name,
            schema_version=schema_version,
            data=data,
            actor=recorded.metadata.actor,
            correlation_id=recorded.metadata.correlation_id,
            causation_id=recorded.metadata.causation_id,
            trace_id=recorded.metadata.trace_id,
        )


class ArchivedEvents(Answer):
    """Older events, which are not in the journal any more."""

    until_position: int = Field(description="Where the last of them was.", examples=[1000000])
    until: Time = Field(description="When it was recorded.", examples=[EXAMPLE_TIME])
    archives: list[str] = Field(
        description="Where they are; not for tenants.",
        examples=[["db.example.org:/srv/archive/journal-00001.jsonl.gz"]],
    )

    @classmethod
    def of(cls, error: EventsArchivedError, *, shown: bool) -> Self:
        """Describe what is archived; `shown` says whether its reader may know where."""
        archives = list(error.archives) if shown else []
        return cls(until_position=error.position, until=error.until, archives=archives)


class EventPage(Answer):
    """Events, oldest first; `next_cursor` is always given, to continue when there are more.

    A first page that does not begin with the first event says in `archived` what is missing.
    """

    data: list[JournalEntry]
    next_cursor: str = Field(examples=[EXAMPLE_CURSOR])
    archived: ArchivedEvents | None = None
