"""What comes in about dead letters: which of them, and what a call may do."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from tenantry.api.schemas import EXAMPLE_TIME, MAX_LIST, PageQuery, StrictInput, StrictQuery
from tenantry.api.times import parse_time
from tenantry.dead_letters.port import EVERYTHING, Selection

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
