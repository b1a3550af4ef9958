"""A tenant's limits: how they are changed, and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Self, TypeAlias

from pydantic import BeforeValidator, Field

from tenantry.api.schemas.common import AS_WHOLE, Answer, StrictInput
from tenantry.domain.limits import RANGES, SHOWN, Limits, parse_span

_TOLD: Final[Mapping[str, str]] = {
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


def _field(name: str) -> object:
    least, most = RANGES[name]
    bounds: dict[str, Any] = {"minimum": least, "maximum": most}
    return Field(default=None, description=_TOLD[name], json_schema_extra=bounds)


def _shown(name: str) -> object:
    return Field(description=_TOLD[name], examples=[None])


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

    messages: Annotated[_Whole, _field("backlog_messages")] = None
    bytes: Annotated[_Whole, _field("backlog_bytes")] = None


class RetentionChange(StrictInput):
    """How long a tenant's stored messages are kept."""

    age: Annotated[_Span, _field("retention_seconds")] = None
    rows: Annotated[_Whole, _field("retention_rows")] = None


class LimitsChange(StrictInput):
    """Limits to be changed (a JSON merge patch): what is left out stays, null lifts a limit."""

    weight: Annotated[_Whole, _field("weight")] = None
    rate: Annotated[_Whole, _field("rate")] = None
    burst: Annotated[_Whole, _field("burst")] = None
    backlog: BacklogChange | None = None
    connections: Annotated[_Whole, _field("connections")] = None
    channels: Annotated[_Whole, _field("channels")] = None
    workers_min: Annotated[_Whole, _field("workers_min")] = None
    workers_max: Annotated[_Whole, _field("workers_max")] = None
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


class Backlog(Answer):
    """What may wait in a tenant's queues."""

    messages: Annotated[int | None, _shown("backlog_messages")]
    bytes: Annotated[int | None, _shown("backlog_bytes")]


class Retention(Answer):
    """How long a tenant's stored messages are kept; `age` is in seconds."""

    age: Annotated[int | None, _shown("retention_seconds")]
    rows: Annotated[int | None, _shown("retention_rows")]


class TenantLimits(Answer):
    """A tenant's limits; null where there is none."""

    weight: Annotated[int, Field(description=_TOLD["weight"], examples=[1])]
    rate: Annotated[int | None, _shown("rate")]
    burst: Annotated[int | None, _shown("burst")]
    backlog: Backlog | None = Field(examples=[None])
    connections: Annotated[int | None, _shown("connections")]
    channels: Annotated[int | None, _shown("channels")]
    workers_min: Annotated[int | None, _shown("workers_min")]
    workers_max: Annotated[int | None, _shown("workers_max")]
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
