"""Two daemons on one database: one leads, the other stands by, and a frozen one is fenced."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import psycopg
import pytest

from tests.acceptance.program import Program, Tenant
from tests.ledger import Ledger
from tests.services_rabbitmq import RabbitHost
from tests.waiting import DEADLINE, eventually


@pytest.fixture
def standby(rabbitmq: RabbitHost, database_url: str) -> Iterator[Program]:
    """Another daemon on the same database and broker, not started yet."""
    with Program(rabbitmq, database_url) as made:
        made.settings["TENANTRY_NODE_STANDBY"] = "true"
        yield made
        made.check_no_traceback()


def standing_by(standby: Program) -> Program:
    standby.spawn()
    eventually(lambda: standby.status_of("/healthz") == 200, what="a standby")
    standby.wait_logged("daemon.standing_by")
    return standby


def wait_leading(program: Program) -> None:
    """Wait until a standby consumes."""
    eventually(lambda: program.status_of("/readyz") == 200, what="a takeover")


def term(program: Program) -> int:
    with psycopg.connect(program.database_url) as connection:
        row = connection.execute("SELECT sum(number) FROM tenantry.terms").fetchone()
    assert row is not None
    return int(row[0])


def test_a_standby_reads_refuses_commands_and_names_the_leader(
    running: Program, standby: Program, ledger: Ledger
) -> None:
    tenant = running.create()
    with ledger.publishing([(tenant.id, tenant.amqp_url)]):
        ledger.wait_confirmed()
    ledger.check(alive=running.check_running)
    standing_by(standby)
    not_ready = standby.call("GET", "/readyz")
    assert not_ready.status_code == 503
    assert f"pid {running.process.pid}" in not_ready.json()["detail"]
    refused = standby.call("POST", "/tenants", {"name": "x", "id": standby.name("x")})
    assert refused.status_code == 503
    assert refused.headers["content-type"] == "application/problem+json"
    assert f"(pid {running.process.pid}) leads" in refused.json()["detail"]
    published = standby.call("POST", f"/tenants/{tenant.id}/messages", {"payload": 1})
    assert (published.status_code, "standby" in published.json()["detail"]) == (503, True)
    replayed = standby.call("POST", f"/tenants/{tenant.id}/dead-letters/replay", {"all": True})
    assert replayed.status_code == 503
    assert standby.get(f"/tenants/{tenant.id}")["name"] == "acme"
    assert len(standby.get(f"/messages?tenant_id={tenant.id}&limit=10")["data"]) == 10
    shown = standby.cli("status", "--json").json
    assert (shown["role"], shown["state"]) == ("standby", "standby")
    assert shown["term"]["pid"] == running.process.pid
    lead = running.cli("status", "--json").json
    assert (lead["role"], lead["term"]) == ("leader", shown["term"])
    assert "tenantry_is_leader 0.0" in standby.call("GET", "/metrics").text
    assert "tenantry_is_leader 1.0" in running.call("GET", "/metrics").text
    assert standby.cli("drain").code == 1
    (node,) = standby.get("/nodes")["data"]
    assert (node["pid"], node["state"]) == (running.process.pid, "active")
    assert standby.call("POST", f"/nodes/{node['name']}/drain").status_code == 503
    shown = standby.get(f"/tenants/{tenant.id}")
    assert (shown["node"], shown["workers_current"]) == (node["name"], None)
    assert standby.stop() == 0
    assert running.status_of("/readyz") == 200


def test_a_standby_takes_over_at_once_when_the_leader_ends_in_order(
    running: Program, standby: Program, ledger: Ledger
) -> None:
    tenant = running.create()
    standing_by(standby)
    with ledger.publishing([(tenant.id, tenant.amqp_url)], rate=500):
        ledger.wait_confirmed()
        assert running.stop() == 0
        eventually(lambda: standby.status_of("/readyz") == 200, what="a takeover")
        ledger.wait_confirmed()
    ledger.check(alive=standby.check_running)
    # Now the first daemon is the standby of the second.
    running.settings["TENANTRY_NODE_STANDBY"] = "true"
    standing_by(running)
    assert standby.stop() == 0
    wait_leading(running)
    assert running.stop() == 0


def test_a_killed_leader_is_replaced_and_nothing_is_lost(
    running: Program, standby: Program, ledger: Ledger
) -> None:
    tenants = [running.create("one", workers=4), running.create("two")]
    standing_by(standby)
    with ledger.publishing([(one.id, one.amqp_url) for one in tenants], rate=800):
        ledger.wait_confirmed()
        running.kill()
        wait_leading(standby)
        ledger.wait_confirmed()
    ledger.check(alive=standby.check_running)
    assert standby.stop() == 0
    assert standby.ready_messages(*(one.queue for one in tenants)) == 0


def test_a_restarted_leader_leads_again_without_waiting(running: Program) -> None:
    before = term(running)
    running.kill()
    running.spawn()
    running.wait_ready(timeout=DEADLINE)
    assert term(running) == before + 1
    assert not running.events("daemon.standing_by")


def wait_unsettled(program: Program, tenant: Tenant) -> None:
    eventually(lambda: program.runtime(tenant)["unsettled"] > 0, what="unsettled deliveries")


def test_a_frozen_leader_finds_its_term_lost_and_writes_nothing_more(
    running: Program, standby: Program, ledger: Ledger
) -> None:
    tenants = [running.create("one", workers=4), running.create("two")]
    standing_by(standby)
    with ledger.publishing([(one.id, one.amqp_url) for one in tenants], rate=800):
        ledger.wait_confirmed()
        wait_unsettled(running, tenants[0])
        running.send(signal.SIGSTOP)
        number = term(running)
        wait_leading(standby)
        assert term(running) > number
        assert standby.events("broker.shut_out")
        ledger.wait_confirmed()
        running.send(signal.SIGCONT)
        assert running.wait(DEADLINE) == 1
        ledger.wait_confirmed()
    lost = running.events("daemon.term_lost")
    assert len(lost) == 1
    ledger.check(alive=standby.check_running)
    assert standby.status_of("/readyz") == 200
    assert standby.stop() == 0
    assert standby.ready_messages(*(one.queue for one in tenants)) == 0


def test_on_the_embedded_broker_a_standby_takes_over_as_well(
    program: Program, standby: Program
) -> None:
    for one in (program, standby):
        one.settings["RABBITMQ_URL"] = ""
    program.spawn()
    program.wait_ready()
    tenant = program.create(topics=["events"])

    def publish(to: Program, first: int) -> None:
        messages = [{"payload": n, "id": f"m{n}"} for n in range(first, first + 100)]
        answer = to.call("POST", f"/tenants/{tenant.id}/messages", messages)
        assert answer.status_code == 202, answer.text

    publish(program, 0)
    standing_by(standby)
    publish(program, 100)
    program.send(signal.SIGSTOP)
    wait_leading(standby)
    publish(standby, 200)
    program.send(signal.SIGCONT)
    assert program.wait(DEADLINE) == 1
    assert program.events("daemon.term_lost")

    def stored() -> bool:
        return bool(standby.runtime(tenant)["stored"] == 300)

    eventually(stored, what="300 rows")
    found = standby.get(f"/messages?tenant_id={tenant.id}&limit=1000")["data"]
    assert {one["id"] for one in found} == {f"m{n}" for n in range(300)}
    assert standby.stop() == 0
