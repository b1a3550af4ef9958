"""The port for nodes: which nodes there are, and which of them owns a tenant."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from tenantry.terms.port import Standing
from tenantry.turns.backlogs import NOTHING_YET, Progress
from tenantry.unavailable import UnavailableError


class NodesUnavailableError(UnavailableError):
    """The store of nodes can't be reached; the same call may succeed later."""


class NodeNotFoundError(Exception):
    """There is no node of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no node {name!r}")


class NodeRefusedError(Exception):
    """The request can't be met in the present state of the nodes; the message says why."""


class NodeState(StrEnum):
    """What a node is doing. A lost node has not renewed its term for a lease, or has left."""

    JOINING = "joining"
    ACTIVE = "active"
    DRAINING = "draining"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """What a node registers about itself when it joins.

    `machine` is equal for processes that can reach one another's Unix sockets; `socket` is the
    path of the node's control socket, `address` the URL of its API for other machines.
    """

    name: str
    version: str
    weight: float
    machine: str
    socket: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node as it is stored: what it has registered, and the state of its term.

    It is `active` once it consumes, and `draining` while its tenants are to leave it. `rate` is in
    messages stored a second; `heard` in seconds since it renewed its term, by the database's clock.
    `progress` is how far it has come with its backlogs, as it told last.
    """

    introduction: Introduction
    active: bool
    draining: bool
    rate: float
    joined_at: datetime
    standing: Standing
    heard: float
    progress: Progress = NOTHING_YET

    @property
    def name(self) -> str:
        """Its name, unique among the nodes."""
        return self.introduction.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """Which node owns a tenant, if any does, under which `epoch`.

    `wanted` is the node that an operator has chosen for it, `previous` the former owner or empty.
    """

    tenant_id: str
    node: str | None
    epoch: int
    wanted: str | None = None
    previous: str = ""


class Nodes(Protocol):
    """The nodes of one database. Callable from any thread.

    A change is made under the caller's own term. Every call may raise `NodesUnavailableError`, and
    may have taken effect nevertheless.
    """

    def look(self) -> Sequence[Node]:
        """Give all nodes, ordered by name."""

    def report(self, name: str, *, active: bool, rate: float) -> None:
        """Store whether a node is active, and its rate."""

    def tell(self, name: str, progress: Progress) -> None:
        """Store how far a node has come with its backlogs."""

    def bury(self, name: str, seen: Standing) -> bool:
        """Fence off a node whose term has lapsed, and free its tenants.

        The caller must know that it has lapsed. False where the term is no longer as in `seen`.
        """

    def owned(self, name: str) -> Sequence[Owned]:
        """Give the tenants of a node."""

    def unowned(self) -> Mapping[str, str | None]:
        """Give the existing tenants without an owner, each with its wanted node."""

    def claim(self, name: str, tenant_ids: Collection[str]) -> Sequence[Owned]:
        """Have a node claim tenants without an owner; give those that it owns now."""

    def hand_over(self, tenant_id: str, *, source: str, target: str | None) -> int | None:
        """Move a tenant to another node, or free it; give its new epoch, None if it did not move.

        Transactions of `source` for the tenant commit before the move, or never.
        """

    def let_go(self, name: str, tenant_ids: Collection[str]) -> None:
        """Remove the ownership of deleted tenants, as far as this node owned them."""

    def owners(self, tenant_ids: Collection[str]) -> Mapping[str, Owned]:
        """Give the ownership of tenants, by id; tenants that never had an owner are left out."""

    def leave(self, name: str, number: int) -> None:
        """Release a node's term and free its tenants; the node must have stopped working for them.

        Does nothing if the term is lost.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """A node and its state, as last seen."""

    name: str
    state: NodeState


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A node, its state, and the number of tenants that it owns."""

    node: Node
    state: NodeState
    tenants: int


class Cluster(Protocol):
    """All nodes, as one of them sees them. Callable from any thread."""

    @property
    def name(self) -> str:
        """The name of this node; empty until it has joined."""

    @property
    def owned(self) -> Mapping[str, Owned]:
        """The tenants of this node now; it stays the same mapping, and changes with them."""

    def glance(self) -> Sequence[Glance]:
        """Give the nodes as last seen, without waiting."""

    def place(self, tenant_id: str) -> str | None:
        """Name the node that a new tenant would be placed on, without waiting."""

    def first(self) -> str | None:
        """Name the node that does the work that one does for all, without waiting."""

    def is_silent(self, name: str) -> bool:
        """Tell without waiting whether a node has missed a renewal of its term: it may be lost."""

    def owners(self, tenant_ids: Collection[str]) -> Mapping[str, Owned]:
        """See `Nodes.owners`. This and the next calls block, and raise `NodesUnavailableError`."""

    def listed(self) -> Sequence[Listed]:
        """Give all nodes, ordered by name."""

    def set_draining(self, name: str, *, draining: bool) -> None:
        """Drain a node of its tenants, or end that.

        Raises `NodeNotFoundError`; `NodeRefusedError` where no other node could take its tenants.
        """

    def want(self, tenant_id: str, node: str | None) -> None:
        """Choose a tenant's node; with None, placement does.

        Raises `NodeNotFoundError`, and `NodeRefusedError` where that node takes no tenants.
        """
