"""Tenants from their creation to their deletion, as an operator meets them."""

from __future__ import annotations

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pika
import psycopg
import pytest

from tests.acceptance.program import Program, Tenant, tenant_of
from tests.acceptance.test_crashes import leftovers
from tests.ledger import Ledger
from tests.waiting import eventually


def publish_one(tenant: Tenant, message_id: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(tenant.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        properties = pika.BasicProperties(message_id=message_id, delivery_mode=2)
        channel.basic_publish(tenant.stream, "default", b"1", properties, mandatory=True)


def test_of_several_creations_of_one_id_at_once_one_succeeds(running: Program) -> None:
    body = {"name": "twin", "id": running.name("twin")}
    with ThreadPoolExecutor(max_workers=4) as pool:
        answers = list(pool.map(lambda _: running.call("POST", "/tenants", body), range(4)))
    assert sorted(one.status_code for one in answers) == [201, 409, 409, 409]
    (made,) = (one for one in answers if one.status_code == 201)
    assert made.headers["location"] == f"/tenants/{body['id']}"
    tenant = tenant_of(made.json())
    publish_one(tenant, "works")
    eventually(lambda: running.runtime(tenant)["stored"] == 1, what="the message")
    for refused in answers:
        if refused.status_code == 409:
            assert refused.headers["content-type"] == "application/problem+json"
            assert tenant.id in refused.json()["detail"]


def test_a_tenant_made_without_an_id_gets_one(running: Program) -> None:
    answer = running.call("POST", "/tenants", {"name": "Nameless & Söhne"})
    assert answer.status_code == 201
    tenant = tenant_of(answer.json())
    try:
        assert answer.json()["name"] == "Nameless & Söhne"
        publish_one(tenant, "works")
        eventually(lambda: running.runtime(tenant)["stored"] == 1, what="the message")
    finally:
        assert running.call("DELETE", f"/tenants/{tenant.id}").status_code == 204


def test_a_deleted_tenant_is_gone_and_the_journal_knows_how_much_went_with_it(
    running: Program, ledger: Ledger
) -> None:
    tenant = running.create(topics=["events"], partitions=2)
    other = running.create("other")
    with ledger.publishing([(tenant.id, tenant.amqp_url)]):
        ledger.wait_confirmed(50)
    count = ledger.confirmed
    eventually(lambda: ledger.stored() == count, what="all rows")
    assert running.call("POST", f"/tenants/{tenant.id}/pause").status_code == 200
    publish_one(tenant, "waits")
    assert running.ready_messages(tenant.queue) == 1
    assert running.call("DELETE", f"/tenants/{tenant.id}").status_code == 204

    assert running.call("GET", f"/tenants/{tenant.id}").status_code == 404
    assert running.call("DELETE", f"/tenants/{tenant.id}").status_code == 404
    with psycopg.connect(running.database_url) as connection:
        assert leftovers(running, connection, tenant.id) == []
    assert ledger.stored() == 0
    last = running.get(f"/tenants/{tenant.id}/events?limit=1000")["data"][-1]
    assert last["type"] == "TenantDeleted"
    assert (last["data"]["queued"], last["data"]["stored"]) == (1, count)
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        pika.BlockingConnection(pika.URLParameters(tenant.amqp_url))
    assert running.status_of("/readyz") == 200
    assert [one["id"] for one in running.get("/tenants")["data"]] == [other.id]

    again = running.create(workers=1)
    assert again.id == tenant.id
    assert again.password != tenant.password
    publish_one(again, "works")
    eventually(lambda: running.runtime(again)["stored"] == 1, what="the message")
    assert [one["id"] for one in running.get(f"/messages?tenant_id={again.id}")["data"]] == [
        "works"
    ]


def test_deleting_under_load_ends_and_leaves_nothing(running: Program, ledger: Ledger) -> None:
    tenant = running.create()
    with ledger.publishing([(tenant.id, tenant.amqp_url)], rate=3000) as clients:
        ledger.wait_confirmed(500)
        assert running.call("DELETE", f"/tenants/{tenant.id}").status_code == 204
        # Its user is gone: what is unconfirmed stays so.
        clients[0].abandon()
    with psycopg.connect(running.database_url) as connection:
        assert leftovers(running, connection, tenant.id) == []
    last = running.get(f"/tenants/{tenant.id}/events?limit=1000")["data"][-1]
    # What was confirmed was dropped knowingly, stored or still queued.
    assert last["data"]["queued"] + last["data"]["stored"] >= len(clients[0].confirmed)
    assert running.stop() == 0


def test_a_tenant_deleted_with_retain_can_still_be_read(running: Program, ledger: Ledger) -> None:
    tenant = running.create()
    with ledger.publishing([(tenant.id, tenant.amqp_url)]):
        ledger.wait_confirmed(50)
    ledger.check()
    assert running.call("DELETE", f"/tenants/{tenant.id}?retain=true").status_code == 204
    assert running.broker_objects(tenant.id) == []
    ledger.check()
    shown = running.get(f"/messages?tenant_id={tenant.id}&limit=1000")["data"]
    assert {one["id"] for one in shown} == set(ledger.clients[0].confirmed)
    assert running.call("GET", f"/tenants/{tenant.id}").status_code == 404
    again = running.create()
    publish_one(again, "new")
    # It is another tenant; what was kept of the former is put aside.
    eventually(lambda: ledger.stored() == 1, what="the new message's row")
    kept = running.get(f"/messages?tenant_id={tenant.id}&incarnation=1&limit=1000")["data"]
    assert kept == shown


def test_the_past_of_a_tenant_can_be_shown(running: Program) -> None:
    tenant = running.create(workers=3)
    running.call("PUT", f"/tenants/{tenant.id}/config/concurrency", {"workers": 9})
    between = running.get(f"/tenants/{tenant.id}")["updated_at"]
    running.call("POST", f"/tenants/{tenant.id}/pause")
    expected = {
        "1": ("provisioning", 3),
        "2": ("active", 3),
        "3": ("active", 9),
        "4": ("paused", 9),
        between: ("active", 9),
    }
    for at, then in expected.items():
        shown = running.get(f"/tenants/{tenant.id}?at={at}")
        assert (shown["state"], shown["workers"]) == then, at
    for at in ("5", "2001-01-01T00:00:00Z"):
        assert running.call("GET", f"/tenants/{tenant.id}?at={at}").status_code == 404
    ended = running.cli("tenant", "show", tenant.id, "--at", "2", "--json")
    assert (ended.code, ended.json["state"], ended.json["version"]) == (0, "active", 2)
    assert running.cli("tenant", "show", tenant.id, "--at", "5").code == 1


def test_the_command_line_does_all_that_is_done_to_tenants(running: Program) -> None:
    tenant_id = running.name("acme")
    made = running.cli(
        "tenant", "create", "Acme Ltd", "--id", tenant_id, "--workers", "2", "--topics", "a,b",
        "--json",
    )  # fmt: skip
    assert made.code == 0, made.stderr
    tenant = tenant_of(made.json)
    publish_one(tenant, "one")
    assert running.cli("tenant", "create", "Acme Ltd", "--id", tenant_id).code == 1
    resized = running.cli("tenant", "resize", tenant_id, "6", "--json")
    assert (resized.code, resized.json["workers_current"]) == (0, 6)
    listed = running.cli("tenant", "list", "--json")
    assert [one["id"] for one in listed.json] == [tenant_id]
    table = running.cli("tenant", "list").stdout.splitlines()
    assert table[0].split()[:4] == ["ID", "NAME", "STATE", "WORKERS"]
    assert table[1].startswith(tenant_id)
    assert "\x1b" not in "".join(table)
    rotated = running.cli("tenant", "rotate-credentials", tenant_id, "--json")
    assert rotated.json["credentials"]["password"] != tenant.password
    eventually(lambda: running.runtime(tenant)["stored"] == 1, what="the message")

    status = running.cli("status")
    assert status.code == 0
    assert "supervisor" in status.stdout
    assert f"  {tenant_id}  Tenant, active" in status.stdout
    assert "    consumer  Consumer, consuming" in status.stdout
    assert "    worker-1  Worker, idle" in status.stdout

    deleted = running.cli("tenant", "delete", tenant_id, "--yes", "--json")
    assert deleted.json["state"] == "deleted"
    assert running.cli("tenant", "list", "--json").json == []
    events = running.cli("events", tenant_id, "--json").json
    assert [one["type"] for one in events] == [
        "TenantCreated", "TenantProvisioned", "WorkersResized", "CredentialsRotated",
        "DeletionRequested", "TenantDeleted",
    ]  # fmt: skip
    assert [one["version"] for one in events] == [1, 2, 3, 4, 5, 6]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_talks_to_the_control_socket(running: Program) -> None:
    tenant = running.create()
    answer = subprocess.run(
        ["curl", "-sf", "--unix-socket", str(running.socket), "http://localhost/tenants"],
        capture_output=True,
        timeout=10,
        check=True,
    )
    assert [one["id"] for one in json.loads(answer.stdout)["data"]] == [tenant.id]
    assert running.socket.stat().st_mode & 0o777 == 0o660
