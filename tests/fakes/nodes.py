"""Nodes in memory (`tenantry.nodes.port.Nodes`): one database, seen by several memberships."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from tenantry.nodes.port import Introduction, Node, NodesUnavailableError, Owned
from tenantry.terms.port import Holder, Standing
from tenantry.turns.backlogs import Progress

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class NodesInMemory:
    """What all nodes share. Who writes under a term that is over is refused, as by the database."""

    nodes: dict[str, Node] = field(default_factory=dict)
    owned_by: dict[str, Owned] = field(default_factory=dict)
    tenants: set[str] = field(default_factory=set)

    def join(self, name: str, weight: float = 1.0) -> int:
        """Take a name's term; give its number."""
        before = self.nodes.get(name)
        number = 1 if before is None else before.standing.number + 1
        self.nodes[name] = Node(
            introduction=Introduction(
                name=name, version="1", weight=weight, machine="", socket="", address=""
            ),
            active=False,
            draining=before is not None and before.draining,
            rate=0.0,
            joined_at=EPOCH,
            standing=Standing(
                number=number,
                beat=0 if before is None else before.standing.beat + 1,
                held=True,
                holder=Holder(instance=f"{name}#{number}", host="here", pid=number),
                since=EPOCH,
            ),
            heard=0.0,
        )
        return number

    def renew(self, name: str) -> None:
        standing = self.nodes[name].standing
        self._set(name, standing=replace(standing, beat=standing.beat + 1))

    def set_draining(self, name: str, *, draining: bool) -> None:
        self._set(name, draining=draining)

    def look(self) -> Sequence[Node]:
        return [self.nodes[name] for name in sorted(self.nodes)]

    def report(self, name: str, *, active: bool, rate: float) -> None:
        self._set(name, active=active, rate=rate)

    def tell(self, name: str, progress: Progress) -> None:
        self._set(name, progress=progress)

    def bury(self, name: str, seen: Standing) -> bool:
        now = self.nodes[name].standing
        if (now.number, now.beat) != (seen.number, seen.beat) or not now.held:
            return False
        buried = replace(now, number=now.number + 1, beat=now.beat + 1, held=False)
        self._set(name, standing=buried, active=False)
        self._orphan(name)
        return True

    def leave(self, name: str, number: int) -> None:
        if self.nodes[name].standing.number == number:
            self._orphan(name)
            del self.nodes[name]

    def owned(self, name: str) -> Sequence[Owned]:
        return [
            one
            for one in self.owned_by.values()
            if one.node == name and one.tenant_id in self.tenants
        ]

    def owners(self, tenant_ids: Collection[str]) -> Mapping[str, Owned]:
        return {one: self.owned_by[one] for one in tenant_ids if one in self.owned_by}

    def unowned(self) -> Mapping[str, str | None]:
        found: dict[str, str | None] = {}
        for tenant_id in sorted(self.tenants):
            owned = self.owned_by.get(tenant_id)
            if owned is None or owned.node is None:
                found[tenant_id] = None if owned is None else owned.wanted
        return found

    def claim(self, name: str, tenant_ids: Collection[str]) -> Sequence[Owned]:
        claimed = []
        for tenant_id in sorted(tenant_ids):
            before = self.owned_by.get(tenant_id)
            if before is None:
                now = Owned(tenant_id=tenant_id, node=name, epoch=1)
            elif before.node in (None, name):
                now = replace(before, node=name, epoch=before.epoch + 1)
            else:
                continue
            self.owned_by[tenant_id] = now
            claimed.append(now)
        return claimed

    def hand_over(self, tenant_id: str, *, source: str, target: str | None) -> int | None:
        before = self.owned_by.get(tenant_id)
        if before is None or before.node != source:
            return None
        now = replace(before, node=target, epoch=before.epoch + 1, previous=source)
        self.owned_by[tenant_id] = now
        return now.epoch

    def let_go(self, name: str, tenant_ids: Collection[str]) -> None:
        for tenant_id in tenant_ids:
            owned = self.owned_by.get(tenant_id)
            if owned is not None and owned.node == name:
                del self.owned_by[tenant_id]

    def want(self, tenant_id: str, node: str | None) -> None:
        self.owned_by[tenant_id] = replace(self.owned_by[tenant_id], wanted=node)

    def _orphan(self, name: str) -> None:
        for tenant_id, one in self.owned_by.items():
            if one.node == name:
                self.owned_by[tenant_id] = replace(one, node=None, previous=name)

    def _set(self, name: str, **changes: object) -> None:
        self.nodes[name] = replace(self.nodes[name], **changes)  # type: ignore[arg-type]


class Behind:
    """The database as one node reaches it: not while it is `cut`; after its term, to read only."""

    def __init__(self, shared: NodesInMemory, name: str, number: int) -> None:
        self._shared = shared
        self._name = name
        self._number = number
        self.cut = False

    def __getattr__(self, name: str) -> object:
        call = getattr(self._shared, name)

        def checked(*arguments: object, **keywords: object) -> object:
            if self.cut:
                raise NodesUnavailableError("out of reach")
            over = self._shared.nodes[self._name].standing.number != self._number
            if over and name not in {"look", "owned", "owners", "unowned"}:
                raise NodesUnavailableError("the term is over")
            return call(*arguments, **keywords)

        return checked
