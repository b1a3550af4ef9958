"""What nodes know of one another, and of whose each tenant is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from tenantry.terms.port import Standing
from tenantry.unavailable import UnavailableError


class NodesUnavailableError(UnavailableError):
    """Where nodes are kept can't be reached; the same call may succeed later."""


class NodeNotFoundError(Exception):
    """There is no node of the name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no node {name!r}")


class NodeRefusedError(Exception):
    """What was asked of a node is not possible as things are; the message says why."""


class NodeState(StrEnum):
    """What a node is doing. One that is lost has not been heard of for a lease, or has left."""

    JOINING = "joining"
    ACTIVE = "active"
    DRAINING = "draining"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """What a node says of itself as it joins.

    `machine` is the same for processes that can reach one another's sockets; `socket` is the
    control socket there, `address` the URL of the API for nodes elsewhere.
    """

    name: str
    version: str
    weight: float
    machine: str
    socket: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node as it is kept: what it has said of itself, and how its term stands.

    It is `active` once it consumes; `draining` where it is to be empty. `rate` is messages stored a
    second, `heard` the seconds since it renewed its term, by the database's clock.
    """

    introduction: Introduction
    active: bool
    draining: bool
    rate: float
    joined_at: datetime
    standing: Standing
    heard: float

    @property
    def name(self) -> str:
        """Its name, which no other has."""
        return self.introduction.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """Whose a tenant is: `node` (None: nobody's), since which `epoch`, and where it is `wanted`.

    `previous` is the node that had it before; empty, where none had.
    """

    tenant_id: str
    node: str | None
    epoch: int
    wanted: str | None = None
    previous: str = ""


class Nodes(Protocol):
    """The nodes of one database. Callable from any thread.

    What changes something is done under the caller's own term. Every call may raise
    `NodesUnavailableError`, and have had its effect nevertheless.
    """

    def look(self) -> Sequence[Node]:
        """Give all nodes there are, by name."""

    def report(self, name: str, *, active: bool, rate: float) -> None:
        """Tell how a node is."""

    def bury(self, name: str, seen: Standing) -> bool:
        """Fence a node off that has lapsed, and make its tenants nobody's.

        Only for a caller that knows that it has. False where it is not as it was seen any more.
        """

    def owned(self, name: str) -> Sequence[Owned]:
        """Give the tenants of a node."""

    def unowned(self) -> Mapping[str, str | None]:
        """Give the tenants that exist and are nobody's, each with where it is wanted."""

    def claim(self, name: str, tenant_ids: Collection[str]) -> Sequence[Owned]:
        """Make tenants a node's that are nobody's; give those that are its own now."""

    def hand_over(self, tenant_id: str, *, source: str, target: str | None) -> int | None:
        """Give a tenant to another node, or to nobody; its new epoch, None if it was not given.

        What `source` was storing is committed before, and nothing of its own after.
        """

    def let_go(self, name: str, tenant_ids: Collection[str]) -> None:
        """Forget whose tenants were that exist no more, if they were this node's."""

    def owners(self, tenant_ids: Collection[str]) -> Mapping[str, Owned]:
        """Tell whose tenants are, by id; who never was anybody's is left out."""

    def leave(self, name: str, number: int) -> None:
        """Give a node's term back and make its tenants nobody's; nothing is done for them any more.

        Of a term that is lost, nothing.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """A node and what it is doing, as last seen."""

    name: str
    state: NodeState


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A node, what it is doing, and how many tenants are its own."""

    node: Node
    state: NodeState
    tenants: int


class Cluster(Protocol):
    """The nodes, as who is asked on one of them sees them. Callable from any thread."""

    @property
    def name(self) -> str:
        """The name of this node; empty where it is none yet."""

    def owned(self, tenant_id: str) -> Owned | None:
        """Give what is known here of a tenant that is this node's, without waiting."""

    def glance(self) -> Sequence[Glance]:
        """Give the nodes as last seen, without waiting."""

    def place(self, tenant_id: str) -> str | None:
        """Name the node that a tenant that is not there yet belongs to, without waiting."""

    def first(self) -> str | None:
        """Name the node that does what one does for all, without waiting."""

    def is_silent(self, name: str) -> bool:
        """Tell whether a node has missed a renewal, without waiting: it may be lost."""

    def owners(self, tenant_ids: Collection[str]) -> Mapping[str, Owned]:
        """See `Nodes.owners`. Blocks, as all that follows; raises `NodesUnavailableError`."""

    def listed(self) -> Sequence[Listed]:
        """Give all nodes there are, by name."""

    def set_draining(self, name: str, *, draining: bool) -> None:
        """Say whether a node is to be empty.

        Raises `NodeNotFoundError`; `NodeRefusedError` where no other could have its tenants.
        """

    def want(self, tenant_id: str, node: str | None) -> None:
        """Say on which node a tenant is wanted; None: on the one that placement chooses.

        Raises `NodeNotFoundError`, and `NodeRefusedError` where that node takes no tenants.
        """
