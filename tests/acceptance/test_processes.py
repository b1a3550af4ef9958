"""`run --processes N`: several nodes as one service, with one socket, one port and one page."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tenantry.nodes.membership import place
from tests.acceptance.program import Program
from tests.ledger import Ledger
from tests.waiting import DEADLINE, eventually

TENANTS = 8


@pytest.fixture
def embedded(database_url: str) -> Iterator[Program]:
    with Program(None, database_url) as made:
        yield made
        made.check_no_traceback()


def nodes(program: Program) -> dict[str, int]:
    """Return the process id of each active node, from the database."""
    with psycopg.connect(program.database_url) as connection:
        rows = connection.execute(
            "SELECT n.name, t.pid FROM tenantry.nodes AS n"
            " JOIN tenantry.terms AS t ON t.scope = 'node:' || n.name WHERE n.active AND t.held"
        )
        return dict(rows.fetchall())


def wait_spread(program: Program) -> dict[str, int]:
    """Wait until three nodes are active, each with the tenants that placement gives it."""

    def spread() -> dict[str, int] | None:
        there = nodes(program)
        weights = dict.fromkeys(there, 1.0)
        with psycopg.connect(program.database_url) as connection:
            rows = connection.execute("SELECT tenant_id, node FROM tenantry.owners").fetchall()
        right = all(node == place(tenant_id, weights) for tenant_id, node in rows)
        return there if len(there) == 3 and right and len(rows) == TENANTS else None

    return eventually(spread, what="three nodes share the tenants")


def test_processes_share_the_work_and_are_one_service_to_whoever_looks(
    embedded: Program, ledger: Ledger
) -> None:
    program = embedded
    program.start(TENANTRY_PROCESSES="3")
    tenants = [program.create(f"t{number}") for number in range(TENANTS)]
    before = wait_spread(program)
    with ledger.publishing([(tenant.id, tenant.amqp_url) for tenant in tenants], rate=600):
        ledger.wait_confirmed()
        victim = program.events("process.started")[0]["pid"]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(program.events("process.started")) == 4, what="another process")
        eventually(lambda: victim not in nodes(program).values(), what="its node is another's")
        after = wait_spread(program)
        ledger.wait_confirmed()
    assert before.keys() == after.keys()
    assert len(set(before.values()) & set(after.values())) == 2
    ledger.check(alive=program.check_running)
    # Placement follows from the tenants' ids: with few tenants a node may have none.
    weights = dict.fromkeys(after, 1.0)
    expected = {(one.id, place(one.id, weights)) for one in tenants}

    def shown() -> bool:
        text = program.call("GET", "/metrics").text
        assert len(re.findall("^# TYPE messages_processed_total ", text, re.MULTILINE)) == 1
        families = {one.name: one for one in text_string_to_metric_families(text)}
        stored = families["messages_processed"].samples
        found = {(one.labels["tenant_id"], one.labels["node"]) for one in stored}
        assert found <= expected
        return found == expected

    eventually(shown, what="the metrics of all processes: one may be late to answer")
    port = program.get("/info")["server"]["port"]
    ready = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=DEADLINE, trust_env=False)
    assert ready.status_code == 200
    assert program.stop() == 0
    for pid in after.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_stop_ends_all_processes_and_so_does_the_end_of_their_parent(program: Program) -> None:
    program.start(TENANTRY_PROCESSES="2")
    eventually(lambda: len(nodes(program)) == 2, what="two nodes")
    assert program.cli("stop").code == 0
    assert program.wait() == 0
    program.start(TENANTRY_PROCESSES="2")
    there = eventually(lambda: len(found := nodes(program)) == 2 and found, what="two nodes")
    program.kill()
    eventually(lambda: not nodes(program), what="they have left")
    eventually(lambda: not any(map(alive, there.values())), what="they have ended")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_configuration_that_children_refuse_ends_the_service(program: Program) -> None:
    ended = program.run(TENANTRY_PROCESSES="2", TENANTRY_HANDLERS="events=nowhere:nothing")
    assert ended.code == 2
    assert "nowhere" in ended.stderr
    ended = program.run(TENANTRY_PROCESSES="many")
    assert ended.code == 2
    assert "processes" in ended.complaint
