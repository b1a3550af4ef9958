"""A node's membership: which tenants it claims and hands over, and which nodes it fences off.

Each node watches the others by itself, and decides for its own tenants and for those without an
owner. Nodes may disagree for a moment: the database decides each claim and hand-over.
"""

from __future__ import annotations

import hashlib
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import structlog

from tenantry.nodes.port import Node, Nodes, NodeState, Owned
from tenantry.terms.lease import TermWatch
from tenantry.terms.port import Holder
from tenantry.unavailable import UnavailableError

log: Final = structlog.get_logger("nodes")

LEAVING: Final = 8
"""How many tenants are drained at once for their hand-over."""

LOOK_AT_TENANTS_EVERY: Final = 5.0
"""Seconds between reads of the ownership of tenants, where no notification came before."""

STRANDED: Final = 15.0
"""Seconds after which a node that can't consume hands its tenants over to nodes that could all the
while: an outage of all nodes moves nothing."""

REPORT_EVERY: Final = 3.0
"""Seconds between reports of a node's rate."""


class Watchers:
    """Tells by their terms which nodes are alive. Used by one thread."""

    def __init__(self, me: Holder) -> None:
        self._me = me
        self._watches: dict[str, TermWatch] = {}

    def alive(self, nodes: Sequence[Node], now: float) -> set[str]:
        """Name the nodes that may be at work, without earlier processes of this node."""
        for gone in self._watches.keys() - {node.name for node in nodes}:
            del self._watches[gone]
        found = set()
        for node in nodes:
            watch = self._watches.setdefault(node.name, TermWatch(self._me))
            # Called for every node: a lease counts from the first time it was seen.
            lapsed = watch.may_take(node.standing, now)
            if not lapsed:
                found.add(node.name)
        return found

    def interrupted(self) -> None:
        """Note a gap in watching: the other nodes may not have been able to renew either."""
        for watch in self._watches.values():
            watch.interrupted()


def state_of(node: Node, *, alive: bool) -> NodeState:
    """Say what a node is doing."""
    if not alive:
        return NodeState.LOST
    if node.draining:
        return NodeState.DRAINING
    return NodeState.ACTIVE if node.active else NodeState.JOINING


def candidates(nodes: Sequence[Node], alive: Collection[str]) -> dict[str, float]:
    """Give the nodes that tenants are placed on, with their weights.

    These are the active nodes; if there are none, the joining ones, and at last the draining ones,
    as some node has to do the work.
    """
    there = [node for node in nodes if node.name in alive]
    for fit in (
        [node for node in there if node.active and not node.draining],
        [node for node in there if not node.draining],
        there,
    ):
        if fit:
            return {node.name: node.introduction.weight for node in fit}
    return {}


# Weighted rendezvous hashing (Thaler and Ravishankar, 1998; with weights as by Schindelhauer and
# Schomaker, 2005): each pair of tenant and node has a number between 0 and 1 of its own, and the
# score is weight / -ln(number). A new node takes its share from all others, a leaving node's
# tenants spread over all others, and nothing else moves.

_BITS: Final = 53
"""The precision of a float."""


def score(tenant_id: str, node: str, weight: float) -> float:
    """Give a node's score for a tenant, above 0."""
    digest = hashlib.blake2b(f"{node}/{tenant_id}".encode(), digest_size=8).digest()
    # Never 0 and never 1.
    share = ((int.from_bytes(digest, "big") >> (64 - _BITS)) + 0.5) / (1 << _BITS)
    return weight / -math.log(share)


def place(tenant_id: str, weights: Mapping[str, float], wanted: str | None = None) -> str | None:
    """Choose a tenant's node among those with a weight; None where there are none.

    A `wanted` node is chosen as long as it is among them.
    """
    if wanted in weights:
        return wanted
    scores = {node: score(tenant_id, node, weight) for node, weight in weights.items()}
    return max(scores, key=lambda node: (scores[node], node), default=None)


class Membership:
    """The tenants that a node owns; `turn` updates them, and is called by one thread.

    `acquire` is called with tenants that this node owns from now on, and whether their former owner
    has drained them. `release` is called with a tenant to drain; its owner calls `released` once
    this node does nothing for it any more. `shut_out` is called with name and term of a node that
    is fenced off in the database, before its tenants are claimed; it tells whether that node can do
    nothing on the broker either. `stranded` gives for how many seconds this node has not been able
    to consume. `moved` is called with tenants that came from another node.
    """

    def __init__(
        self,
        nodes: Nodes,
        name: str,
        watchers: Watchers,
        *,
        acquire: Callable[[Collection[str], bool], object],
        release: Callable[[str], object],
        active: Callable[[], bool],
        stranded: Callable[[], float] = lambda: 0.0,
        rate: Callable[[], float] = lambda: 0.0,
        shut_out: Callable[[str, int], bool] = lambda *_: True,
        moved: Callable[[Owned], object] = lambda _: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name: Final = name
        self._nodes = nodes
        self._watchers = watchers
        self._acquire = acquire
        self._release = release
        self._active = active
        self._stranded = stranded
        self._active_since: dict[str, float] = {}
        self._rate = rate
        self._shut_out = shut_out
        self._moved = moved
        self._now = now
        # A claim and the update of `_owned` after it are one step, whichever thread claims.
        self._lock = threading.Lock()
        self._owned: dict[str, Owned] = {}
        self.owned: Final[Mapping[str, Owned]] = MappingProxyType(self._owned)
        """The tenants that this node owns now, to be looked up from any thread."""
        self._gone: set[str] = set()
        self._made: set[str] = set()
        self._to_go: deque[str] = deque()
        self._leaving: set[str] = set()
        self._released: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._numbers: dict[str, int] = {}
        self._placed_for: Mapping[str, float] | None = None
        self._look_at_tenants_at = self._report_at = 0.0
        self._reported: bool | None = None
        self.seen: tuple[Node, ...] = ()
        """All nodes, as last seen."""
        self.alive: frozenset[str] = frozenset()
        """The names of the nodes that may be at work."""
        self.wake: Callable[[], object] = lambda: None
        """Called to have the next turn at once."""

    # From any thread.

    def owns(self, tenant_id: str) -> bool:
        """Tell whether this node owns a tenant."""
        return tenant_id in self._owned

    expects = owns

    def place(self, tenant_id: str, wanted: str | None = None) -> str | None:
        """Choose a tenant's node among the nodes as last seen."""
        return place(tenant_id, candidates(self.seen, self.alive), wanted)

    def claim(self, tenant_id: str) -> bool:
        """Claim a tenant that is about to be created; False if another node owns it.

        Raises `NodesUnavailableError`.
        """
        with self._lock:
            if tenant_id in self._gone:
                # The node wanted for the former tenant of this id is not the next one's.
                self._nodes.let_go(self.name, [tenant_id])
            for one in self._nodes.claim(self.name, [tenant_id]):
                self._owned[tenant_id] = one
                self._gone.discard(tenant_id)
                self._made.add(tenant_id)
        return self.owns(tenant_id)

    def elsewhere(self, tenant_id: str) -> str | None:
        """Name the other node that owns a tenant, if any. Raises `NodesUnavailableError`."""
        owned = self._nodes.owners([tenant_id]).get(tenant_id)
        return None if owned is None or owned.node == self.name else owned.node

    def released(self, tenant_id: str) -> None:
        """Note that this node does nothing for a tenant any more: it may be handed over."""
        self._released.put(tenant_id)
        self.wake()

    def looks_after(self, tenant_id: str) -> bool:
        """Tell whether this node removes what is left of a deleted tenant."""
        return self.owns(tenant_id) or self.place(tenant_id) == self.name

    def first(self) -> str:
        """Name the node that does the work that one does for all: the oldest active one."""
        there = [node for node in self.seen if node.name in self.alive]
        first = min(there, key=lambda node: (not node.active, node.joined_at), default=None)
        return self.name if first is None else first.name

    def is_first(self) -> bool:
        """Tell whether this node is the first."""
        return self.first() == self.name

    def gone(self, tenant_id: str) -> None:
        """Note that a tenant no longer exists."""
        with self._lock:
            if self._owned.pop(tenant_id, None) is not None:
                self._gone.add(tenant_id)
            self._made.discard(tenant_id)

    # One turn after another.

    def interrupted(self) -> None:
        """Note a gap between turns."""
        self._watchers.interrupted()

    def turn(self, *, told: bool = False) -> None:
        """Read the nodes and act on changes; if `told` of one, read the ownership of tenants too.

        Raises `NodesUnavailableError`; the next turn continues where this one ended.
        """
        now = self._now()
        self.seen = seen = tuple(self._nodes.look())
        before, self.alive = self.alive, frozenset({*self._watchers.alive(seen, now), self.name})
        for name in sorted(self.alive - before - {self.name}):
            log.info("node.seen", node=name)
        self._active_since = {
            node.name: self._active_since.get(node.name, now)
            for node in seen
            if node.active and node.name in self.alive
        }
        buried = [node for node in seen if self._is_lost(node) and self._bury(node)]
        weights = candidates(seen, self.alive)
        self._give(weights)
        if told or buried or before != self.alive or now >= self._look_at_tenants_at:
            self._take(weights)
            self._look_at_tenants_at = now + LOOK_AT_TENANTS_EVERY
        if self._active() or self._is_stranded(now):
            self._let_go(weights)
        self._report(now)

    def _is_lost(self, node: Node) -> bool:
        return node.name not in self.alive and node.standing.held

    def _bury(self, node: Node) -> bool:
        buried = self._nodes.bury(node.name, node.standing)
        if buried:
            holder, silent = node.standing.holder, round(node.heard, 1)
            log.warning(
                "node.lost", node=node.name, host=holder.host, pid=holder.pid, silent_seconds=silent
            )
        return buried

    def _take(self, weights: Mapping[str, float]) -> None:
        """Claim the free tenants that are placed here, and take over those handed to this node."""
        with self._lock:
            unowned = self._nodes.unowned()
            mine = [
                one for one, wanted in unowned.items() if place(one, weights, wanted) == self.name
            ]
            claimed = self._claim(mine) if mine else []
            before = dict(self._owned)
            owned = {one.tenant_id: one for one in self._nodes.owned(self.name)}
            if missing := before.keys() - owned.keys():
                # Being created, or fenced off: then this node's own term is over as well.
                there = self._nodes.owners(missing)
                for tenant_id in missing:
                    one = there.get(tenant_id)
                    if one is None or one.node != self.name:
                        del self._owned[tenant_id]
            for tenant_id in self._gone & owned.keys():
                del owned[tenant_id]
            if self._gone:
                self._nodes.let_go(self.name, self._gone)
                self._gone.clear()
            # A tenant may have been created here before the node it belongs on was seen.
            made = self._made & owned.keys()
            if any(place(one, weights, owned[one].wanted) != self.name for one in made):
                self._placed_for = None
            self._made -= made
            # Last: readers of `_owned` go to the actors, which are told right after this.
            self._owned.update(owned)
        handed = [one for tenant_id, one in owned.items() if tenant_id not in before]
        fresh = {one.tenant_id for one in claimed}
        self._tell(claimed, in_order=False)
        self._tell([one for one in handed if one.tenant_id not in fresh], in_order=True)
        if any(before.get(one.tenant_id) != one for one in owned.values()):
            self._placed_for = None

    def _claim(self, mine: Sequence[str]) -> Sequence[Owned]:
        """Claim tenants, once their former nodes can do nothing on the broker any more either."""
        for node in self.seen:
            number = node.standing.number
            known = self._numbers.get(node.name) == number
            if not node.standing.held and not known and self._shut_out(node.name, number):
                self._numbers[node.name] = number
        return self._nodes.claim(self.name, mine)

    def _tell(self, acquired: Sequence[Owned], *, in_order: bool) -> None:
        if acquired:
            log.info("node.acquired", node=self.name, tenants=len(acquired), in_order=in_order)
            self._acquire([one.tenant_id for one in acquired], in_order)
        for one in acquired:
            if one.previous not in ("", self.name):
                self._moved(one)

    def _is_stranded(self, now: float) -> bool:
        others = (since for name, since in self._active_since.items() if name != self.name)
        return self._stranded() >= STRANDED and any(now - since >= STRANDED for since in others)

    def _let_go(self, weights: Mapping[str, float]) -> None:
        """Have tenants drained that belong on other nodes, a few at a time."""
        if weights != self._placed_for:
            self._placed_for = dict(weights)
            self._to_go.clear()
            for tenant_id, owned in self._owned.copy().items():
                if place(tenant_id, weights, owned.wanted) not in (None, self.name):
                    self._to_go.append(tenant_id)
        while self._to_go and len(self._leaving) < LEAVING:
            tenant_id = self._to_go.popleft()
            if tenant_id not in self._leaving and self.owns(tenant_id):
                self._leaving.add(tenant_id)
                self._release(tenant_id)

    def _give(self, weights: Mapping[str, float]) -> None:
        """Hand over the drained tenants; a tenant with no other node left to go to stays."""
        while not self._released.empty():
            tenant_id = self._released.get()
            owned = self._owned.get(tenant_id)
            target = None if owned is None else place(tenant_id, weights, owned.wanted)
            if target is not None and target != self.name:
                try:
                    self._nodes.hand_over(tenant_id, source=self.name, target=target)
                except UnavailableError:
                    self._released.put(tenant_id)
                    raise
                log.info("tenant.handed_over", tenant=tenant_id, node=target)
                with self._lock:
                    self._owned.pop(tenant_id, None)
            elif owned is not None:
                self._acquire([tenant_id], True)
            self._leaving.discard(tenant_id)

    def _report(self, now: float) -> None:
        active = self._active()
        if active != self._reported or now >= self._report_at:
            self._nodes.report(self.name, active=active, rate=round(self._rate(), 1))
            self._reported = active
            self._report_at = now + REPORT_EVERY
