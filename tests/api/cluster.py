"""Nodes in memory, as tests of the API want them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime

from tenantry.nodes.port import (
    Glance,
    Introduction,
    Listed,
    Node,
    NodeNotFoundError,
    NodeRefusedError,
    NodeState,
    Owned,
)
from tenantry.terms.port import Holder, Standing


class AllThatAreHere(Mapping[str, Owned]):
    """A node's tenants: whichever one may ask for, but those that are elsewhere."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster

    def __getitem__(self, tenant_id: str) -> Owned:
        if tenant_id in self._cluster.elsewhere:
            raise KeyError(tenant_id)
        return Owned(tenant_id=tenant_id, node=self._cluster.name, epoch=1)

    def __iter__(self) -> Iterator[str]:
        raise TypeError("they are without number")

    def __len__(self) -> int:
        raise TypeError("they are without number")


class FakeCluster:
    """Nodes in a table; this one is `one`, and has all tenants but those that are `elsewhere`."""

    def __init__(self, name: str = "one") -> None:
        self.name = name
        self.elsewhere: dict[str, Owned] = {}
        self.owned = AllThatAreHere(self)
        self.states = {name: NodeState.ACTIVE}
        self.wanted: dict[str, str | None] = {}
        self.asked = 0
        self.left: list[int] = []
        """How many tenants each node has, look after look; the last number stays."""

    def glance(self) -> list[Glance]:
        return [Glance(name=name, state=state) for name, state in sorted(self.states.items())]

    def place(self, tenant_id: str) -> str | None:
        owned = self.elsewhere.get(tenant_id)
        return self.name if owned is None else owned.node

    def first(self) -> str | None:
        return min(self.states)

    def is_silent(self, name: str) -> bool:
        return self.states.get(name) is NodeState.LOST

    def owners(self, tenant_ids: Collection[str]) -> dict[str, Owned]:
        self.asked += 1
        return {one: self.elsewhere.get(one) or self.owned[one] for one in tenant_ids}

    def listed(self) -> list[Listed]:
        left = (self.left.pop(0) if self.left[1:] else self.left[0]) if self.left else 0
        return [
            Listed(node=_node(name, state), state=state, tenants=left)
            for name, state in sorted(self.states.items())
        ]

    def set_draining(self, name: str, *, draining: bool) -> None:
        if name not in self.states:
            raise NodeNotFoundError(name)
        others = [state for one, state in self.states.items() if one != name]
        if draining and NodeState.ACTIVE not in others:
            raise NodeRefusedError(f"node {name!r} can't be drained: no other node is active")
        self.states[name] = NodeState.DRAINING if draining else NodeState.ACTIVE

    def want(self, tenant_id: str, node: str | None) -> None:
        if node is not None:
            if node not in self.states:
                raise NodeNotFoundError(node)
            if self.states[node] in {NodeState.DRAINING, NodeState.LOST}:
                raise NodeRefusedError(f"node {node!r} takes no tenants")
        self.wanted[tenant_id] = node


def _node(name: str, state: NodeState) -> Node:
    began = datetime(2026, 1, 31, 12, tzinfo=UTC)
    return Node(
        introduction=Introduction(
            name=name,
            version="0.1.0",
            weight=1.0,
            machine="here",
            socket=f"/run/{name}.sock",
            address=f"http://{name}:8080",
        ),
        active=state is NodeState.ACTIVE,
        draining=state is NodeState.DRAINING,
        rate=0.0,
        joined_at=began,
        standing=Standing(
            number=1,
            beat=1,
            held=True,
            holder=Holder(instance=name, host=f"host-{name}", pid=4711),
            since=began,
        ),
        heard=0.5,
    )
