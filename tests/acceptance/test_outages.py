"""Broker and database go away under load; the daemon stays up, and catches up afterwards."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

import httpx
import psycopg

from tests.acceptance.program import Program
from tests.acceptance.test_http_lifecycle import tcp_url
from tests.ledger import Ledger
from tests.services_postgres import in_database
from tests.waiting import DEADLINE, eventually


def cut_database_connections(program: Program) -> int:
    with psycopg.connect(program.database_url, autocommit=True) as connection:
        cut = connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'tenantry'"
        )
        return cut.rowcount


def cut_broker_connections(program: Program) -> int:
    names = program.daemon_connections()
    for name in names:
        # A connection that has gone by itself meanwhile is no error.
        program.management.delete(f"/connections/{quote(name, safe='')}")
    return len(names)


def wait_consuming(program: Program, ledger: Ledger) -> None:
    """Wait until the daemon is ready, and stores new messages."""
    eventually(lambda: program.status_of("/readyz") == 200, what="readyz 200")
    stored = ledger.stored()
    # The clients have to reconnect, too.
    ledger.wait_confirmed(1, timeout=DEADLINE)
    eventually(lambda: ledger.stored() > stored, what="new rows")


def test_cut_connections_are_made_anew_and_nothing_is_lost(
    running: Program, ledger: Ledger
) -> None:
    tenants = [running.create("one", workers=5), running.create("two")]
    pid = running.get("/status")["pid"]
    with ledger.publishing([(one.id, one.amqp_url) for one in tenants], rate=1500):
        ledger.wait_confirmed()
        for cut_database, cut_broker in ((True, False), (False, True), (True, True)):
            if cut_database:
                assert cut_database_connections(running) > 0
            if cut_broker:
                assert eventually(lambda: cut_broker_connections(running), what="connections") > 0
            wait_consuming(running, ledger)
    ledger.check(alive=running.check_running)
    assert running.get("/status")["pid"] == pid
    assert running.stop() == 0
    assert running.ready_messages(*(one.queue for one in tenants)) == 0


def test_whoever_comes_first_after_its_connections_were_cut_at_rest_is_served(
    running: Program,
) -> None:
    tenant = running.create()
    publish, read = f"/tenants/{tenant.id}/messages", f"/messages?tenant_id={tenant.id}"
    # A new connection for each request: a kept one may be closed as it is used again.
    alone = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(
        base_url=tcp_url(running), limits=alone, timeout=DEADLINE, trust_env=False
    ) as client:

        def first(cut: str) -> None:
            answers = [
                client.post(publish, json={"payload": cut}),
                client.get(read),
                running.call("POST", publish, {"payload": cut}),
                running.call("GET", read),
            ]
            assert [one.status_code for one in answers] == [202, 200, 202, 200], (cut, answers)

        # Until the front has its own connections, the daemon does its work.
        eventually(lambda: running.events("broker.connected")[2:], what="the front's connection")
        first("nothing")
        for cut in ("database", "broker", "both"):
            if cut != "broker":
                assert cut_database_connections(running) > 0
            if cut != "database":
                assert eventually(lambda: cut_broker_connections(running), what="connections") > 0
            eventually(lambda: running.status_of("/readyz") == 200, what="ready")
            first(cut)


def test_a_database_that_takes_no_connections_for_a_while_stops_nothing_for_good(
    running: Program, ledger: Ledger
) -> None:
    tenant = running.create()
    name = urlsplit(running.database_url).path[1:]
    admin = in_database(running.database_url, "postgres")
    with ledger.publishing([(tenant.id, tenant.amqp_url)], rate=1000):
        ledger.wait_confirmed()
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            try:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                    [name],
                )
                eventually(lambda: running.status_of("/readyz") == 503, what="readyz 503")
                assert running.call("GET", "/healthz").status_code == 200
                refused = running.call("POST", "/tenants", {"name": "x", "id": running.name("x")})
                assert refused.status_code == 503
                assert refused.headers["content-type"] == "application/problem+json"
                assert running.call("GET", f"/tenants/{tenant.id}").status_code == 503
                ledger.wait_confirmed()
                running.check_running()
            finally:
                connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        wait_consuming(running, ledger)
    ledger.check(alive=running.check_running)
    # Without heartbeats the term may have expired by the time the database is back.
    after = {"name": "after", "id": running.name("after")}
    assert running.call_until_taken("POST", "/tenants", after).json()["state"] == "active"
    assert running.stop() == 0
    assert running.ready_messages(tenant.queue) == 0
