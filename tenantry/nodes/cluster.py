"""The nodes for the API: listed, drained, and asked which of them owns a tenant."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from tenantry.nodes.membership import Membership, state_of
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
from tenantry.nodes.postgres import PostgresNodes
from tenantry.terms.lease import LEASE, RENEW_EVERY


class NodesShown:
    """The nodes, for a daemon that has not joined: it lists them, and changes nothing."""

    def __init__(self, nodes: PostgresNodes) -> None:
        self.name = ""
        self.owned: Mapping[str, Owned] = MappingProxyType({})
        self._nodes = nodes

    def glance(self) -> Sequence[Glance]:
        """See `Cluster.glance`: nothing is known without asking the database."""
        return ()

    def place(self, tenant_id: str) -> str | None:  # noqa: ARG002
        """See `Cluster.place`: not known here."""
        return None

    def first(self) -> str | None:
        """See `Cluster.first`: not known here."""
        return None

    def is_silent(self, name: str) -> bool:  # noqa: ARG002
        """See `Cluster.is_silent`: renewals are not watched here."""
        return False

    def owners(self, tenant_ids: Collection[str]) -> Mapping[str, Owned]:
        """See `Cluster.owners`."""
        return self._nodes.owners(tenant_ids)

    def listed(self) -> Sequence[Listed]:
        """See `Cluster.listed`."""
        counts = self._nodes.counts()
        return [
            Listed(node=node, state=self._state(node), tenants=counts.get(node.name, 0))
            for node in self._nodes.look()
        ]

    def _state(self, node: Node) -> NodeState:
        # Without having watched for the length of a lease, the database's clock has to do.
        return state_of(node, alive=node.standing.held and node.heard < LEASE)


class NodesFromOne(NodesShown):
    """The nodes (`Cluster`) as one of them sees them."""

    def __init__(self, nodes: PostgresNodes, membership: Membership) -> None:
        super().__init__(nodes)
        self.name = membership.name
        self._membership = membership
        self.owned = membership.owned

    def glance(self) -> Sequence[Glance]:
        """See `Cluster.glance`."""
        return [Glance(name=one.name, state=self._state(one)) for one in self._membership.seen]

    def place(self, tenant_id: str) -> str | None:
        """See `Cluster.place`."""
        return self._membership.place(tenant_id)

    def first(self) -> str | None:
        """See `Cluster.first`."""
        return self._membership.first()

    def is_silent(self, name: str) -> bool:
        """See `Cluster.is_silent`."""
        there = next((one for one in self._membership.seen if one.name == name), None)
        return there is None or not there.standing.held or there.heard > 2 * RENEW_EVERY

    def introduction(self, name: str) -> Introduction | None:
        """Give what a node has registered, without waiting; None if it has not been seen."""
        found = (one.introduction for one in self._membership.seen if one.name == name)
        return next(found, None)

    def set_draining(self, name: str, *, draining: bool) -> None:
        """See `Cluster.set_draining`."""
        node = self._find(name)
        if not draining:
            self._nodes.undrain(name)
            return
        if node.draining:
            return
        if not self._nodes.drain(name, alive=self._membership.alive):
            raise NodeRefusedError(
                f"node {name!r} can't be drained: no other node is active that could have its "
                "tenants; start one, or `undrain` one"
            )

    def want(self, tenant_id: str, node: str | None) -> None:
        """See `Cluster.want`."""
        if node is not None:
            state = self._state(self._find(node))
            if state in {NodeState.DRAINING, NodeState.LOST}:
                raise NodeRefusedError(f"node {node!r} takes no tenants: it is {state.value}")
        self._nodes.want(tenant_id, node)

    def _find(self, name: str) -> Node:
        for node in self._nodes.look():
            if node.name == name:
                return node
        raise NodeNotFoundError(name)

    def _state(self, node: Node) -> NodeState:
        seen = any(one.name == node.name for one in self._membership.seen)
        alive = node.name in self._membership.alive if seen else node.standing.held
        return state_of(node, alive=alive)
