"""Base models and types of all resources' schemas, and how an answer is written.

Input is strict: no number as text, no unknown field, no misspelt parameter. An answer is written
from the model that the OpenAPI document describes; a field that was not set is left out.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, ClassVar, Final, Self, TypeAlias

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from starlette.responses import Response

MAX_LIST: Final = 1000
EXAMPLE_TIME: Final = "2026-01-31T12:00:00.000000Z"
EXAMPLE_CURSOR: Final = "RhsZoTY0QjsSn1VLt"

# An unescaped `+` arrives as a space in a query string, so a space stands for it here.
_RFC_3339: Final = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[Tt ](?P<time>\d\d:\d\d:\d\d)(?P<fraction>\.\d{1,12})?"
    r"(?P<zone>[Zz]|[+ -]\d\d:\d\d)",
    re.ASCII,
)


class StrictInput(BaseModel):
    """A body, or part of one; an unknown field must not be ignored."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        strict=True, extra="forbid", hide_input_in_errors=True
    )


class StrictQuery(BaseModel):
    """Parameters after the question mark; a misspelt one must not be ignored."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Answer(BaseModel):
    """A body of an answer, or part of one; made of fields, or of an object's attributes."""

    model_config: ClassVar[ConfigDict] = ConfigDict(from_attributes=True)

    @classmethod
    def made_of(cls, source: object, *, without: Collection[str] = (), **given: Any) -> Self:
        """Take the fields not `given` from `source`'s attributes, except those in `without`."""
        names = cls.model_fields.keys() - given.keys() - set(without)
        return cls(
            **{name: getattr(source, name) for name in names if hasattr(source, name)}, **given
        )


class ProblemDocument(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field(examples=["urn:problem-type:tenantry:tenant-not-found"])
    title: str = Field(examples=["No such tenant"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["there is no such tenant"])
    correlation_id: str | None = None


def parse_time(text: str) -> datetime | None:
    """Read an RFC 3339 time as UTC; None if it is none. What is below a microsecond is cut off."""
    match = _RFC_3339.fullmatch(text)
    if match is None:
        return None
    zone = match["zone"].upper().replace(" ", "+")
    fraction = (match["fraction"] or "")[:7]
    try:
        moment = datetime.fromisoformat(f"{match['day']}T{match['time']}{fraction}{zone}")
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def format_time(moment: datetime) -> str:
    """Write a time with a zone as RFC 3339 in UTC with microseconds and `Z`."""
    utc = moment.astimezone(UTC).replace(tzinfo=None)
    return f"{utc.isoformat(timespec='microseconds')}Z"


def _json_text(text: str | None) -> Any:
    return None if text is None else orjson.Fragment(text)


def _base64(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


Base64: TypeAlias = Annotated[bytes | None, PlainSerializer(_base64, return_type=str | None)]
Time: TypeAlias = Annotated[datetime, PlainSerializer(format_time, return_type=str)]
JsonText: TypeAlias = Annotated[
    Any,
    PlainSerializer(_json_text),
    WithJsonSchema({"anyOf": [{"additionalProperties": True, "type": "object"}, {"type": "null"}]}),
]
"""An object or null that is JSON text already; it is written unchanged, so no number changes."""


def values_of(kinds: type[Enum]) -> dict[str, Any]:
    """Return the schema's `enum` for a text that is one of an enumeration's values."""
    return {"enum": [one.value for one in kinds]}


def dumps(answer: object) -> bytes:
    """Write an answer as JSON; of a model only the fields that were set."""
    if isinstance(answer, BaseModel):
        answer = answer.model_dump(exclude_unset=True)
    return orjson.dumps(answer)


def json_response(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with JSON that has been written already."""
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def answer(model: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a model, or with something else that is written as JSON."""
    return json_response(dumps(model), status, headers)


def _whole(value: object) -> object:
    """Take 7.0 for 7: JSON knows one kind of numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


AS_WHOLE: Final = BeforeValidator(_whole)
Limit: TypeAlias = Annotated[
    int, Field(ge=1, le=MAX_LIST, description="How many at most.", examples=[50])
]
CursorText: TypeAlias = Annotated[
    str | None, Field(max_length=1024, description="`next_cursor` of the page before.")
]
Cursor: TypeAlias = Annotated[str | None, Field(examples=[EXAMPLE_CURSOR])]


class PageQuery(StrictQuery):
    """Which part of a list."""

    limit: Limit = 50
    cursor: CursorText = None
