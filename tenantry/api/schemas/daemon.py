"""The daemon as a whole: its state, and what its actors do."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import orjson
from pydantic import Field

from tenantry.api.schemas.common import (
    EXAMPLE_TIME,
    MAX_LIST,
    Answer,
    StrictInput,
    StrictQuery,
    Time,
    format_time,
    parse_time,
    values_of,
)
from tenantry.control.port import Role, SystemState, SystemStatus, TenantRuntime
from tenantry.http.tokens import Scope
from tenantry.nodes.port import Listed, NodeState

MAX_NODE_NAME: Final = 63


class State(Answer):
    """The state of the daemon as a whole."""

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
    latency_p99_ms: float | None = Field(
        description="From published to committed, in the last minute that is over; null where "
        "nothing was stored in it."
    )
    rate_limit: int | None = Field(
        description="Messages stored a second at most; null without a limit."
    )
    backlog_limit: int | None = Field(
        description="Messages that may wait at most; null without a limit."
    )


class Term(Answer):
    """The daemon that acts, of several on one database."""

    number: int = Field(examples=[7])
    host: str = Field(examples=["ingest-1"])
    pid: int = Field(examples=[4711])
    since: Time = Field(examples=[EXAMPLE_TIME])


class NodeSeen(Answer):
    """A node, and what it is doing."""

    name: str = Field(examples=["ingest-1"])
    state: str = Field(examples=["active"], json_schema_extra=values_of(NodeState))


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
    node: str | None = Field(
        description="This daemon's name among the nodes; null while it stands by.",
        examples=["ingest-1"],
    )
    nodes: list[NodeSeen] = Field(description="All nodes, as this one has seen them last.")
    tree: Actor
    abandoned: list[str] = Field(
        description="Actors that were replaced and whose threads still hang."
    )
    tenants: dict[str, Runtime] = Field(description="This node's own.")


class WhoAmI(Answer):
    """The caller, and what they may do."""

    name: str = Field(description="As the journal names them.", examples=["ann"])
    scope: str = Field(examples=["operate"], json_schema_extra=values_of(Scope))
    tenant_id: str | None = Field(description="With the scope `tenant`.", examples=[None])
    payloads: bool = Field(description="Whether they may see what is in messages.")
    anonymous: bool = Field(description="Whether they came without a token, as none is asked for.")


class LoginCode(Answer):
    """A code that begins a session of the page, once, within a minute."""

    code: str | None = Field(
        description="For `/ui/login?code=`; null where the page asks for no token.",
        examples=["kZ0xRhsZoTY0QjsSn1VLt"],
    )


class Overview(Answer):
    """All nodes' tenants together, as their actors report them."""

    tenants: int = Field(description="How many exist.", examples=[41])
    states: dict[str, int] = Field(
        description="How many are in each state.", examples=[{"active": 40, "paused": 1}]
    )
    troubled: int = Field(
        description="How many are parked, or have something else in their way.", examples=[0]
    )
    rate: float = Field(description="Messages settled a second.", examples=[812.5])
    pending: int = Field(description="Messages waiting in the queues.", examples=[0])
    unsettled: int = Field(description="Taken, not yet acknowledged.", examples=[0])
    stored: int = Field(description="Since the tenants' creation.", examples=[81250])
    duplicates: int = Field(examples=[0])
    dead_lettered: int = Field(examples=[0])
    dead_letters: int | None = Field(
        description="Dead letters that are listed now; null while the database is away.",
        examples=[0],
    )
    silent_nodes: list[str] = Field(
        description="Nodes that did not answer in time; theirs is left out.", examples=[[]]
    )


class StatusQuery(StrictQuery):
    """Whose status is shown."""

    node: str | None = Field(
        default=None,
        max_length=MAX_NODE_NAME,
        description="The node whose status it is; this one's if left out.",
        examples=["ingest-1"],
    )


class TenantsAsked(StrictInput):
    """The tenants that are asked about."""

    tenants: list[str] = Field(
        max_length=MAX_LIST, description="Their ids.", examples=[["acme", "globex"]]
    )


class Runtimes(Answer):
    """What tenants' actors do; tenants without actors here are left out."""

    data: dict[str, Runtime]


def status_json(status: SystemStatus) -> bytes:
    """Write a status as `Status` describes it, without models: thousands of them take long."""
    shown = {name: getattr(status, name) for name in Status.model_fields}
    shown["tenants"] = _shown(status.tenants)
    return _written(shown)


def runtimes_json(runtimes: Mapping[str, TenantRuntime]) -> bytes:
    """Write runtimes as `Runtimes` describes them."""
    return _written({"data": _shown(runtimes)})


def runtime_of(written: Mapping[str, Any]) -> TenantRuntime:
    """Read what another node has written as `Runtime`; earlier versions write fewer fields.

    Raises `ValueError`, `KeyError` or `TypeError`.
    """
    told = {name: written[name] for name in Runtime.model_fields if name in written}
    at = told["parked_at"]
    told["parked_at"] = None if at is None else parse_time(at)
    return TenantRuntime(**told)


def _shown(runtimes: Mapping[str, TenantRuntime]) -> dict[str, Any]:
    return {
        tenant_id: {name: getattr(runtime, name) for name in Runtime.model_fields}
        for tenant_id, runtime in runtimes.items()
    }


def _written(shown: object) -> bytes:
    return orjson.dumps(shown, default=format_time, option=orjson.OPT_PASSTHROUGH_DATETIME)


class NodeShown(Answer):
    """A node."""

    name: str = Field(examples=["ingest-1"])
    version: str = Field(examples=["0.1.0"])
    state: str = Field(
        description="`lost`: not heard of for a lease, or ended; its tenants are elsewhere.",
        examples=["active"],
        json_schema_extra=values_of(NodeState),
    )
    tenants: int = Field(description="How many are its own.", examples=[41])
    weight: float = Field(description="Its share of the tenants, beside others'.", examples=[1.0])
    rate: float = Field(description="Messages it stores a second.", examples=[812.5])
    last_heartbeat: Time = Field(
        description="By the clock of the database.", examples=[EXAMPLE_TIME]
    )
    joined_at: Time = Field(examples=[EXAMPLE_TIME])
    host: str = Field(examples=["ingest-1.example.org"])
    pid: int = Field(examples=[4711])
    address: str = Field(
        description="Where nodes on other machines reach its API.",
        examples=["https://ingest-1.example.org:8080"],
    )

    @classmethod
    def of(cls, listed: Listed) -> Self:
        """Describe a node."""
        node = listed.node
        return cls.made_of(
            node,
            version=node.introduction.version,
            state=listed.state.value,
            tenants=listed.tenants,
            weight=node.introduction.weight,
            last_heartbeat=datetime.now(UTC) - timedelta(seconds=node.heard),
            host=node.standing.holder.host,
            pid=node.standing.holder.pid,
            address=node.introduction.address,
        )


class NodeList(Answer):
    """All nodes there are, by name."""

    data: list[NodeShown]


class Destination(StrictInput):
    """The node that a tenant is to move to."""

    node: str | None = Field(
        max_length=MAX_NODE_NAME,
        description="A node's name. Null: where placement puts it, as before any wish.",
        examples=["ingest-2"],
    )
