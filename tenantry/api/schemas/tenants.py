"""Tenants and their limits: the input that makes and changes them, and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from tenantry.api.schemas.common import (
    AS_WHOLE,
    EXAMPLE_TIME,
    Answer,
    Cursor,
    PageQuery,
    StrictInput,
    StrictQuery,
    Time,
    values_of,
)
from tenantry.api.schemas.credentials import AccessData
from tenantry.control.port import Outcome, TenantRuntime
from tenantry.domain import names
from tenantry.domain.limits import MAX_WORKERS, MIN_WORKERS, RANGES, SHOWN, Limits, parse_span
from tenantry.domain.tenant import (
    MAX_NAME,
    MAX_PARTITIONS,
    MAX_TOPICS,
    MIN_PARTITIONS,
    Lifecycle,
    TenantState,
)
from tenantry.domain.topics import Ordering, Topic
from tenantry.nodes.port import Owned

_TROUBLE: Final = "it is in trouble; the operator can see why"

_WORKERS: Final = "How many workers may store the tenant's messages at once."
_TOPICS: Final = "Names of 1 to 63 of a-z, 0-9, _ and -; `default` always exists."
_TOPICS_ASKED: Final = (
    f"{_TOPICS} Or an object with the name, its partitions and its ordering; these stay."
)

Workers: TypeAlias = Annotated[
    int, Field(ge=MIN_WORKERS, le=MAX_WORKERS, description=_WORKERS, examples=[3]), AS_WHOLE
]
_TopicName: TypeAlias = Annotated[
    str, Field(json_schema_extra={"pattern": f"^{names.TOPIC.pattern}$"})
]
_ORDERING: Final = (
    "With `partition` the messages of a partition are handled and stored strictly as they were "
    "published, also where one is tried again."
)


class TopicWanted(StrictInput):
    """A topic; a plain text is a name without settings."""

    name: _TopicName
    partitions: Annotated[
        int | None,
        Field(
            ge=MIN_PARTITIONS,
            le=MAX_PARTITIONS,
            description="Its queues; the tenant's `partitions` if left out.",
            examples=[8],
        ),
        AS_WHOLE,
    ] = None
    ordering: Literal["none", "partition"] | None = Field(
        default=None, description=f"{_ORDERING} `none` if left out.", examples=["partition"]
    )

    @model_validator(mode="before")
    @classmethod
    def _by_its_name(cls, given: object) -> object:
        return {"name": given} if isinstance(given, str) else given

    def as_topic(self) -> Topic:
        """Return the topic asked for."""
        ordering = None if self.ordering is None else Ordering(self.ordering)
        return Topic(name=self.name, partitions=self.partitions, ordering=ordering)


class _OrByName:
    """Tells in the description of the API that a topic's name alone will do."""

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        name = {"type": "string", "pattern": f"^{names.TOPIC.pattern}$"}
        return {"anyOf": [name, handler(core)]}


Topics: TypeAlias = Annotated[
    list[Annotated[TopicWanted, _OrByName()]],
    Field(
        max_length=MAX_TOPICS,
        description=_TOPICS_ASKED,
        examples=[["events", {"name": "orders", "partitions": 8, "ordering": "partition"}]],
    ),
]


def topics_of(wanted: Sequence[TopicWanted]) -> tuple[Topic, ...]:
    """Return the topics asked for."""
    return tuple(one.as_topic() for one in wanted)


# Answers state these limits without enforcing them: a tenant may have been made under others.
_WorkersShown: TypeAlias = Annotated[
    int,
    Field(
        description=_WORKERS,
        examples=[3],
        json_schema_extra={"minimum": MIN_WORKERS, "maximum": MAX_WORKERS},
    ),
]
_TopicsShown: TypeAlias = Annotated[
    list[Annotated[str, Field(json_schema_extra={"pattern": f"^{names.TOPIC.pattern}$"})]],
    Field(
        description=_TOPICS,
        examples=[["events", "logs"]],
        json_schema_extra={"maxItems": MAX_TOPICS},
    ),
]


class TenantCreation(StrictInput):
    """A tenant to be made."""

    name: str = Field(
        min_length=1,
        max_length=MAX_NAME,
        description="For people: printable characters.",
        examples=["Acme Ltd"],
    )
    id: str | None = Field(
        default=None,
        description="1 to 40 of a-z, 0-9 and inner hyphens; a UUID if left out.",
        json_schema_extra={"pattern": f"^{names.TENANT_ID.pattern}$"},
        examples=["acme"],
    )
    workers: Workers | None = None
    topics: Topics = []  # noqa: RUF012 - pydantic copies it
    partitions: Annotated[
        int,
        Field(ge=MIN_PARTITIONS, le=MAX_PARTITIONS, description="Queues a topic.", examples=[1]),
        AS_WHOLE,
    ] = 1


SORTS: Final = ("id", "name", "state", "rate", "pending", "dead_lettered")


class TenantsQuery(PageQuery):
    """Which tenants are listed, and in which order."""

    search: str = Field(
        default="",
        max_length=MAX_NAME,
        description="A text in the id or the name, whatever its case.",
        examples=["acme"],
    )
    sort: str = Field(
        default="id",
        pattern=rf"^-?({'|'.join(SORTS)})$",
        description=f"One of {', '.join(SORTS)}; with a `-` before it, the greatest first.",
        examples=["-pending"],
    )

    @field_validator("search")
    @classmethod
    def _printable(cls, text: str) -> str:
        if not text.isprintable():
            raise ValueError("must be of printable characters")
        return text


class Concurrency(StrictInput):
    """The number of workers wanted."""

    workers: Workers


class NewTopics(StrictInput):
    """Topics a tenant shall have too; those it has already are left as they are."""

    topics: Topics = Field(min_length=1)


_LIMITS: Final[Mapping[str, str]] = {
    "weight": "Its share of workers' and the database's time while tenants compete, relative to "
    "others' weights.",
    "rate": "Messages stored a second at most; the rest waits in the queue.",
    "burst": "Messages stored at once after a pause; a second's worth where it is null.",
    "backlog_messages": "Messages that may wait; publishing is refused beyond.",
    "backlog_bytes": "Bytes of messages that may wait; publishing is refused beyond.",
    "connections": "Connections that its broker user may have open.",
    "channels": "Channels that its broker user may have open.",
    "workers_min": "The number of workers follows the load, and is never less than this.",
    "workers_max": "The number of workers follows the load, and is never more than this.",
    "retention_seconds": "Stored messages that are older are removed: seconds, or text like "
    "`90s`, `12h`, `7d`, `2w`.",
    "retention_rows": "Stored messages beyond the newest so many are removed.",
}


def _limit(name: str) -> object:
    least, most = RANGES[name]
    bounds: dict[str, Any] = {"minimum": least, "maximum": most}
    return Field(default=None, description=_LIMITS[name], json_schema_extra=bounds)


def _limit_shown(name: str) -> object:
    return Field(description=_LIMITS[name], examples=[None])


def _seconds(value: object) -> object:
    """Turn text like `7d` into seconds; any other value is left to the validation after this."""
    if isinstance(value, str) and (seconds := parse_span(value)) is not None:
        return seconds
    return value


# The domain checks the ranges, as a tenant's other limits count, too.
_Whole: TypeAlias = Annotated[int | None, AS_WHOLE]
_Span: TypeAlias = Annotated[int | None, BeforeValidator(_seconds), AS_WHOLE]


class BacklogChange(StrictInput):
    """What may wait in a tenant's queues."""

    messages: Annotated[_Whole, _limit("backlog_messages")] = None
    bytes: Annotated[_Whole, _limit("backlog_bytes")] = None


class RetentionChange(StrictInput):
    """How long a tenant's stored messages are kept."""

    age: Annotated[_Span, _limit("retention_seconds")] = None
    rows: Annotated[_Whole, _limit("retention_rows")] = None


class LimitsChange(StrictInput):
    """Limits to be changed (a JSON merge patch): what is left out stays, null lifts a limit."""

    weight: Annotated[_Whole, _limit("weight")] = None
    rate: Annotated[_Whole, _limit("rate")] = None
    burst: Annotated[_Whole, _limit("burst")] = None
    backlog: BacklogChange | None = None
    connections: Annotated[_Whole, _limit("connections")] = None
    channels: Annotated[_Whole, _limit("channels")] = None
    workers_min: Annotated[_Whole, _limit("workers_min")] = None
    workers_max: Annotated[_Whole, _limit("workers_max")] = None
    retention: RetentionChange | None = None

    def changes(self) -> dict[str, int | None]:
        """Return the changes, by the names of `Limits`."""
        changes: dict[str, int | None] = {}
        for name in Limits.__dataclass_fields__:
            group, _, part = SHOWN.get(name, name).partition(".")
            if group not in self.model_fields_set:
                continue
            value = getattr(self, group)
            if part and value is not None:
                if part in value.model_fields_set:
                    changes[name] = getattr(value, part)
            else:
                changes[name] = value
        return changes


class TenantQuery(StrictQuery):
    """The moment at which a tenant is shown."""

    at: str | None = Field(
        default=None,
        max_length=64,
        description="An RFC 3339 time, or a version number.",
        examples=[EXAMPLE_TIME, "3"],
    )


class DeletionQuery(StrictQuery):
    """What becomes of a deleted tenant's messages."""

    retain: bool = Field(default=False, description="Keep the stored messages readable.")


class TopicSettings(Answer):
    """A topic's partitions and ordering."""

    name: str = Field(examples=["orders"])
    partitions: int = Field(description="Its queues.", examples=[8])
    ordering: str = Field(
        description=_ORDERING, examples=["partition"], json_schema_extra=values_of(Ordering)
    )


class Backlog(Answer):
    """What may wait in a tenant's queues."""

    messages: Annotated[int | None, _limit_shown("backlog_messages")]
    bytes: Annotated[int | None, _limit_shown("backlog_bytes")]


class Retention(Answer):
    """How long a tenant's stored messages are kept; `age` is in seconds."""

    age: Annotated[int | None, _limit_shown("retention_seconds")]
    rows: Annotated[int | None, _limit_shown("retention_rows")]


class TenantLimits(Answer):
    """A tenant's limits; null where there is none."""

    weight: Annotated[int, Field(description=_LIMITS["weight"], examples=[1])]
    rate: Annotated[int | None, _limit_shown("rate")]
    burst: Annotated[int | None, _limit_shown("burst")]
    backlog: Backlog | None = Field(examples=[None])
    connections: Annotated[int | None, _limit_shown("connections")]
    channels: Annotated[int | None, _limit_shown("channels")]
    workers_min: Annotated[int | None, _limit_shown("workers_min")]
    workers_max: Annotated[int | None, _limit_shown("workers_max")]
    retention: Retention | None = Field(examples=[None])

    @classmethod
    def of(cls, limits: Limits) -> Self:
        """Show limits."""
        backlog = Backlog(messages=limits.backlog_messages, bytes=limits.backlog_bytes)
        retention = Retention(age=limits.retention_seconds, rows=limits.retention_rows)
        return cls.made_of(
            limits,
            backlog=backlog if _any(backlog) else None,
            retention=retention if _any(retention) else None,
        )


def _any(group: Answer) -> bool:
    return any(value is not None for _, value in group)


class Tenant(Answer):
    """A tenant. Figures of what is running are null where the past is shown."""

    id: str = Field(examples=["acme"])
    name: str = Field(examples=["Acme Ltd"])
    state: str = Field(examples=["active"], json_schema_extra=values_of(Lifecycle))
    workers: _WorkersShown
    topics: _TopicsShown
    partitions: int = Field(
        description="Of a topic that was asked for by its name alone.", examples=[1]
    )
    topic_settings: list[TopicSettings] = Field(description="Of each of `topics`.")
    stream: str = Field(description="The exchange to publish to.", examples=["tenant_acme_stream"])
    queue: str = Field(description="The default queue.", examples=["tenant_acme_queue"])
    version: int = Field(description="Counts the events of this id.", examples=[2])
    incarnation: int = Field(
        description="Counts the tenants that have had this id, from 1.", examples=[1]
    )
    consumer_access: bool = Field(
        description="Whether it has a broker user that reads its topics.", examples=[False]
    )
    limits: TenantLimits
    created_at: Time = Field(examples=[EXAMPLE_TIME])
    updated_at: Time = Field(examples=[EXAMPLE_TIME])
    node: str | None = Field(
        description="The node that it is at work on; null while it is on its way to one, and of "
        "the past.",
        examples=["ingest-1"],
    )
    epoch: int | None = Field(
        description="Goes up whenever its node changes; null where `node` never was.", examples=[1]
    )
    workers_current: int | None = Field(
        description="Workers running now; null where its node can't be asked.", examples=[3]
    )
    messages_pending: int | None = Field(
        description="Messages waiting in the queues; null if unknown.", examples=[0]
    )
    rate: float | None = Field(
        description="Messages settled a second, over the last ten; null if unknown.", examples=[0.0]
    )
    dead_lettered: int | None = Field(
        description="Messages that became dead letters, since its creation; null if unknown.",
        examples=[0],
    )
    parked: str | None = Field(
        description="Why the daemon itself paused the tenant; null if it did not.", examples=[None]
    )
    parked_at: Time | None = Field(
        description="Since when; null if the daemon did not.", examples=[None]
    )
    trouble: str | None = Field(
        description="What else is in its own way: why its queues are not consumed, what of it "
        "can't be repaired. Why is told to operators.",
        examples=[None],
    )

    @classmethod
    def of(
        cls,
        state: TenantState,
        runtime: TenantRuntime | None,
        owned: Owned | None = None,
        *,
        known: bool = True,
        to_operator: bool = True,
    ) -> Self:
        """Describe a tenant as it is now. No runtime means that nothing runs, if that is `known`.

        Its trouble may name what belongs to others, so only operators are told it.
        """
        trouble = None if runtime is None else runtime.trouble
        return cls.made_of(
            state,
            id=state.tenant_id,
            state=state.lifecycle.value,
            stream=names.exchange_name(state.tenant_id),
            queue=names.queue_name(state.tenant_id),
            limits=TenantLimits.of(state.limits),
            topic_settings=[TopicSettings.made_of(one) for one in state.settings()],
            node=None if owned is None else owned.node,
            epoch=None if owned is None else owned.epoch,
            workers_current=(0 if known else None) if runtime is None else runtime.workers_current,
            messages_pending=None if runtime is None else runtime.pending,
            rate=None if runtime is None else runtime.rate,
            dead_lettered=None if runtime is None else runtime.dead_lettered,
            trouble=trouble if to_operator or trouble is None else _TROUBLE,
        )

    @classmethod
    def past(cls, state: TenantState) -> Self:
        """Describe a tenant as it was; what was running then is not known."""
        return cls.of(state, None, known=False)


class CreatedTenant(Tenant):
    """A tenant that was made; `credentials` are missing where an earlier call has shown them."""

    credentials: AccessData | None = None

    @classmethod
    def of_outcome(cls, outcome: Outcome, owned: Owned | None) -> Self:
        """Describe what a command has done, with the credentials it made, if it made any."""
        shown = cls.of(outcome.tenant, outcome.runtime, owned)
        if outcome.credentials is not None:
            shown.credentials = AccessData.of(outcome.credentials)
        return shown


class TenantWithCredentials(Tenant):
    """A tenant, and its new credentials."""

    credentials: AccessData


class TenantPage(Answer):
    """Tenants in the order asked for; `next_cursor` is null on the last page."""

    data: list[Tenant]
    next_cursor: Cursor
    silent_nodes: list[str] = Field(
        description="Nodes that did not answer in time: what runs of their tenants is null.",
        examples=[[]],
    )
