"""Statistics: what became of a tenant's messages over time."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, Field

from tenantry.api.schemas.common import EXAMPLE_TIME, Answer, StrictQuery, Time
from tenantry.domain.limits import parse_span
from tenantry.metrics.statistics import MINUTE, WEEK, Series, Slot

_WANTED: Final = "a span of time from 1m to 7d, like 90m, 24h or 7d"


def _window(value: object) -> object:
    if isinstance(value, str):
        seconds = parse_span(value)
        if seconds is None or not MINUTE.total_seconds() <= seconds <= WEEK.total_seconds():
            raise ValueError(f"must be {_WANTED}")
        return timedelta(seconds=seconds)
    return value


_SCHEMA: Final[dict[str, Any]] = {"type": "string", "format": "", "default": "1h"}


class StatisticsQuery(StrictQuery):
    """How far back statistics go."""

    window: Annotated[
        timedelta,
        BeforeValidator(_window),
        Field(description=f"How far back: {_WANTED}.", examples=["24h"], json_schema_extra=_SCHEMA),
    ] = timedelta(hours=1)


class Outcomes(Answer):
    """What became of messages in a time."""

    stored: int = Field(examples=[1200])
    duplicates: int = Field(description="Their id was stored before.", examples=[3])
    dead_lettered: int = Field(examples=[0])
    rate: float = Field(description="Messages stored a second.", examples=[20.0])
    backlog: int = Field(description="The most that waited in the queues.", examples=[40])
    latency_p50_ms: float | None = Field(
        description="Half of the messages were stored within so long after they were published; "
        "60000 where it was longer, null where there were none.",
        examples=[4.2],
    )
    latency_p99_ms: float | None = Field(
        description="99 of 100 were stored within so long.", examples=[18.5]
    )


class Point(Outcomes):
    """What became of a tenant's messages in one step of time."""

    at: Time = Field(description="When the step begins.", examples=[EXAMPLE_TIME])


class TenantStatistics(Answer):
    """What became of a tenant's messages over time, in points that are `step_seconds` apart."""

    tenant_id: str = Field(examples=["acme"])
    start: Time = Field(examples=[EXAMPLE_TIME])
    end: Time = Field(description="The end of the last minute that is known.")
    step_seconds: int = Field(examples=[60])
    total: Outcomes
    points: list[Point]

    @classmethod
    def of(cls, tenant_id: str, series: Series) -> Self:
        """Show statistics."""
        seconds = sum(series.seconds(point) for point in series.points)
        return cls(
            tenant_id=tenant_id,
            start=series.points[0].at,
            end=series.end,
            step_seconds=int(series.step.total_seconds()),
            total=Outcomes(**_outcomes(series.total, seconds)),
            points=[
                Point(at=point.at, **_outcomes(point, series.seconds(point)))
                for point in series.points
            ],
        )


def _outcomes(slot: Slot, seconds: float) -> dict[str, Any]:
    return {
        "stored": slot.stored,
        "duplicates": slot.duplicates,
        "dead_lettered": slot.dead_lettered,
        "rate": round(slot.stored / seconds, 2) if seconds else 0.0,
        "backlog": slot.backlog,
        "latency_p50_ms": slot.latency(0.5),
        "latency_p99_ms": slot.latency(0.99),
    }
