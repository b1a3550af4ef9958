"""Dead letters: which of them are meant, what a call may do, and how they are described."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Self, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

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
_Reason: TypeAlias = Annotated[
    str | None, Field(max_length=64, description="Of this reason only.", examples=["not_json"])
]
_Topic: TypeAlias = Annotated[
    str | None, Field(max_length=255, description="Of this topic only.", examples=["logs"])
]
_Since: TypeAlias = Annotated[
    _Time | None, Field(description="Dead since then, or later.", examples=[EXAMPLE_TIME])
]
_Until: TypeAlias = Annotated[
    _Time | None, Field(description="Dead before then.", examples=[EXAMPLE_TIME])
]


def _moment(text: str | None) -> datetime | None:
    return None if text is None else parse_time(text)


class LettersQuery(PageQuery):
    """Which dead letters are listed, and whether with their bytes."""

    reason: _Reason = None
    topic: _Topic = None
    since: _Since = None
    until: _Until = None
    payload: Annotated[bool, Field(description="With `body` and `headers`.")] = True

    @property
    def which(self) -> Selection:
        """The letters meant."""
        return Selection(
            reason=self.reason,
            topic=self.topic,
            since=_moment(self.since),
            until=_moment(self.until),
        )

    @property
    def bound(self) -> str:
        """What a cursor is good for: these letters alone."""
        return repr((self.reason, self.topic, self.since, self.until))


class LetterQuery(StrictQuery):
    """How a dead letter is shown."""

    payload: Annotated[bool, Field(description="With `body` and `headers`.")] = True


class LetterFilter(StrictInput):
    """Conditions that all have to hold; one at least."""

    reason: _Reason = None
    topic: _Topic = None
    since: _Since = None
    until: _Until = None

    @model_validator(mode="after")
    def _says_something(self) -> LetterFilter:
        if self.which == EVERYTHING:
            raise ValueError('needs a condition; {"all": true} means all')
        return self

    @property
    def which(self) -> Selection:
        """The letters meant."""
        return Selection(
            reason=self.reason,
            topic=self.topic,
            since=_moment(self.since),
            until=_moment(self.until),
        )


class _Discard(StrictInput):
    dry_run: Annotated[
        bool, Field(description="Change nothing; tell what would happen.", examples=[False])
    ] = False
    limit: Annotated[
        int | None,
        Field(
            ge=1, le=_MAX_LETTERS, description="How many in this call, at most.", examples=[1000]
        ),
    ] = None


class _Replay(_Discard):
    force: Annotated[
        bool,
        Field(
            description="Also those that have been replayed as often as they may be.",
            examples=[False],
        ),
    ] = False


class _ById(StrictInput):
    ids: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=_MAX_ID_BYTES)]],
        Field(
            min_length=1,
            max_length=MAX_LIST,
            description="As listed: `id`, or `letter_id` for just one of several with the same id.",
            examples=[["order-7"]],
        ),
    ]

    @property
    def which(self) -> Selection:
        """The letters meant."""
        return Selection(names=frozenset(self.ids))


class _All(StrictInput):
    everything: Annotated[
        bool, Field(alias="all", examples=[True], json_schema_extra={"const": True})
    ]

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
    """The dead letters that conditions hold for, to be replayed."""


class DiscardById(_ById, _Discard):
    """Some dead letters, to be thrown away."""


class DiscardAll(_All, _Discard):
    """All dead letters there are, to be thrown away."""


class DiscardByFilter(_ByFilter, _Discard):
    """The dead letters that conditions hold for, to be thrown away."""


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

    id: Annotated[
        str, Field(description="The message's id, or the letter's.", examples=["order-7"])
    ]
    letter_id: Annotated[str, Field(examples=["8a9c6f0e-3f5f-4c55-a36e-0d6a3f9f0f11"])]
    tenant_id: Annotated[str, Field(examples=["acme"])]
    message_id: Annotated[str | None, Field(examples=["order-7"])]
    topic: Annotated[str, Field(examples=["logs"])]
    partition: Annotated[int, Field(examples=[0])]
    reason: Annotated[str, Field(description="A stable word.", examples=["not_json"])]
    error: Annotated[
        str, Field(description="Of the last attempt.", examples=["the body is not JSON"])
    ]
    first_error: Annotated[
        str, Field(description="Of the first attempt.", examples=["the body is not JSON"])
    ]
    attempts: Annotated[int, Field(description="How often it was tried.", examples=[1])]
    replays: Annotated[int, Field(description="How often it was replayed.", examples=[0])]
    size: Annotated[int, Field(description="Bytes of the body.", examples=[9])]
    content_type: Annotated[str | None, Field(examples=["application/json"])]
    published_at: Annotated[Time | None, Field(examples=[EXAMPLE_TIME])]
    dead_lettered_at: Annotated[Time, Field(examples=[EXAMPLE_TIME])]
    body: Annotated[
        Base64,
        Field(
            description="Base64; null for more than 1 MiB; left out with `payload=false`.",
            examples=["bm90IGpzb24h"],
        ),
    ] = None
    headers: Annotated[
        JsonText,
        Field(description="Left out with `payload=false`.", examples=[{"trace": "7f3a"}]),
    ] = None

    @classmethod
    def of(cls, letter: DeadLetter, *, payload: bool = True) -> Self:
        """Describe a dead letter. Its id is the message's own, if it has one."""
        return cls.made_of(
            letter,
            without=() if payload else ("body", "headers"),
            id=str(letter.id) if letter.message_id is None else letter.message_id,
            letter_id=str(letter.id),
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

    replayed: Annotated[int, Field(examples=[1])]
    replayed_too_often: Annotated[
        int | None,
        Field(description="How many take `force`; left out if none.", examples=[1]),
    ] = None
    refused_by_broker: _Refused = None
    complete: _Complete = None

    @classmethod
    def of(cls, done: Reprocessed) -> Self:
        """Tell what was done; what was not done only where there is something."""
        worn: dict[str, Any] = {"replayed_too_often": done.worn} if done.worn else {}
        return cls(replayed=done.count, **worn, **_left(done))


class Discarded(Answer):
    """How many dead letters were thrown away."""

    discarded: Annotated[int, Field(examples=[1])]
    refused_by_broker: _Refused = None
    complete: _Complete = None

    @classmethod
    def of(cls, done: Reprocessed) -> Self:
        """Tell what was done; what was not done only where there is something."""
        return cls(discarded=done.count, **_left(done))


class LettersOfPlace(Answer):
    """How many dead letters come from a partition."""

    topic: Annotated[str, Field(examples=["logs"])]
    partition: Annotated[int, Field(examples=[0])]
    count: Annotated[int, Field(examples=[1])]


class LettersPreview(Answer):
    """What a call would do: to how many dead letters, and from where."""

    dry_run: Annotated[bool, Field(examples=[True])]
    as_of: Annotated[Time, Field(examples=[EXAMPLE_TIME])]
    count: Annotated[int, Field(examples=[1])]
    replayed_too_often: Annotated[
        int, Field(description="How many of them would take `force`.", examples=[0])
    ]
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
