"""The daemon as a whole: how it is, and what its actors do."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tenantry.api.schemas.common import EXAMPLE_TIME, Answer, Time, values_of
from tenantry.control.port import Role, SystemState


class State(Answer):
    """How the daemon as a whole is."""

    state: Annotated[str, Field(examples=["running"])]


class Actor(Answer):
    """An actor and those it owns."""

    name: Annotated[str, Field(examples=["supervisor"])]
    kind: Annotated[str, Field(examples=["Supervisor"])]
    state: Annotated[str, Field(examples=["running"])]
    mailbox: Annotated[int, Field(description="Messages that wait for it.", examples=[0])]
    restarts: Annotated[int, Field(examples=[0])]
    children: list[Actor]


class Runtime(Answer):
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
    parked_at: Time | None
    trouble: Annotated[
        str | None,
        Field(description="Why its queues are not consumed, or what of it can't be repaired."),
    ]


class Term(Answer):
    """Who acts, of several daemons on one database."""

    number: Annotated[int, Field(examples=[7])]
    host: Annotated[str, Field(examples=["ingest-1"])]
    pid: Annotated[int, Field(examples=[4711])]
    since: Annotated[Time, Field(examples=[EXAMPLE_TIME])]


class Status(Answer):
    """The daemon at a glance."""

    state: Annotated[str, Field(json_schema_extra=values_of(SystemState))]
    ready: bool
    reasons: list[str]
    started_at: Annotated[Time, Field(examples=[EXAMPLE_TIME])]
    version: Annotated[str, Field(examples=["0.1.0"])]
    pid: int
    role: Annotated[str, Field(json_schema_extra=values_of(Role))]
    term: Term | None
    tree: Actor
    abandoned: Annotated[
        list[str], Field(description="Actors that were replaced and whose threads still hang.")
    ]
    tenants: dict[str, Runtime]
