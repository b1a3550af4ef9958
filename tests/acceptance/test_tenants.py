"""Tenants from their creation to their deletion, as an operator sees them."""

from __future__ import annotations

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pika
import psycopg
import pytest

from tests.acceptance.program import Program, Tenant, tenant_of
from tests.acceptance.test_crashes import leftovers
from tests.acceptance.test_http_dead_letters import count_rows
from tests.acceptance.test_http_lifecycle import tcp_url
from tests.ledger import LIGHT, Ledger
from tests.waiting import DEADLINE, eventually

CURL = shutil.which("curl")


def publish_one(tenant: Tenant, message_id: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(tenant.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        properties = pika.BasicProperties(message_id=message_id, delivery_mode=2)
        channel.basic_publish(tenant.stream, "default", b"1", properties, mandatory=True)


def test_of_several_creations_of_one_id_at_once_one_succeeds(shared: Program) -> None:
    body = {"name": "twin", "id": shared.name("twin")}
    with ThreadPoolExecutor(max_workers=4) as pool:
        answers = list(pool.map(lambda _: shared.call("POST", "/tenants", body), range(4)))
    assert sorted(one.status_code for one in answers) == [201, 409, 409, 409]
    (made,) = (one for one in answers if one.status_code == 201)
    assert made.headers["location"] == f"/tenants/{body['id']}"
    tenant = tenant_of(made.json())
    publish_one(tenant, "works")
    eventually(lambda: shared.runtime(tenant)["stored"] == 1, what="the message")
    for refused in answers:
        if refused.status_code == 409:
            assert refused.headers["content-type"] == "application/problem+json"
            assert tenant.id in refused.json()["detail"]


def test_a_tenant_made_without_an_id_gets_one(shared: Program) -> None:
    answer = shared.call("POST", "/tenants", {"name": "Nameless & Söhne"})
    assert answer.status_code == 201
    tenant = tenant_of(answer.json())
    try:
        assert answer.json()["name"] == "Nameless & Söhne"
        publish_one(tenant, "works")
        eventually(lambda: shared.runtime(tenant)["stored"] == 1, what="the message")
    finally:
        assert shared.call("DELETE", f"/tenants/{tenant.id}").status_code == 204


def test_a_deleted_tenant_is_gone_and_the_journal_knows_how_much_went_with_it(
    shared: Program,
) -> None:
    ledger = Ledger(database_url=shared.database_url, most=LIGHT)
    tenant = shared.create(topics=["events"], partitions=2)
    other = shared.create("other")
    with ledger.publishing([(tenant.id, tenant.amqp_url)]):
        ledger.wait_confirmed()
    count = ledger.confirmed
    eventually(lambda: count_rows(shared, tenant) == count, what="all rows")
    assert shared.call("POST", f"/tenants/{tenant.id}/pause").status_code == 200
    publish_one(tenant, "waits")
    assert shared.ready_messages(tenant.queue) == 1
    assert shared.call("DELETE", f"/tenants/{tenant.id}").status_code == 204

    assert shared.call("GET", f"/tenants/{tenant.id}").status_code == 404
    assert shared.call("DELETE", f"/tenants/{tenant.id}").status_code == 404
    with psycopg.connect(shared.database_url) as connection:
        assert leftovers(shared, connection, tenant.id) == []
    assert count_rows(shared, tenant) == 0
    last = shared.get(f"/tenants/{tenant.id}/events?limit=1000")["data"][-1]
    assert last["type"] == "TenantDeleted"
    assert (last["data"]["queued"], last["data"]["stored"]) == (1, count)
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        pika.BlockingConnection(pika.URLParameters(tenant.amqp_url))
    assert shared.status_of("/readyz") == 200
    listed = {one["id"] for one in shared.get("/tenants")["data"]}
    assert {tenant.id, other.id} & listed == {other.id}

    again = shared.create(workers=1)
    assert again.id == tenant.id
    assert again.password != tenant.password
    publish_one(again, "works")
    eventually(lambda: shared.runtime(again)["stored"] == 1, what="the message")
    assert [one["id"] for one in shared.get(f"/messages?tenant_id={again.id}")["data"]] == ["works"]


def test_deleting_under_load_ends_and_leaves_nothing(shared: Program) -> None:
    ledger = Ledger(database_url=shared.database_url, most=LIGHT)
    tenant = shared.create()
    with ledger.publishing([(tenant.id, tenant.amqp_url)], rate=3000) as clients:
        ledger.wait_confirmed()
        assert shared.call("DELETE", f"/tenants/{tenant.id}").status_code == 204
        # The tenant's user is gone: unconfirmed messages stay unconfirmed.
        clients[0].abandon()
    with psycopg.connect(shared.database_url) as connection:
        assert leftovers(shared, connection, tenant.id) == []
    last = shared.get(f"/tenants/{tenant.id}/events?limit=1000")["data"][-1]
    # All confirmed messages are counted as dropped, whether they were stored or still queued.
    assert last["data"]["queued"] + last["data"]["stored"] >= len(clients[0].confirmed)
    assert shared.status_of("/readyz") == 200


def test_a_tenant_deleted_with_retain_can_still_be_read(running: Program, ledger: Ledger) -> None:
    tenant = running.create()
    with ledger.publishing([(tenant.id, tenant.amqp_url)]):
        ledger.wait_confirmed()
    ledger.check()
    assert running.call("DELETE", f"/tenants/{tenant.id}?retain=true").status_code == 204
    assert running.broker_objects(tenant.id) == []
    ledger.check()
    shown = running.get(f"/messages?tenant_id={tenant.id}&limit=1000")["data"]
    assert {one["id"] for one in shown} == set(ledger.clients[0].confirmed)
    assert running.call("GET", f"/tenants/{tenant.id}").status_code == 404
    again = running.create()
    publish_one(again, "new")
    # It is another tenant; the former one's rows are put aside.
    eventually(lambda: ledger.stored() == 1, what="the new message's row")
    kept = running.get(f"/messages?tenant_id={tenant.id}&incarnation=1&limit=1000")["data"]
    assert kept == shown


def test_the_past_of_a_tenant_can_be_shown(shared: Program) -> None:
    tenant = shared.create(workers=3)
    shared.call("PUT", f"/tenants/{tenant.id}/config/concurrency", {"workers": 9})
    between = shared.get(f"/tenants/{tenant.id}")["updated_at"]
    shared.call("POST", f"/tenants/{tenant.id}/pause")
    expected = {
        "1": ("provisioning", 3),
        "2": ("active", 3),
        "3": ("active", 9),
        "4": ("paused", 9),
        between: ("active", 9),
    }
    for at, then in expected.items():
        shown = shared.get(f"/tenants/{tenant.id}?at={at}")
        assert (shown["state"], shown["workers"]) == then, at
    for at in ("5", "2001-01-01T00:00:00Z"):
        assert shared.call("GET", f"/tenants/{tenant.id}?at={at}").status_code == 404
    ended = shared.cli("tenant", "show", tenant.id, "--at", "2", "--json")
    assert (ended.code, ended.json["state"], ended.json["version"]) == (0, "active", 2)
    assert shared.cli("tenant", "show", tenant.id, "--at", "5").code == 1


def test_the_command_line_does_all_that_is_done_to_tenants(shared: Program) -> None:
    tenant_id = shared.name("acme")
    made = shared.cli(
        "tenant", "create", "Acme Ltd", "--id", tenant_id, "--workers", "2", "--topics", "a,b",
        "--json",
    )  # fmt: skip
    assert made.code == 0, made.stderr
    tenant = tenant_of(made.json)
    publish_one(tenant, "one")
    assert shared.cli("tenant", "create", "Acme Ltd", "--id", tenant_id).code == 1
    resized = shared.cli("tenant", "resize", tenant_id, "6", "--json")
    assert (resized.code, resized.json["workers_current"]) == (0, 6)
    listed = shared.cli("tenant", "list", "--json")
    assert tenant_id in {one["id"] for one in listed.json}
    table = shared.cli("tenant", "list").stdout.splitlines()
    assert table[0].split()[:4] == ["ID", "NAME", "STATE", "WORKERS"]
    assert len([line for line in table[1:] if line.startswith(tenant_id)]) == 1
    assert "\x1b" not in "".join(table)
    rotated = shared.cli("tenant", "rotate-credentials", tenant_id, "--json")
    assert rotated.json["credentials"]["password"] != tenant.password
    eventually(lambda: shared.runtime(tenant)["stored"] == 1, what="the message")

    status = shared.cli("status")
    assert status.code == 0
    assert "supervisor" in status.stdout
    assert f"  {tenant_id}  Tenant, active" in status.stdout
    assert "    consumer  Consumer, consuming" in status.stdout
    assert "    worker-1  Worker, idle" in status.stdout

    deleted = shared.cli("tenant", "delete", tenant_id, "--yes", "--json")
    assert deleted.json["state"] == "deleted"
    listed = shared.cli("tenant", "list", "--json")
    assert tenant_id not in {one["id"] for one in listed.json}
    events = shared.cli("events", tenant_id, "--json").json
    assert [one["type"] for one in events] == [
        "TenantCreated", "TenantProvisioned", "WorkersResized", "CredentialsRotated",
        "DeletionRequested", "TenantDeleted",
    ]  # fmt: skip
    assert [one["version"] for one in events] == [1, 2, 3, 4, 5, 6]


@pytest.mark.skipif(CURL is None, reason="curl is not installed")
def test_curl_is_all_it_takes(shared: Program) -> None:
    def curl(*arguments: str) -> Any:
        ended = subprocess.run(
            [str(CURL), "-sS", "--fail-with-body", "-m", "20", *arguments],
            check=True,
            capture_output=True,
            timeout=DEADLINE,
        )
        return json.loads(ended.stdout) if ended.stdout else None

    socket = ("--unix-socket", str(shared.socket))
    tenant_id = shared.name("curl")
    kind = ("-H", "Content-Type: application/json")
    body = json.dumps({"name": "Curl", "id": tenant_id})
    assert curl(*socket, *kind, "-d", body, "http://localhost/tenants")["state"] == "active"
    url = f"{tcp_url(shared)}/tenants/{tenant_id}"
    assert curl(url)["id"] == tenant_id
    assert curl(*kind, "-d", '{"payload": 1, "id": "a"}', f"{url}/messages") == {"ids": ["a"]}
    messages = f"{tcp_url(shared)}/messages?tenant_id={tenant_id}"
    eventually(lambda: curl(messages)["data"])
    assert curl(*socket, "-X", "DELETE", f"http://localhost/tenants/{tenant_id}") is None
    assert shared.socket.stat().st_mode & 0o777 == 0o660


def test_rotated_credentials_replace_the_old_ones(shared: Program) -> None:
    tenant = shared.create()
    renewed = shared.rotated(tenant.id)
    assert renewed.password != tenant.password
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        pika.BlockingConnection(pika.URLParameters(tenant.amqp_url))
    with pika.BlockingConnection(pika.URLParameters(renewed.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish(renewed.stream, "default", b"1", mandatory=True)


def test_what_is_published_for_a_former_tenant_does_not_arrive_in_the_next_ones_queues(
    shared: Program,
) -> None:
    tenant = shared.create()
    sender = pika.BlockingConnection(pika.URLParameters(tenant.amqp_url))
    channel = sender.channel()
    channel.confirm_delivery()
    channel.basic_publish(tenant.stream, "default", b'"old"', mandatory=True)
    eventually(lambda: shared.runtime(tenant)["stored"] == 1, what="a row")
    assert shared.call("DELETE", f"/tenants/{tenant.id}").status_code == 204
    again: Tenant = shared.create()
    with pytest.raises((pika.exceptions.AMQPError, OSError)):
        channel.basic_publish(again.stream, "default", b'"late"', mandatory=True)
    with suppress(pika.exceptions.AMQPError, OSError):
        sender.close()
    with pytest.raises(pika.exceptions.AMQPError):
        pika.BlockingConnection(pika.URLParameters(tenant.amqp_url))
    with pika.BlockingConnection(pika.URLParameters(again.amqp_url)) as client:
        renewed = client.channel()
        renewed.confirm_delivery()
        renewed.basic_publish(again.stream, "default", b'"new"')
    page = f"/messages?tenant_id={again.id}"
    found = eventually(lambda: shared.get(page)["data"], what="the new row")
    assert [(one["payload"], one["position"]) for one in found] == [("new", 1)]


def test_a_tenant_that_has_what_it_may_is_refused_more_and_all_that_was_taken_is_stored(
    shared: Program,
) -> None:
    tenant = shared.create()
    path = f"/tenants/{tenant.id}"
    assert shared.call("POST", f"{path}/pause").status_code == 200
    limits = {"backlog": {"messages": 5}, "connections": 1}
    assert shared.call("PUT", f"{path}/limits", limits).json()["limits"]["connections"] == 1
    taken: list[str] = []

    def full() -> bool:
        answer = shared.call("POST", f"{path}/messages", {"payload": len(taken)})
        if answer.status_code == 202:
            taken.extend(answer.json()["ids"])
            return False
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
        assert answer.json()["type"].endswith("backlog-full")
        return True

    eventually(full, what="a full backlog")
    with pytest.raises(pika.exceptions.NackError):
        publish_one(tenant, "one too many")

    def connected() -> pika.BlockingConnection | None:
        # The broker may take a moment to notice that the last connection is closed.
        with suppress(pika.exceptions.AMQPConnectionError):
            return pika.BlockingConnection(pika.URLParameters(tenant.amqp_url))
        return None

    def refused() -> bool:
        # Nor does it count a new one at once.
        another = connected()
        if another is not None:
            another.close()
        return another is None

    with eventually(connected, what="a connection"):
        eventually(refused, what="one connection too many refused")
    assert shared.call("POST", f"{path}/resume").status_code == 200
    eventually(lambda: shared.runtime(tenant)["stored"] == len(taken), what="what was taken")
    eventually(lambda: not full(), what="room")
    eventually(lambda: shared.runtime(tenant)["stored"] == len(taken), what="what came after")
    assert shared.get(f"{path}/audit")["balanced"]
    assert shared.call("DELETE", path).status_code == 204
    assert not shared.broker_objects(tenant.id)


def test_a_tenant_s_rate_holds_while_its_backlog_is_stored_and_the_rest_waits(
    shared: Program,
) -> None:
    tenant = shared.create()
    path = f"/tenants/{tenant.id}"
    assert shared.call("POST", f"{path}/pause").status_code == 200
    for _ in range(4):  # each call waits for confirms
        assert shared.call("POST", f"{path}/messages", [{"payload": 1}] * 900).status_code == 202
    assert shared.call("PUT", f"{path}/limits", {"rate": 400, "burst": 800}).status_code == 200
    with psycopg.connect(shared.database_url) as connection:
        (began,) = connection.execute("SELECT clock_timestamp()").fetchone() or ()
    assert shared.call("POST", f"{path}/resume").status_code == 200
    eventually(lambda: shared.runtime(tenant)["stored"] >= 3000)
    # Unsettled deliveries are at most two seconds' worth of the rate.
    assert shared.runtime(tenant)["unsettled"] <= 800
    with psycopg.connect(shared.database_url) as connection:
        row = connection.execute(
            "SELECT extract(epoch FROM max(created_at) - %s)::float8, count(*)"
            " FROM public.messages WHERE tenant_id = %s",
            (began, tenant.id),
        ).fetchone()
    assert row is not None
    seconds, stored = row
    assert stored <= 800 + 400 * seconds * 1.05
    # A pause does not wait for rate tokens, and loses none of the deliveries it gives back.
    assert shared.call("POST", f"{path}/pause").status_code == 200
    assert shared.call("PUT", f"{path}/limits", {"rate": None}).status_code == 200
    assert shared.call("POST", f"{path}/resume").status_code == 200
    try:
        eventually(lambda: count_rows(shared, tenant) == 3600, what="all rows")
    except AssertionError as error:
        where = f"{shared.runtime(tenant)}, {shared.get(f'{path}/audit')}"
        raise AssertionError(f"{count_rows(shared, tenant)} rows: {where}") from error
