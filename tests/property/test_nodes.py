"""Laws of nodes: where a tenant belongs, and that no two nodes ever work for it at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tenantry.nodes.membership import Membership, Watchers, place
from tenantry.nodes.port import NodesUnavailableError
from tenantry.terms.lease import LEASE
from tests.depth import examples
from tests.fakes.nodes import Behind, NodesInMemory

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12)
WEIGHTS = st.floats(min_value=0.01, max_value=1000)
CLUSTERS = st.dictionaries(NAMES, WEIGHTS, min_size=1, max_size=8)
MANY = [f"tenant-{number}" for number in range(2000)]


@given(cluster=CLUSTERS, tenant=NAMES, name=NAMES, weight=WEIGHTS)
def test_a_node_that_comes_takes_tenants_from_others_and_moves_none_between_them(
    cluster: dict[str, float], tenant: str, name: str, weight: float
) -> None:
    without = {other: share for other, share in cluster.items() if other != name}
    before, after = place(tenant, without), place(tenant, {**without, name: weight})
    assert after in (before, name)


@given(cluster=CLUSTERS, tenant=NAMES)
def test_a_tenant_is_where_it_is_wanted_as_long_as_that_is_there(
    cluster: dict[str, float], tenant: str
) -> None:
    for wanted in cluster:
        assert place(tenant, cluster, wanted) == wanted
    assert place(tenant, cluster, "nobody") == place(tenant, cluster)
    assert place(tenant, {}, "nobody") is None


def test_a_fifth_node_gets_a_fifth_of_the_tenants_and_weights_are_shares() -> None:
    four = dict.fromkeys(("a", "b", "c", "d"), 1.0)
    moved = sum(place(one, four) != place(one, {**four, "e": 1.0}) for one in MANY)
    assert abs(moved / len(MANY) - 0.2) < 0.03
    weighted = Counter(place(one, {"light": 1.0, "heavy": 3.0}) for one in MANY)
    assert abs(weighted["heavy"] / len(MANY) - 0.75) < 0.04


def test_a_tenant_that_was_made_on_another_node_than_its_own_goes_to_that() -> None:
    # Nodes may see another for the first time at different moments: then this one was chosen.
    shared, released = NodesInMemory(), list[str]()
    for name in ("a", "b"):
        shared.join(name)
        shared.report(name, active=True, rate=0.0)
    shared.tenants = set()
    me = shared.nodes["a"].standing.holder
    membership = Membership(
        shared,
        "a",
        Watchers(me),
        acquire=lambda *_: None,
        release=released.append,
        active=lambda: True,
        now=lambda: 0.0,
    )
    membership.turn(told=True)
    stray = next(one for one in MANY if place(one, {"a": 1.0, "b": 1.0}) == "b")
    assert membership.claim(stray)
    membership.turn(told=True)
    assert released == []  # it is not there yet: who makes it is at it
    shared.tenants = {stray}
    membership.turn(told=True)
    assert released == [stray]


@dataclass(eq=False)
class Process:
    """A node's process, with what it is at work for."""

    name: str
    number: int
    database: Behind
    membership: Any = None
    at_work: set[str] = field(default_factory=set)
    draining: list[str] = field(default_factory=list)
    frozen: bool = False

    def acquire(self, tenant_ids: Any, _in_order: bool) -> None:
        self.at_work.update(tenant_ids)


class Cluster(RuleBasedStateMachine):
    """Nodes come, go, freeze, are cut off and wake up, and take their turns, in any order."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.shared = NodesInMemory()
        self.processes: dict[str, Process] = {}
        self.dead: list[Process] = []
        self.epochs: dict[str, int] = {}
        self.shared.tenants = {f"t{number}" for number in range(6)}
        self.join("a")

    @rule(name=st.sampled_from("abc"))
    def join(self, name: str) -> None:
        if name in self.processes:
            return
        process = Process(name, 0, None)  # type: ignore[arg-type]
        process.number = self.shared.join(name)
        process.database = Behind(self.shared, name, process.number)
        me = self.shared.nodes[name].standing.holder
        process.membership = Membership(
            process.database,  # type: ignore[arg-type]
            name,
            Watchers(me),
            acquire=process.acquire,
            release=process.draining.append,
            active=lambda: True,
            now=lambda: self.now,
        )
        # A name's former process has been outlived by this one, or was fenced off.
        self.processes[name] = process
        self.turn(name)

    @rule(name=st.sampled_from("abc"))
    def turn(self, name: str) -> None:
        process = self.processes.get(name)
        if process is None or process.frozen:
            return
        try:
            process.membership.turn(told=True)
        except NodesUnavailableError:
            process.membership.interrupted()
        if not self._valid(process):
            # It finds its term lost, and ends at once.
            self._ends(name)

    @rule(name=st.sampled_from("abc"))
    def drained(self, name: str) -> None:
        process = self.processes.get(name)
        if process is not None and process.draining and not process.frozen:
            tenant_id = process.draining.pop(0)
            process.at_work.discard(tenant_id)
            process.membership.released(tenant_id)

    @rule(seconds=st.sampled_from([0.5, 1.0, LEASE]))
    def time_passes(self, seconds: float) -> None:
        """Who can, renews meanwhile."""
        for process in self.processes.values():
            if not process.frozen and not process.database.cut and self._valid(process):
                self.shared.renew(process.name)
        self.now += seconds

    @rule(name=st.sampled_from("abc"), draining=st.booleans())
    def set_draining(self, name: str, draining: bool) -> None:
        if name in self.shared.nodes:
            self.shared.set_draining(name, draining=draining)

    @rule(name=st.sampled_from("abc"))
    def cut_or_mend(self, name: str) -> None:
        if name in self.processes:
            database = self.processes[name].database
            database.cut = not database.cut

    @rule(name=st.sampled_from("abc"))
    def freeze_or_thaw(self, name: str) -> None:
        if name in self.processes:
            self.processes[name].frozen = not self.processes[name].frozen

    @rule(name=st.sampled_from("abc"))
    def killed(self, name: str) -> None:
        self._ends(name)

    @rule(name=st.sampled_from("abc"))
    def leaves(self, name: str) -> None:
        process = self.processes.get(name)
        if process is not None and not process.frozen and not process.database.cut:
            if self._valid(process):
                self.shared.leave(name, process.number)
            self._ends(name)

    @rule(tenant=st.integers(0, 5), node=st.sampled_from(["a", "b", "c", None]))
    def wanted(self, tenant: int, node: str | None) -> None:
        if f"t{tenant}" in self.shared.owned_by:
            self.shared.want(f"t{tenant}", node)

    @invariant()
    def nobody_else_writes_for_a_tenant_that_somebody_works_for(self) -> None:
        """Who works for a tenant, and whose term is good, owns it by the database."""
        workers: Counter[str] = Counter()
        for process in self.processes.values():
            if self._valid(process):
                workers.update(process.at_work)
                for tenant_id in process.at_work:
                    owned = self.shared.owned_by[tenant_id]
                    assert owned.node == process.name, (tenant_id, owned, process.name)
        assert not [tenant for tenant, count in workers.items() if count > 1]

    @invariant()
    def epochs_only_go_up(self) -> None:
        for tenant_id, owned in self.shared.owned_by.items():
            assert owned.epoch >= self.epochs.get(tenant_id, 0)
            self.epochs[tenant_id] = owned.epoch

    def teardown(self) -> None:
        """In the end, with all that is left well, every tenant is where it belongs."""
        for process in self.processes.values():
            process.frozen = process.database.cut = False
        for _ in range(20):
            self.time_passes(1.0)
            for name in list(self.processes):
                self.turn(name)
                while name in self.processes and self.processes[name].draining:
                    self.drained(name)
        if not self.processes:
            return
        able = [name for name in self.processes if not self.shared.nodes[name].draining] or list(
            self.processes
        )
        weights = dict.fromkeys(able, 1.0)
        for tenant_id in self.shared.tenants:
            owned = self.shared.owned_by[tenant_id]
            assert owned.node == place(tenant_id, weights, owned.wanted)
            assert tenant_id in self.processes[owned.node].at_work

    def _valid(self, process: Process) -> bool:
        node = self.shared.nodes.get(process.name)
        return node is not None and node.standing.number == process.number and node.standing.held

    def _ends(self, name: str) -> None:
        self.processes.pop(name, None)


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=examples(40, 600), stateful_step_count=40, deadline=None
)
