"""Parts of the journal: how they are listed, archived and restored."""

from __future__ import annotations

from typing import Final, Self

from pydantic import Field

from tenantry.api.schemas.common import EXAMPLE_TIME, Answer, StrictInput, StrictQuery, Time
from tenantry.journal.parts import LINES, Part

MAX_PLACE: Final = 1024
EXAMPLE_DIGEST: Final = "9c3a6e4d8b1f20573e6c9a1d4b7f8e025a6d3c9b1e4f7a80d2c5b8e1f4a7d0c3"
EXAMPLE_PLACE: Final = "db.example.org:/srv/archive/journal-00001.jsonl.gz"
EXAMPLE_LINE: Final = '{"position": 1, "stream": "tenant-acme", "version": 1, "id": "8a9c..."}'


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
