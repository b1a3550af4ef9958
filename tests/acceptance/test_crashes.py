"""The daemon is killed without warning; its next start completes or undoes unfinished work."""

from __future__ import annotations

import time
from contextlib import suppress

import httpx
import pika
import psycopg
import pytest

from tests.acceptance.program import Program, Tenant, in_background
from tests.depth import examples
from tests.ledger import Ledger
from tests.waiting import eventually


def workers(program: Program, tenants: list[Tenant]) -> list[int]:
    shown = {one["id"]: one for one in program.get("/tenants")["data"]}
    return [shown[one.id]["workers_current"] for one in tenants]


def test_nothing_is_lost_or_doubled_by_kills_under_load(running: Program, ledger: Ledger) -> None:
    tenants = [running.create("one", workers=5), running.create("two"), running.create("three")]
    paused = running.create("paused", workers=2)
    running.call("PUT", f"/tenants/{tenants[1].id}/config/concurrency", {"workers": 7})
    running.call("POST", f"/tenants/{paused.id}/pause")
    everyone = [(one.id, one.amqp_url) for one in (*tenants, paused)]
    with ledger.publishing(everyone, rate=1000):
        for _ in range(examples(2, 3)):
            ledger.wait_confirmed()
            running.kill()
            assert running.process.returncode == -9
            running.start()
            eventually(lambda: workers(running, tenants) == [5, 7, 3], what="the workers")
            shown = {one["id"]: one for one in running.get("/tenants")["data"]}
            assert {shown[one.id]["state"] for one in tenants} == {"active"}
            assert (shown[paused.id]["state"], shown[paused.id]["workers"]) == ("paused", 2)
        ledger.wait_confirmed()
    through = sum(len(one.confirmed) for one in ledger.clients if one.tenant_id != paused.id)
    eventually(lambda: ledger.stored() == through, what="the rows of those not paused")
    assert running.call("POST", f"/tenants/{paused.id}/resume").status_code == 200
    ledger.check(alive=running.check_running)
    assert running.stop() == 0
    assert running.ready_messages(*(one.queue for one in (*tenants, paused))) == 0


def wait_event(connection: psycopg.Connection, stream: str, kind: str) -> None:
    eventually(
        lambda: (
            connection.execute(
                "SELECT FROM tenantry.events WHERE stream = %s AND type = %s", [stream, kind]
            ).rowcount
        ),
        what=f"{kind} in the journal",
    )


def leftovers(program: Program, connection: psycopg.Connection, tenant_id: str) -> list[str]:
    """Return what is left of a tenant on the broker and in the database, without the journal."""
    tables = connection.execute(
        "SELECT relname FROM pg_class WHERE relname = %s", [f"messages_{tenant_id}"]
    ).fetchall()
    rows = connection.execute(
        "SELECT tenant_id FROM tenantry.credentials WHERE tenant_id = %(id)s UNION ALL"
        " SELECT tenant_id FROM tenantry.tenant_counters WHERE tenant_id = %(id)s",
        {"id": tenant_id},
    ).fetchall()
    return [*program.broker_objects(tenant_id), *(str(row[0]) for row in (*tables, *rows))]


@pytest.mark.parametrize("seconds", examples([0.0, 0.05, 0.12], [0.0, 0.03, 0.06, 0.1, 0.15]))
def test_a_creation_cut_short_is_completed_or_leaves_nothing(
    running: Program, seconds: float
) -> None:
    tenant_id = running.name("halfway")
    body = {"name": "halfway", "id": tenant_id, "topics": ["a", "b"], "partitions": 4}

    def create() -> None:
        with suppress(httpx.TransportError):
            running.call("POST", "/tenants", body)

    with psycopg.connect(running.database_url, autocommit=True) as connection:
        with in_background(create):
            wait_event(connection, f"tenant-{tenant_id}", "TenantCreated")
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                pass
            running.kill()
        running.start()
        answer = running.call("GET", f"/tenants/{tenant_id}")
        if answer.status_code == 404:
            assert leftovers(running, connection, tenant_id) == []
            assert running.create("halfway").id == tenant_id
            return
    assert answer.json()["state"] == "active"
    assert answer.json()["topics"] == ["a", "b"]
    tenant = running.rotated(tenant_id)
    with pika.BlockingConnection(pika.URLParameters(tenant.amqp_url)) as client:
        channel = client.channel()
        channel.confirm_delivery()
        for key in ("default", "a", "a.3", "b", "b.3"):
            channel.basic_publish(tenant.stream, key, b"1", mandatory=True)
    eventually(lambda: running.runtime(tenant)["stored"] == 5, what="five messages stored")


def test_a_deletion_cut_short_is_completed_at_the_next_start(
    running: Program, ledger: Ledger
) -> None:
    tenant = running.create(topics=["a", "b"], partitions=4)
    with ledger.publishing([(tenant.id, tenant.amqp_url)]):
        ledger.wait_confirmed()

    def delete() -> None:
        with suppress(httpx.TransportError):
            running.call("DELETE", f"/tenants/{tenant.id}")

    with psycopg.connect(running.database_url, autocommit=True) as connection:
        with in_background(delete):
            wait_event(connection, f"tenant-{tenant.id}", "DeletionRequested")
            running.kill()
        running.start()
        wait_event(connection, f"tenant-{tenant.id}", "TenantDeleted")
        assert running.call("GET", f"/tenants/{tenant.id}").status_code == 404
        assert leftovers(running, connection, tenant.id) == []
    assert running.create().id == tenant.id
