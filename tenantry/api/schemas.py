"""What comes in: strict, so no number as text, no unknown field, no misspelt parameter."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
)

from tenantry.domain import names
from tenantry.domain.tenant import (
    MAX_NAME,
    MAX_PARTITIONS,
    MAX_TOPICS,
    MAX_WORKERS,
    MIN_PARTITIONS,
    MIN_WORKERS,
)
from tenantry.messages.port import Order

MAX_LIST: Final = 1000
MAX_WAIT: Final = 30
_MAX_ID_BYTES: Final = 255  # a short string of AMQP
_MAX_KEY: Final = 1024
EXAMPLE_TIME: Final = "2026-01-31T12:00:00.000000Z"


class StrictInput(BaseModel):
    """A body, or part of one; an unknown field must not be ignored."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        strict=True, extra="forbid", hide_input_in_errors=True
    )


class StrictQuery(BaseModel):
    """Parameters after the question mark; a misspelt one must not be ignored."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", hide_input_in_errors=True)


def _whole(value: object) -> object:
    """Take 7.0 for 7: JSON knows one kind of numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_AS_WHOLE: Final = BeforeValidator(_whole)

Workers: TypeAlias = Annotated[
    int,
    Field(
        ge=MIN_WORKERS,
        le=MAX_WORKERS,
        description="How many workers may store the tenant's messages at once.",
        examples=[3],
    ),
    _AS_WHOLE,
]
Topics: TypeAlias = Annotated[
    list[Annotated[str, Field(json_schema_extra={"pattern": f"^{names.TOPIC.pattern}$"})]],
    Field(
        max_length=MAX_TOPICS,
        description="Names of 1 to 63 of a-z, 0-9, _ and -; `default` always exists.",
        examples=[["events", "logs"]],
    ),
]


class ProofWanted(StrictInput):
    """Whose isolation is to be proven, and where."""

    tenants: Annotated[
        list[str] | None, Field(description="All, if none is named.", max_length=1000)
    ] = None
    broker: Annotated[bool, Field(description="Also on the broker, not only in the database.")] = (
        True
    )


class TenantCreation(StrictInput):
    """A tenant to be made."""

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_NAME,
            description="For people: printable characters.",
            examples=["Acme Ltd"],
        ),
    ]
    id: Annotated[
        str | None,
        Field(
            description="1 to 40 of a-z, 0-9 and inner hyphens; a UUID if left out.",
            json_schema_extra={"pattern": f"^{names.TENANT_ID.pattern}$"},
            examples=["acme"],
        ),
    ] = None
    workers: Workers | None = None
    topics: Topics = []
    partitions: Annotated[
        int,
        Field(
            ge=MIN_PARTITIONS,
            le=MAX_PARTITIONS,
            description="Queues a topic.",
            examples=[1],
        ),
        _AS_WHOLE,
    ] = 1


class Concurrency(StrictInput):
    """The number of workers wanted."""

    workers: Workers


class NewTopics(StrictInput):
    """Topics a tenant shall have too; those it has already are left as they are."""

    topics: Annotated[Topics, Field(min_length=1)]


class Publication(StrictInput):
    """A message to be published as `application/json`."""

    payload: Annotated[
        Any,
        Field(
            description="Any JSON value. Its text is passed on unchanged, to the last digit.",
            examples=[{"order": 7, "total": 12.5}],
        ),
    ]
    topic: Annotated[
        str | None,
        Field(description="One of the tenant's topics; `default` if left out.", examples=["logs"]),
    ] = None
    key: Annotated[
        str | None,
        Field(
            max_length=_MAX_KEY,
            description="Messages of the same key go to the same partition: CRC-32 of the key's "
            "UTF-8 bytes modulo the number of partitions. Without one, partitions take turns.",
            examples=["customer-42"],
        ),
    ] = None
    id: Annotated[
        str | None,
        Field(
            min_length=1,
            description="1 to 255 bytes without NUL. The same id is stored once, however often "
            "it is sent. A UUID if left out.",
            examples=["order-7"],
        ),
    ] = None

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

Limit: TypeAlias = Annotated[
    int, Field(ge=1, le=MAX_LIST, description="How many at most.", examples=[50])
]
CursorText: TypeAlias = Annotated[
    str | None, Field(max_length=1024, description="`next_cursor` of the page before.")
]


class PageQuery(StrictQuery):
    """Which part of a list."""

    limit: Limit = 50
    cursor: CursorText = None


class TenantQuery(StrictQuery):
    """When a tenant is looked at."""

    at: Annotated[
        str | None,
        Field(
            max_length=64,
            description="An RFC 3339 time, or a version number.",
            examples=[EXAMPLE_TIME, "3"],
        ),
    ] = None


class DeletionQuery(StrictQuery):
    """What becomes of a deleted tenant's messages."""

    retain: Annotated[bool, Field(description="Keep the stored messages readable.")] = False


Quick: TypeAlias = Annotated[bool, Field(description="Count no rows; everything else is compared.")]


class AuditQuery(StrictQuery):
    """How thoroughly a tenant is audited."""

    quick: Quick = False


class AuditsQuery(PageQuery):
    """Which tenants are audited, and how thoroughly."""

    quick: Quick = False


class EventsQuery(PageQuery):
    """Which part of the journal, and how long to wait for it."""

    wait: Annotated[
        float,
        Field(
            ge=0,
            le=MAX_WAIT,
            allow_inf_nan=False,
            description="Seconds to wait for an event where there is none yet.",
        ),
    ] = 0


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
    """Whose message."""

    incarnation: Incarnation = None


class MessagesQuery(PageQuery):
    """Which messages."""

    tenant_id: Annotated[
        str | None,
        Field(
            description="Whose. Left out: a tenant's token reads its own tenant's, an admin all.",
            examples=["acme"],
        ),
    ] = None
    incarnation: Incarnation = None
    topic: Annotated[
        str | None, Field(max_length=255, description="Of this topic only.", examples=["logs"])
    ] = None
    order: Annotated[Order, Field(description="Oldest or newest first.")] = Order.ASCENDING


class StreamQuery(StrictQuery):
    """Which messages are followed, and from where."""

    tenant_id: Annotated[str, Field(description="Whose.", examples=["acme"])]
    topic: Annotated[
        str | None, Field(max_length=255, description="Of this topic only.", examples=["logs"])
    ] = None
    cursor: Annotated[
        str | None,
        Field(
            max_length=1024,
            description="Begin after this `follow_cursor` or event id; from now on if left out.",
        ),
    ] = None
