"""What comes in and goes out, as the OpenAPI document describes it.

Input is strict: no number as text, no unknown field. Output models document; the bytes are
written by `tenantry.api.render`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator

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
_TIME: Final = "2026-01-31T12:00:00.000000Z"


class _Input(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(
        strict=True, extra="forbid", hide_input_in_errors=True
    )


class _Query(BaseModel):
    """Parameters after the question mark; a misspelt one must not be ignored."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", hide_input_in_errors=True)


Workers: TypeAlias = Annotated[
    int,
    Field(
        ge=MIN_WORKERS,
        le=MAX_WORKERS,
        description="How many workers may store the tenant's messages at once.",
        examples=[3],
    ),
]
Topics: TypeAlias = Annotated[
    list[str],
    Field(
        max_length=MAX_TOPICS,
        description="Names of 1 to 63 of a-z, 0-9, _ and -; `default` always exists.",
        examples=[["events", "logs"]],
    ),
]


class TenantCreation(_Input):
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
    ] = 1


class Concurrency(_Input):
    """The number of workers wanted."""

    workers: Workers


class NewTopics(_Input):
    """Topics a tenant shall have too; those it has already are left as they are."""

    topics: Annotated[Topics, Field(min_length=1)]


class Publication(_Input):
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


class PageQuery(_Query):
    """Which part of a list."""

    limit: Limit = 50
    cursor: CursorText = None


class TenantQuery(_Query):
    """When a tenant is looked at."""

    at: Annotated[
        str | None,
        Field(
            max_length=64,
            description="An RFC 3339 time, or a version number.",
            examples=[_TIME, "3"],
        ),
    ] = None


class DeletionQuery(_Query):
    """What becomes of a deleted tenant's messages."""

    retain: Annotated[bool, Field(description="Keep the stored messages readable.")] = False


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


class MessagesQuery(PageQuery):
    """Which messages."""

    tenant_id: Annotated[str, Field(description="Whose.", examples=["acme"])]
    topic: Annotated[
        str | None, Field(max_length=255, description="Of this topic only.", examples=["logs"])
    ] = None
    order: Annotated[Order, Field(description="Oldest or newest first.")] = Order.ASCENDING


class Tenant(BaseModel):
    """A tenant. What is running is null where the past is shown."""

    id: Annotated[str, Field(examples=["acme"])]
    name: Annotated[str, Field(examples=["Acme Ltd"])]
    state: Literal["provisioning", "active", "paused", "draining", "deleted"]
    workers: Workers
    topics: Topics
    partitions: Annotated[int, Field(examples=[1])]
    stream: Annotated[
        str, Field(description="The exchange to publish to.", examples=["tenant_acme_stream"])
    ]
    queue: Annotated[
        str, Field(description="The default queue.", examples=[names.queue_name("acme")])
    ]
    version: Annotated[int, Field(description="Counts the tenant's events.", examples=[2])]
    created_at: Annotated[str, Field(examples=[_TIME])]
    updated_at: Annotated[str, Field(examples=[_TIME])]
    workers_current: Annotated[int | None, Field(description="Workers running now.", examples=[3])]
    messages_pending: Annotated[
        int | None,
        Field(description="Messages waiting in the queues; null if unknown.", examples=[0]),
    ]
    parked: Annotated[
        str | None,
        Field(description="Why the daemon itself paused the tenant; null if it did not."),
    ]


class AccessData(BaseModel):
    """A tenant's way to the broker, shown this once."""

    username: Annotated[str, Field(examples=["tenant_acme_producer"])]
    password: str
    amqp_url: Annotated[str, Field(examples=["amqp://tenant_acme_producer:…@localhost:5672/"])]


class TenantWithCredentials(Tenant):
    """A tenant, and its new credentials."""

    credentials: AccessData


class TenantPage(BaseModel):
    """Tenants by id; `next_cursor` is null on the last page."""

    data: list[Tenant]
    next_cursor: str | None


class Accepted(BaseModel):
    """Ids of messages the broker has confirmed, in the order they came in."""

    ids: Annotated[list[str], Field(examples=[["order-7"]])]


class Message(BaseModel):
    """A stored message: `payload` for JSON, `body` for anything else."""

    id: Annotated[str, Field(examples=["order-7"])]
    tenant_id: Annotated[str, Field(examples=["acme"])]
    position: Annotated[int, Field(description="Rises in commit order.", examples=[1])]
    topic: Annotated[str, Field(examples=["logs"])]
    partition: Annotated[int, Field(examples=[0])]
    payload: Annotated[Any, Field(examples=[{"order": 7}])] = None
    body: Annotated[str | None, Field(description="Base64.")] = None
    content_type: Annotated[str | None, Field(examples=["application/json"])]
    headers: dict[str, Any] | None
    created_at: Annotated[str, Field(examples=[_TIME])]


class MessagePage(BaseModel):
    """Messages of a tenant; `next_cursor` is null on the last page.

    `follow_cursor` leads to what is stored later, from the last page too (oldest first only).
    """

    data: list[Message]
    next_cursor: str | None
    follow_cursor: str | None


class JournalEntry(BaseModel):
    """An event of the journal."""

    position: Annotated[int, Field(description="Place in the whole journal.", examples=[12])]
    stream: Annotated[str, Field(examples=["tenant-acme"])]
    version: Annotated[int, Field(description="Place in its stream.", examples=[2])]
    id: Annotated[str, Field(examples=["8a9c6f0e-3f5f-4c55-a36e-0d6a3f9f0f11"])]
    tenant_id: Annotated[str, Field(examples=["acme"])]
    type: Annotated[str, Field(examples=["WorkersResized"])]
    schema_version: Annotated[int, Field(examples=[1])]
    data: Annotated[
        dict[str, Any], Field(examples=[{"tenant_id": "acme", "previous": 3, "workers": 5}])
    ]
    actor: Annotated[str, Field(description="Who caused it.", examples=["uid=0 pid=4711"])]
    correlation_id: str
    causation_id: str | None
    recorded_at: Annotated[str, Field(examples=[_TIME])]


class EventPage(BaseModel):
    """Events, oldest first; `next_cursor` is always given, to continue when there are more."""

    data: list[JournalEntry]
    next_cursor: str


class Actor(BaseModel):
    """An actor and those it owns."""

    name: Annotated[str, Field(examples=["supervisor"])]
    kind: Annotated[str, Field(examples=["Supervisor"])]
    state: Annotated[str, Field(examples=["running"])]
    mailbox: Annotated[int, Field(description="Messages that wait for it.", examples=[0])]
    restarts: Annotated[int, Field(examples=[0])]
    children: list[Actor]


class Runtime(BaseModel):
    """What a tenant's actors do; totals since the tenant's creation."""

    tenant_id: Annotated[str, Field(examples=["acme"])]
    workers_current: int
    consuming: bool
    unsettled: Annotated[int, Field(description="Taken, not yet acknowledged.")]
    rate: Annotated[float, Field(description="Messages settled a second.")]
    pending: int | None
    stored: int
    duplicates: int
    dead_lettered: int
    parked: str | None


class Status(BaseModel):
    """The daemon at a glance."""

    state: Literal["starting", "running", "draining", "drained", "stopping"]
    ready: bool
    reasons: list[str]
    started_at: Annotated[str, Field(examples=[_TIME])]
    version: Annotated[str, Field(examples=["0.1.0"])]
    pid: int
    tree: Actor
    tenants: dict[str, Runtime]


class State(BaseModel):
    """How the daemon as a whole is."""

    state: Annotated[str, Field(examples=["running"])]


class ProblemDocument(BaseModel):
    """What went wrong (RFC 9457)."""

    type: Annotated[str, Field(examples=["urn:problem-type:tenantry:tenant-not-found"])]
    title: Annotated[str, Field(examples=["No such tenant"])]
    status: Annotated[int, Field(examples=[404])]
    detail: Annotated[str, Field(examples=["there is no such tenant"])]
    correlation_id: str | None = None
