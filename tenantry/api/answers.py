"""What goes out, as the OpenAPI document describes it; `tenantry.api.render` writes the bytes."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, Field

from tenantry.api.schemas import EXAMPLE_TIME, Topics, Workers

_CURSOR: Final = "RhsZoTY0QjsSn1VLt"
Cursor: TypeAlias = Annotated[str | None, Field(examples=[_CURSOR])]


class Tenant(BaseModel):
    """A tenant. What is running is null where the past is shown."""

    id: Annotated[str, Field(examples=["acme"])]
    name: Annotated[str, Field(examples=["Acme Ltd"])]
    state: Annotated[
        Literal["provisioning", "active", "paused", "deleting", "deleted"],
        Field(examples=["active"]),
    ]
    workers: Workers
    topics: Topics
    partitions: Annotated[int, Field(examples=[1])]
    stream: Annotated[
        str, Field(description="The exchange to publish to.", examples=["tenant_acme_stream"])
    ]
    queue: Annotated[str, Field(description="The default queue.", examples=["tenant_acme_queue"])]
    version: Annotated[int, Field(description="Counts the events of this id.", examples=[2])]
    incarnation: Annotated[
        int,
        Field(description="Counts the tenants that have had this id, from 1.", examples=[1]),
    ]
    created_at: Annotated[str, Field(examples=[EXAMPLE_TIME])]
    updated_at: Annotated[str, Field(examples=[EXAMPLE_TIME])]
    workers_current: Annotated[int | None, Field(description="Workers running now.", examples=[3])]
    messages_pending: Annotated[
        int | None,
        Field(description="Messages waiting in the queues; null if unknown.", examples=[0]),
    ]
    parked: Annotated[
        str | None,
        Field(
            description="Why the daemon itself paused the tenant; null if it did not.",
            examples=[None],
        ),
    ]
    parked_at: Annotated[
        str | None,
        Field(description="Since when; null if the daemon did not.", examples=[None]),
    ]
    trouble: Annotated[
        str | None,
        Field(
            description="What else is in its own way: why its queues are not consumed, what of it "
            "can't be repaired. Why is told to admins.",
            examples=[None],
        ),
    ]


class AccessData(BaseModel):
    """A tenant's way to the broker, shown this once: by one URL or the other."""

    username: Annotated[str, Field(examples=["tenant_acme_producer"])]
    password: Annotated[str, Field(examples=["mU3q…"])]
    amqp_url: Annotated[
        str | None,
        Field(
            description="Where the broker is RabbitMQ.",
            examples=["amqp://tenant_acme_producer:…@localhost:5672/"],
        ),
    ] = None
    postgres_url: Annotated[
        str | None,
        Field(
            description="Where the broker is the embedded one: publish with tenantry.publish().",
            examples=["postgresql://tenant_acme_producer:…@localhost:5432/tenantry"],
        ),
    ] = None


class TenantWithCredentials(Tenant):
    """A tenant, and its new credentials."""

    credentials: AccessData


class SqlAccessData(BaseModel):
    """A tenant's way to its rows with SQL. The password is shown this once."""

    tenant_id: Annotated[str, Field(examples=["acme"])]
    username: Annotated[str, Field(examples=["tenant_acme_sql_16384"])]
    password: Annotated[str, Field(examples=["mU3q…"])]
    url: Annotated[
        str,
        Field(examples=["postgresql://tenant_acme_sql_16384:…@db.example.org:5432/tenantry"]),
    ]


class CreatedTenant(Tenant):
    """A tenant that was made; `credentials` are missing where an earlier call has shown them."""

    credentials: AccessData | None = None


class TenantPage(BaseModel):
    """Tenants by id; `next_cursor` is null on the last page."""

    data: list[Tenant]
    next_cursor: Cursor


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
    body: Annotated[
        str | None, Field(description="Base64; only where there is no payload.", examples=[None])
    ] = None
    content_type: Annotated[str | None, Field(examples=["application/json"])]
    headers: Annotated[dict[str, Any] | None, Field(examples=[{"trace": "7f3a"}])]
    created_at: Annotated[str, Field(examples=[EXAMPLE_TIME])]


class MessagePage(BaseModel):
    """Messages of a tenant, or of all; `next_cursor` is null on the last page.

    `follow_cursor` leads to what is stored later, from the last page too (of one tenant, oldest
    first only). A page may hold fewer than `limit` messages, though more follow.
    """

    data: list[Message]
    next_cursor: Cursor
    follow_cursor: Cursor


class DeadLetterEntry(BaseModel):
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
    published_at: Annotated[str | None, Field(examples=[EXAMPLE_TIME])]
    dead_lettered_at: Annotated[str, Field(examples=[EXAMPLE_TIME])]
    body: Annotated[
        str | None,
        Field(
            description="Base64; null for more than 1 MiB; left out with `payload=false`.",
            examples=["bm90IGpzb24h"],
        ),
    ] = None
    headers: Annotated[
        dict[str, Any] | None,
        Field(description="Left out with `payload=false`.", examples=[{"trace": "7f3a"}]),
    ] = None


class DeadLetterPage(BaseModel):
    """Dead letters, oldest first; `next_cursor` is null on the last page."""

    data: list[DeadLetterEntry]
    next_cursor: Cursor


class _Reprocessed(BaseModel):
    refused_by_broker: Annotated[
        int | None,
        Field(description="How many the broker does not take; left out if none.", examples=[1]),
    ] = None
    complete: Annotated[
        bool | None,
        Field(
            description="False where letters are left for another call; left out otherwise.",
            examples=[False],
        ),
    ] = None


class Replayed(_Reprocessed):
    """How many dead letters were published again."""

    replayed: Annotated[int, Field(examples=[1])]
    replayed_too_often: Annotated[
        int | None,
        Field(description="How many take `force`; left out if none.", examples=[1]),
    ] = None


class Discarded(_Reprocessed):
    """How many dead letters were thrown away."""

    discarded: Annotated[int, Field(examples=[1])]


class LettersOfPlace(BaseModel):
    """How many dead letters come from a partition."""

    topic: Annotated[str, Field(examples=["logs"])]
    partition: Annotated[int, Field(examples=[0])]
    count: Annotated[int, Field(examples=[1])]


class LettersPreview(BaseModel):
    """What a call would do: to how many dead letters, and from where."""

    dry_run: Annotated[bool, Field(examples=[True])]
    as_of: Annotated[str, Field(examples=[EXAMPLE_TIME])]
    count: Annotated[int, Field(examples=[1])]
    replayed_too_often: Annotated[
        int, Field(description="How many of them would take `force`.", examples=[0])
    ]
    places: list[LettersOfPlace]


class JournalEntry(BaseModel):
    """An event of the journal."""

    position: Annotated[int, Field(description="Place in the whole journal.", examples=[12])]
    stream: Annotated[str, Field(examples=["tenant-acme"])]
    version: Annotated[int, Field(description="Place in its stream.", examples=[2])]
    id: Annotated[str, Field(examples=["8a9c6f0e-3f5f-4c55-a36e-0d6a3f9f0f11"])]
    tenant_id: Annotated[
        str | None, Field(description="Null for what is about no single one.", examples=["acme"])
    ]
    type: Annotated[str, Field(examples=["WorkersResized"])]
    schema_version: Annotated[int, Field(examples=[1])]
    data: Annotated[
        dict[str, Any], Field(examples=[{"tenant_id": "acme", "previous": 3, "workers": 5}])
    ]
    actor: Annotated[str, Field(description="Who caused it.", examples=["uid=0 pid=4711"])]
    correlation_id: str
    causation_id: str | None
    recorded_at: Annotated[str, Field(examples=[EXAMPLE_TIME])]


class EventPage(BaseModel):
    """Events, oldest first; `next_cursor` is always given, to continue when there are more."""

    data: list[JournalEntry]
    next_cursor: Annotated[str, Field(examples=[_CURSOR])]


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
    held: Annotated[int, Field(description="Of these, waiting for another attempt.")]
    rate: Annotated[float, Field(description="Messages settled a second.")]
    pending: int | None
    stored: int
    duplicates: int
    dead_lettered: int
    parked: Annotated[
        str | None,
        Field(description="Why the tenant was given up, by the journal or for now."),
    ]
    parked_at: str | None
    trouble: Annotated[
        str | None,
        Field(description="Why its queues are not consumed, or what of it can't be repaired."),
    ]


class Term(BaseModel):
    """Who acts, of several daemons on one database."""

    number: Annotated[int, Field(examples=[7])]
    host: Annotated[str, Field(examples=["ingest-1"])]
    pid: Annotated[int, Field(examples=[4711])]
    since: Annotated[str, Field(examples=[EXAMPLE_TIME])]


class Status(BaseModel):
    """The daemon at a glance."""

    state: Literal["starting", "standby", "running", "draining", "drained", "stopping"]
    ready: bool
    reasons: list[str]
    started_at: Annotated[str, Field(examples=[EXAMPLE_TIME])]
    version: Annotated[str, Field(examples=["0.1.0"])]
    pid: int
    role: Literal["leader", "standby"]
    term: Term | None
    tree: Actor
    abandoned: Annotated[
        list[str], Field(description="Actors that were replaced and whose threads still hang.")
    ]
    tenants: dict[str, Runtime]


class LetterBooks(BaseModel):
    """A tenant's dead letters since its creation: `kept` less the other three are `listed`."""

    kept: Annotated[int, Field(description="Ever listed.", examples=[3])]
    replayed: Annotated[int, Field(examples=[1])]
    discarded: Annotated[int, Field(examples=[1])]
    missing: Annotated[
        int, Field(description="Listed, and found gone from the queue.", examples=[0])
    ]
    listed: Annotated[int, Field(description="Listed now.", examples=[1])]
    queued: Annotated[
        int | None,
        Field(description="In the queue now; null where the broker can't be asked.", examples=[1]),
    ]


class AuditDifference(BaseModel):
    """Two figures that should be equal."""

    kind: Literal["counts", "rows", "dead_letters", "dead_letter_queue", "in_flight"]
    expected: Annotated[int, Field(examples=[1000])]
    found: Annotated[int, Field(examples=[997])]
    text: Annotated[
        str,
        Field(
            examples=["3 rows of tenant acme are missing: counted 1000 stored, 997 rows"],
        ),
    ]


class TenantAudit(BaseModel):
    """What was counted of a tenant since its creation, held against what is there."""

    tenant_id: Annotated[str, Field(examples=["acme"])]
    balanced: Annotated[bool, Field(description="It adds up.")]
    accepted: Annotated[
        int,
        Field(description="stored + duplicates + dead_lettered + in_flight", examples=[1010]),
    ]
    stored: Annotated[int, Field(examples=[1000])]
    duplicates: Annotated[int, Field(examples=[7])]
    dead_lettered: Annotated[int, Field(examples=[3])]
    in_flight: Annotated[
        int | None,
        Field(description="Taken, not yet acknowledged; null without actors.", examples=[0]),
    ]
    waiting: Annotated[
        int | None,
        Field(description="Ready in the queues; null where the broker can't be asked."),
    ]
    removed: Annotated[int, Field(description="Rows taken away on purpose.", examples=[0])]
    rows: Annotated[int | None, Field(description="Null where not counted.", examples=[997])]
    dead_letters: LetterBooks
    differences: list[AuditDifference]
    moving: Annotated[
        bool,
        Field(description="Books and queues never stood still together; these go uncompared."),
    ]
    uncounted: Annotated[str | None, Field(description="Why the rows were not counted.")]


class AuditPage(BaseModel):
    """Audits of tenants, by id; `next_cursor` is null on the last page."""

    balanced: Annotated[bool, Field(description="All on this page adds up.")]
    data: list[TenantAudit]
    next_cursor: Cursor


class IsolationCheck(BaseModel):
    """One attempt: a probe in the tenant's place tried to reach what belongs to the owner."""

    tenant: Annotated[str, Field(examples=["acme"])]
    owner: Annotated[str, Field(examples=["globex"])]
    action: Literal["write", "read", "configure"]
    target: Annotated[str, Field(examples=["tenant_globex_stream"])]
    allowed: Annotated[bool, Field(examples=[False])]
    holds: Annotated[bool, Field(description="It went as it should.", examples=[True])]


class Isolation(BaseModel):
    """A proof that each tenant reaches its own and no other's."""

    isolated: bool
    leaks: Annotated[list[str], Field(description="What was possible and must not be.")]
    denials: Annotated[list[str], Field(description="What was refused and must not be.")]
    unjudged: Annotated[list[str], Field(description="Of whom there is no verdict, and why.")]
    open: Annotated[
        list[str],
        Field(description="What the database leaves open to every role, and how it is closed."),
    ]
    checks: list[IsolationCheck]


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
