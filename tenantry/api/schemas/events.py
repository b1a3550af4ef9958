"""Events of the journal and its parts: which are read, archived and restored, and how described."""

from __future__ import annotations

from typing import Any, Final, Self

from pydantic import Field

from tenantry.api.schemas.common import (
    EXAMPLE_CURSOR,
    EXAMPLE_TIME,
    Answer,
    PageQuery,
    StrictInput,
    StrictQuery,
    Time,
)
from tenantry.journal.codec import CODEC
from tenantry.journal.parts import LINES, Part
from tenantry.journal.port import EventsArchivedError, RecordedEvent

MAX_WAIT: Final = 30

MAX_PLACE: Final = 1024
EXAMPLE_DIGEST: Final = "9c3a6e4d8b1f20573e6c9a1d4b7f8e025a6d3c9b1e4f7a80d2c5b8e1f4a7d0c3"
EXAMPLE_PLACE: Final = "db.example.org:/srv/archive/journal-00001.jsonl.gz"
EXAMPLE_LINE: Final = '{"position": 1, "stream": "tenant-acme", "version": 1, "id": "8a9c..."}'


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


class PartShown(Answer):
    """A part of the journal: what was appended from one position to another."""

    part: int = Field(examples=[1])
    first_position: int = Field(examples=[1])
    last_position: int | None = Field(
        description="Null of the open one, which is appended to.", examples=[1000000]
    )
    first_at: Time | None = Field(
        description="When the first event was recorded; null without any.", examples=[EXAMPLE_TIME]
    )
    last_at: Time | None = Field(examples=[EXAMPLE_TIME])
    events: int = Field(examples=[1000000])
    state: str = Field(examples=["kept"], json_schema_extra={"enum": ["open", "kept", "archived"]})
    digest: str | None = Field(
        description="Of an archived one: SHA-256 of the SHA-256 of each line.",
        examples=[EXAMPLE_DIGEST],
    )
    archive: str | None = Field(
        description="Where it was archived to, as whoever did it said.", examples=[EXAMPLE_PLACE]
    )
    archived_at: Time | None = Field(examples=[EXAMPLE_TIME])

    @classmethod
    def of(cls, part: Part) -> Self:
        """Describe a part."""
        kept = "open" if part.open else "kept"
        state = kept if part.archived_at is None else "archived"
        return cls.made_of(part, part=part.number, state=state)


class PartList(Answer):
    """All parts there have been, oldest first."""

    data: list[PartShown]


class LinesQuery(StrictQuery):
    """Which events of a part."""

    after: int = Field(default=0, ge=0, le=2**63 - 1, description="From beyond this position.")
    limit: int = Field(default=LINES, ge=1, le=LINES, description="How many at most.")


class Lines(Answer):
    """Events of a part, each as a line of an archive: JSON, always the same for the same event."""

    data: list[str] = Field(examples=[[EXAMPLE_LINE]])
    last_position: int = Field(
        description="Of the last of them; without any, the one that was asked for.", examples=[1]
    )


class Archived(StrictInput):
    """What was archived, and where."""

    digest: str = Field(pattern="^[0-9a-f]{64}$", examples=[EXAMPLE_DIGEST])
    archive: str = Field(min_length=1, max_length=MAX_PLACE, examples=[EXAMPLE_PLACE])


class PutBack(StrictInput):
    """Lines of an archive, to be restored."""

    after: int = Field(
        ge=0,
        le=2**63 - 1,
        description="The position that the call before ended at; 0 begins anew.",
        examples=[0],
    )
    lines: list[str] = Field(min_length=1, max_length=LINES, examples=[[EXAMPLE_LINE]])
