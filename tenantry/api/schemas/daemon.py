"""The daemon as a whole: how it is, and what its actors do."""

from __future__ import annotations

import orjson
from pydantic import Field

from tenantry.api.schemas.common import EXAMPLE_TIME, Answer, Time, format_time, values_of
from tenantry.control.port import Role, SystemState, SystemStatus


class State(Answer):
    """How the daemon as a whole is."""

    state: str = Field(examples=["running"])


class Actor(Answer):
    """An actor and those it owns."""

    name: str = Field(examples=["supervisor"])
    kind: str = Field(examples=["Supervisor"])
    state: str = Field(examples=["running"])
    mailbox: int = Field(description="Messages that wait for it.", examples=[0])
    restarts: int = Field(examples=[0])
    children: list[Actor]


class Runtime(Answer):
    """What a tenant's actors do; totals since the tenant's creation."""

    tenant_id: str = Field(examples=["acme"])
    workers_current: int
    consuming: bool
    unsettled: int = Field(description="Taken, not yet acknowledged.")
    held: int = Field(description="Of these, waiting for another attempt.")
    rate: float = Field(description="Messages settled a second.")
    pending: int | None
    stored: int
    duplicates: int
    dead_lettered: int
    parked: str | None = Field(
        description="Why the tenant was given up, by the journal or for now."
    )
    parked_at: Time | None
    trouble: str | None = Field(
        description="Why its queues are not consumed, or what of it can't be repaired."
    )


class Term(Answer):
    """Who acts, of several daemons on one database."""

    number: int = Field(examples=[7])
    host: str = Field(examples=["ingest-1"])
    pid: int = Field(examples=[4711])
    since: Time = Field(examples=[EXAMPLE_TIME])


class Status(Answer):
    """The daemon at a glance."""

    state: str = Field(json_schema_extra=values_of(SystemState))
    ready: bool
    reasons: list[str]
    started_at: Time = Field(examples=[EXAMPLE_TIME])
    version: str = Field(examples=["0.1.0"])
    pid: int
    role: str = Field(json_schema_extra=values_of(Role))
    term: Term | None
    tree: Actor
    abandoned: list[str] = Field(
        description="Actors that were replaced and whose threads still hang."
    )
    tenants: dict[str, Runtime]


def status_json(status: SystemStatus) -> bytes:
    """Write it as `Status` describes it: a model for each of thousands of actors takes long."""
    shown = {name: getattr(status, name) for name in Status.model_fields}
    shown["tenants"] = {
        tenant_id: {name: getattr(runtime, name) for name in Runtime.model_fields}
        for tenant_id, runtime in status.tenants.items()
    }
    return orjson.dumps(shown, default=format_time, option=orjson.OPT_PASSTHROUGH_DATETIME)
