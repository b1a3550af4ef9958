"""Messages: how they are published, selected and shown.

The database writes pages as JSON: no row of them becomes an object.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Final, TypeAlias

import orjson
from pydantic import Discriminator, Field, Tag, field_validator

from tenantry.api.schemas.common import (
    EXAMPLE_TIME,
    MAX_LIST,
    Answer,
    Cursor,
    PageQuery,
    StrictInput,
    StrictQuery,
    Time,
    dumps,
    format_time,
)
from tenantry.messages.port import Order, StoredMessage

_MAX_ID_BYTES: Final = 255  # a short string of AMQP
_MAX_KEY: Final = 1024


class Publication(StrictInput):
    """A message to be published as `application/json`."""

    payload: Any = Field(
        description="Any JSON value. Its text is passed on unchanged, to the last digit.",
        examples=[{"order": 7, "total": 12.5}],
    )
    topic: str | None = Field(
        default=None,
        description="One of the tenant's topics; `default` if left out.",
        examples=["logs"],
    )
    key: str | None = Field(
        default=None,
        max_length=_MAX_KEY,
        description="Messages of the same key go to the same partition: CRC-32 of the key's "
        "UTF-8 bytes modulo the number of partitions. Without one, partitions take turns.",
        examples=["customer-42"],
    )
    id: str | None = Field(
        default=None,
        min_length=1,
        description="1 to 255 bytes without NUL. The same id is stored once, however often "
        "it is sent. A UUID if left out.",
        examples=["order-7"],
    )

    @field_validator("id")
    @classmethod
    def _fits(cls, value: str | None) -> str | None:
        if value is not None and (len(value.encode()) > _MAX_ID_BYTES or "\0" in value):
            raise ValueError(f"must be 1 to {_MAX_ID_BYTES} bytes without NUL")
        return value


def _one_or_many(value: object) -> str:
    return "<many>" if isinstance(value, list) else "<one>"


Publications: TypeAlias = Annotated[
    Annotated[Publication, Tag("<one>")]
    | Annotated[list[Publication], Field(min_length=1, max_length=MAX_LIST), Tag("<many>")],
    Discriminator(_one_or_many),
]
"""A message, or a list of them."""


Incarnation: TypeAlias = Annotated[
    int | None,
    Field(
        ge=1,
        le=2**31 - 1,
        description="What was retained of this one of the tenants that have had the id. Left "
        "out: the one that has it. For admins.",
        examples=[1],
    ),
]


class MessageQuery(StrictQuery):
    """Which incarnation's message is shown."""

    incarnation: Incarnation = None


class MessagesQuery(PageQuery):
    """Which messages are listed."""

    tenant_id: str | None = Field(
        default=None,
        description="Whose. Left out: a tenant's token reads its own tenant's, an admin all.",
        examples=["acme"],
    )
    incarnation: Incarnation = None
    topic: str | None = Field(
        default=None, max_length=255, description="Of this topic only.", examples=["logs"]
    )
    order: Order = Field(default=Order.ASCENDING, description="Oldest or newest first.")


class StreamQuery(StrictQuery):
    """Which messages are followed, and from where."""

    tenant_id: str = Field(description="Whose.", examples=["acme"])
    topic: str | None = Field(
        default=None, max_length=255, description="Of this topic only.", examples=["logs"]
    )
    cursor: str | None = Field(
        default=None,
        max_length=1024,
        description="Begin after this `follow_cursor` or event id; from now on if left out.",
    )


class Accepted(Answer):
    """Ids of messages the broker has confirmed, in the order they came in."""

    ids: list[str] = Field(examples=[["order-7"]])


class Message(Answer):
    """A stored message: `payload` for JSON, `body` for anything else."""

    id: str = Field(examples=["order-7"])
    tenant_id: str = Field(examples=["acme"])
    position: int = Field(description="Rises in commit order.", examples=[1])
    topic: str = Field(examples=["logs"])
    partition: int = Field(examples=[0])
    payload: Any = Field(default=None, examples=[{"order": 7}])
    body: str | None = Field(
        default=None, description="Base64; only where there is no payload.", examples=[None]
    )
    content_type: str | None = Field(examples=["application/json"])
    headers: dict[str, Any] | None = Field(examples=[{"trace": "7f3a"}])
    created_at: Time = Field(examples=[EXAMPLE_TIME])


class MessagePage(Answer):
    """Messages of a tenant, or of all; `next_cursor` is null on the last page.

    `follow_cursor` leads to what is stored later, from the last page too (of one tenant, oldest
    first only). A page may hold fewer than `limit` messages, though more follow.
    """

    data: list[Message]
    next_cursor: Cursor
    follow_cursor: Cursor


def message_json(row: StoredMessage) -> bytes:
    """Write a stored message. Payload and headers are JSON text already, and stay as they are."""
    shown: dict[str, Any] = {
        "id": row.id,
        "tenant_id": row.tenant_id,
        "position": row.position,
        "topic": row.topic,
        "partition": row.partition,
    }
    if row.payload is not None:
        shown["payload"] = orjson.Fragment(row.payload)
    if row.body is not None:
        shown["body"] = base64.b64encode(row.body).decode()
    shown["content_type"] = row.content_type
    shown["headers"] = None if row.headers is None else orjson.Fragment(row.headers)
    shown["created_at"] = format_time(row.created_at)
    return orjson.dumps(shown)


def page_json(text: bytes, *, next_cursor: str | None, follow_cursor: str | None) -> bytes:
    """Write a page; `text` has its messages as JSON already, with commas between them."""
    cursors = dumps({"next_cursor": next_cursor, "follow_cursor": follow_cursor})
    return b'{"data":[%b],%b' % (text, cursors[1:])


_TEXT: Final = {"type": "string", "minLength": 1}

EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["specversion", "id", "source", "type"],
    "properties": {
        "specversion": {"type": "string", "const": "1.0"},
        "id": _TEXT | {"description": "Unique within its source.", "examples": ["order-7-created"]},
        "source": _TEXT
        | {"format": "uri-reference", "description": "Where it comes from.", "examples": ["/shop"]},
        "type": _TEXT | {"examples": ["com.example.order.created"]},
        "subject": _TEXT | {"examples": ["order-7"]},
        "time": {"type": "string", "format": "date-time"},
        "datacontenttype": _TEXT | {"examples": ["application/json"]},
        "dataschema": _TEXT | {"format": "uri"},
        "partitionkey": _TEXT | {"description": "Events of one key go to one partition."},
        "data": {"description": "Any JSON value; its text is passed on unchanged."},
        "data_base64": {"type": "string", "contentEncoding": "base64"},
    },
    "additionalProperties": {"type": ["string", "boolean", "integer", "null"]},
}
"""A CloudEvent as documents describe it; extensions have names of a-z and 0-9."""
