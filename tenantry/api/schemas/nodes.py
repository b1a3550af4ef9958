"""Nodes: daemons on one database, and where tenants are at work."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Self

from pydantic import Field

from tenantry.api.schemas.common import EXAMPLE_TIME, Answer, StrictInput, Time, values_of
from tenantry.api.schemas.daemon import MAX_NODE_NAME
from tenantry.nodes.port import Listed, NodeState


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
