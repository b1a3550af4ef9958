"""Several daemons on one database and broker: they share the tenants, each owned by one node."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count

import psycopg
import pytest

from tenantry.nodes.membership import place
from tests.acceptance.program import Program
from tests.depth import examples
from tests.ledger import Ledger
from tests.services_rabbitmq import RabbitHost
from tests.waiting import eventually

TENANTS = 6


class Cluster:
    """Three nodes that have not been started; the first one creates the tenants."""

    def __init__(self, stack: ExitStack, host: RabbitHost | None, database_url: str) -> None:
        self.url = database_url
        self.nodes: dict[str, Program] = {}
        for name in ("one", "two", "three"):
            made = stack.enter_context(Program(host, database_url))
            made.settings["TENANTRY_NODE_NAME"] = name
            self.nodes[name] = made

    def owners(self) -> dict[str, tuple[str | None, int]]:
        with psycopg.connect(self.url) as connection:
            rows = connection.execute("SELECT tenant_id, node, epoch FROM tenantry.owners")
            return {tenant: (node, epoch) for tenant, node, epoch in rows}

    def shares(self) -> dict[str, int]:
        """Count the tenants that each node consumes for, by its own status."""
        return {
            name: sum(one["consuming"] for one in node.get("/status")["tenants"].values())
            for name, node in self.nodes.items()
            if node.running and not node.frozen
        }

    def wait_spread(self, *names: str) -> dict[str, int]:
        """Wait until these nodes consume for all tenants, each for those that belong to it."""
        weights = dict.fromkeys(names, 1.0)

        def spread() -> dict[str, int] | None:
            owned = self.owners()
            shares = {name: share for name, share in self.shares().items() if name in names}
            right = all(node == place(tenant, weights) for tenant, (node, _) in owned.items())
            counts = Counter(node for node, _ in owned.values())
            even = all(counts[name] == share for name, share in shares.items())
            return shares if right and even and len(owned) == TENANTS else None

        return eventually(spread, what=f"the tenants are spread over {names}")


def words_for_all(program: Program, *nodes: str) -> list[str]:
    """Choose tenants' names so that all nodes get equally many: placement follows from the ids."""
    room = dict.fromkeys(nodes, TENANTS // len(nodes))
    weights = dict.fromkeys(nodes, 1.0)
    chosen = []
    for number in count():
        if not any(room.values()):
            break
        word = f"t{number}"
        node = place(program.name(word), weights)
        if node is not None and room[node]:
            room[node] -= 1
            chosen.append(word)
    return chosen


# On the embedded broker `test_processes` has as many nodes, and kills one of them.
@pytest.fixture(params=examples(["rabbitmq"], ["rabbitmq", "embedded"]))
def cluster(request: pytest.FixtureRequest, database_url: str) -> Iterator[Cluster]:
    embedded = request.param == "embedded"
    host = None if embedded else request.getfixturevalue("rabbitmq")
    with ExitStack() as stack:
        made = Cluster(stack, host, database_url)
        yield made
        for node in made.nodes.values():
            node.check_no_traceback()


def test_nodes_share_the_tenants_and_what_one_loses_the_others_take(
    cluster: Cluster, ledger: Ledger
) -> None:
    one, two, three = cluster.nodes.values()
    one.start()
    tenants = [one.create(word) for word in words_for_all(one, "one", "two", "three")]
    before = cluster.owners()
    assert {node for node, _ in before.values()} == {"one"}
    with ledger.publishing([(tenant.id, tenant.amqp_url) for tenant in tenants], rate=600):
        ledger.wait_confirmed()
        two.start()
        three.start()
        cluster.wait_spread("one", "two", "three")
        moved = {tenant: now for tenant, now in cluster.owners().items() if now[0] != "one"}
        assert all(epoch > before[tenant][1] for tenant, (_, epoch) in moved.items())
        ledger.wait_confirmed()
        # A node is killed: its tenants are taken over, and no others move.
        here = {tenant for tenant, (node, _) in cluster.owners().items() if node == "one"}
        two.kill()
        cluster.wait_spread("one", "three")
        now = cluster.owners()
        assert {tenant for tenant, (node, _) in now.items() if node == "one"} >= here
        ledger.wait_confirmed()
        # A node is frozen for longer than a lease: it loses its term, and writes nothing more.
        three.freeze()
        cluster.wait_spread("one")
        ledger.wait_confirmed()
        three.send(signal.SIGCONT)
        assert three.wait() == 1
        assert len(three.events("daemon.term_lost")) == 1
        # A node stops gracefully: no lease has to expire.
        three.start()
        two.start()
        cluster.wait_spread("one", "two", "three")
        assert one.stop() == 0
        cluster.wait_spread("two", "three")
        ledger.wait_confirmed()
    ledger.check(alive=two.check_running)
    assert two.stop() == three.stop() == 0
