"""Dead letters: how a call selects them, what it may do with them, and how they are shown."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Final, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from tenantry.api.schemas.common import (
    EXAMPLE_TIME,
    MAX_LIST,
    Answer,
    Base64,
    Cursor,
    JsonText,
    PageQuery,
    StrictInput,
    StrictQuery,
    Time,
    parse_time,
)
from tenantry.dead_letters.port import EVERYTHING, DeadLetter, Preview, Selection
from tenantry.dead_letters.replay import Reprocessed

_MAX_ID_BYTES: Final = 255
_MAX_LETTERS: Final = 1_000_000


def _is_time(value: str) -> str:
    if parse_time(value) is None:
        raise ValueError("must be an RFC 3339 time with a zone")
    return value


_Time: TypeAlias = Annotated[
    str,
    Field(max_length=64, examples=[EXAMPLE_TIME], json_schema_extra={"format": "date-time"}),
    AfterValidator(_is_time),
]


class _Conditions(BaseModel):
    reason: str | None = Field(
        default=None, max_length=64, description="Of this reason only.", examples=["not_json"]
    )
    topic: str | None = Field(
        default=None, max_length=255, description="Of this topic only.", examples=["logs"]
    )
    since: _Time | None = Field(
        default=None, description="Dead since then, or later.", examples=[EXAMPLE_TIME]
    )
    until: _Time | None = Field(
        default=None, description="Dead before then.", examples=[EXAMPLE_TIME]
    )

    @property
    def which(self) -> Selection:
        """The letters meant."""
        return Selection(
            reason=self.reason,
            topic=self.topic,
            since=None if self.since is None else parse_time(self.since),
            until=None if self.until is None else parse_time(self.until),
        )


class LettersQuery(_Conditions, PageQuery):
    """Which dead letters are listed, and whether with their bytes."""

    payload: bool = Field(default=True, description="With `body` and `headers`.")

    @property
    def bound(self) -> str:
        """The conditions, in a cursor's binding: it is good for the same letters only."""
        return repr((self.reason, self.topic, self.since, self.until))


class LetterQuery(StrictQuery):
    """How a dead letter is shown."""

    payload: bool = Field(default=True, description="With `body` and `headers`.")


class LetterFilter(_Conditions, StrictInput):
    """Conditions that all have to hold; one at least."""

    @model_validator(mode="after")
    def _says_something(self) -> LetterFilter:
        if self.which == EVERYTHING:
            raise ValueError('needs a condition; {"all": true} means all')
        return self


class _Discard(StrictInput):
    dry_run: bool = Field(
        default=False, description="Change nothing; tell what would happen.", examples=[False]
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        le=_MAX_LETTERS,
        description="How many in this call, at most.",
        examples=[1000],
    )


class _Replay(_Discard):
    force: bool = Field(
        default=False,
        description="Also those that have been replayed as often as they may be.",
        examples=[False],
    )


class _ById(StrictInput):
    ids: list[Annotated[str, Field(min_length=1, max_length=_MAX_ID_BYTES)]] = Field(
        min_length=1,
        max_length=MAX_LIST,
        description="As listed: `id`, or `letter_id` for just one of several with the same id.",
        examples=[["order-7"]],
    )

    @property
    def which(self) -> Selection:
        """The letters meant."""
        return Selection(names=frozenset(self.ids))


class _All(StrictInput):
    everything: bool = Field(alias="all", examples=[True], json_schema_extra={"const": True})

    @field_validator("everything")
    @classmethod
    def _is_true(cls, value: bool) -> bool:
        if not value:
            raise ValueError("must be true")
        return value

    @property
    def which(self) -> Selection:
        """The letters meant."""
        return EVERYTHING


class _ByFilter(StrictInput):
    filter: LetterFilter

    @property
    def which(self) -> Selection:
        """The letters meant."""
        return self.filter.which


class ReplayById(_ById, _Replay):
    """Some dead letters, to be replayed."""


class ReplayAll(_All, _Replay):
    """All dead letters there are, to be replayed."""


class ReplayByFilter(_ByFilter, _Replay):
    """The dead letters that a filter selects, to be replayed."""


class DiscardById(_ById, _Discard):
    """Some dead letters, to be thrown away."""


class DiscardAll(_All, _Discard):
    """All dead letters there are, to be thrown away."""


class DiscardByFilter(_ByFilter, _Discard):
    """The dead letters that a filter selects, to be thrown away."""


def _kind(value: object) -> str:
    for name in ("all", "filter"):
        if isinstance(value, dict) and name in value:
            return f"<{name}>"
    return "<ids>"


LettersToReplay: TypeAlias = Annotated[
    Annotated[ReplayById, Tag("<ids>")]
    | Annotated[ReplayAll, Tag("<all>")]
    | Annotated[ReplayByFilter, Tag("<filter>")],
    Discriminator(_kind),
]
"""Which dead letters are to be replayed."""

LettersToDiscard: TypeAlias = Annotated[
    Annotated[DiscardById, Tag("<ids>")]
    | Annotated[DiscardAll, Tag("<all>")]
    | Annotated[DiscardByFilter, Tag("<filter>")],
    Discriminator(_kind),
]
"""Which dead letters are to be thrown away."""


class DeadLetterEntry(Answer):
    """A message that could not be stored, and why."""

    id: str = Field(description="The message's id, or the letter's.", examples=["order-7"])
    letter_id: str = Field(examples=["8a9c6f0e-3f5f-4c55-a36e-0d6a3f9f0f11"])
    tenant_id: str = Field(examples=["acme"])
    message_id: str | None = Field(examples=["order-7"])
    topic: str = Field(examples=["logs"])
    partition: int = Field(examples=[0])
    reason: str = Field(description="A stable word.", examples=["not_json"])
    error: str = Field(description="Of the last attempt.", examples=["the body is not JSON"])
    first_error: str = Field(description="Of the first attempt.", examples=["the body is not JSON"])
    attempts: int = Field(description="How often it was tried.", examples=[1])
    replays: int = Field(description="How often it was replayed.", examples=[0])
    size: int = Field(description="Bytes of the body.", examples=[9])
    ordered: bool = Field(
        description="Whether its partition is in order: it was passed by those behind it.",
        examples=[False],
    )
    content_type: str | None = Field(examples=["application/json"])
    published_at: Time | None = Field(examples=[EXAMPLE_TIME])
    dead_lettered_at: Time = Field(examples=[EXAMPLE_TIME])
    body: Base64 = Field(
        default=None,
        description="Base64; null for more than 1 MiB; left out with `payload=false`.",
        examples=["bm90IGpzb24h"],
    )
    headers: JsonText = Field(
        default=None, description="Left out with `payload=false`.", examples=[{"trace": "7f3a"}]
    )

    @classmethod
    def of(cls, letter: DeadLetter, *, payload: bool = True, ordered: Collection[str] = ()) -> Self:
        """Describe a dead letter. Its id is the message's own, if it has one.

        `ordered` are its tenant's topics that are in order.
        """
        return cls.made_of(
            letter,
            without=() if payload else ("body", "headers"),
            id=str(letter.id) if letter.message_id is None else letter.message_id,
            letter_id=str(letter.id),
            ordered=letter.topic in ordered,
        )


class DeadLetterPage(Answer):
    """Dead letters, oldest first; `next_cursor` is null on the last page."""

    data: list[DeadLetterEntry]
    next_cursor: Cursor


_Refused: TypeAlias = Annotated[
    int | None,
    Field(description="How many the broker does not take; left out if none.", examples=[1]),
]
_Complete: TypeAlias = Annotated[
    bool | None,
    Field(
        description="False where letters are left for another call; left out otherwise.",
        examples=[False],
    ),
]


def _left(done: Reprocessed) -> dict[str, Any]:
    left: dict[str, Any] = {"refused_by_broker": done.refused} if done.refused else {}
    return left if done.complete else left | {"complete": False}


class Replayed(Answer):
    """How many dead letters were published again."""

    replayed: int = Field(examples=[1])
    replayed_too_often: int | None = Field(
        default=None, description="How many take `force`; left out if none.", examples=[1]
    )
    refused_by_broker: _Refused = None
    complete: _Complete = None

    @classmethod
    def of(cls, done: Reprocessed) -> Self:
        """Report what was done, and what was not done if there is anything."""
        worn: dict[str, Any] = {"replayed_too_often": done.worn} if done.worn else {}
        return cls(replayed=done.count, **worn, **_left(done))


class Discarded(Answer):
    """How many dead letters were thrown away."""

    discarded: int = Field(examples=[1])
    refused_by_broker: _Refused = None
    complete: _Complete = None

    @classmethod
    def of(cls, done: Reprocessed) -> Self:
        """Report what was done, and what was not done if there is anything."""
        return cls(discarded=done.count, **_left(done))


class LettersOfPlace(Answer):
    """How many dead letters come from a partition."""

    topic: str = Field(examples=["logs"])
    partition: int = Field(examples=[0])
    count: int = Field(examples=[1])


class LettersPreview(Answer):
    """What a call would do: to how many dead letters, and from where."""

    dry_run: bool = Field(examples=[True])
    as_of: Time = Field(examples=[EXAMPLE_TIME])
    count: int = Field(examples=[1])
    replayed_too_often: int = Field(
        description="How many of them would take `force`.", examples=[0]
    )
    places: list[LettersOfPlace]

    @classmethod
    def of(cls, preview: Preview) -> Self:
        """Describe what would be done."""
        return cls(
            dry_run=True,
            as_of=preview.as_of,
            count=preview.count,
            replayed_too_often=preview.worn,
            places=[
                LettersOfPlace(topic=topic, partition=partition, count=count)
                for (topic, partition), count in sorted(preview.places.items())
            ],
        )
