"""Dead letters of a running daemon: those of the broker, replays with all properties, commands."""

from __future__ import annotations

from typing import Any

import pika

from tests.acceptance.program import Program, Tenant
from tests.acceptance.test_http_dead_letters import count_rows, listed, reject
from tests.waiting import eventually

EVERYTHING = {
    "content_type": "text/plain",
    "content_encoding": "identity",
    "headers": {"n": 1, "text": "ä", "list": [True, None], "table": {"a": "b"}},
    "delivery_mode": 1,
    "priority": 3,
    "correlation_id": "correlation",
    "reply_to": "reply",
    "message_id": "m-1",
    "timestamp": 1_700_000_000,
    "type": "kind",
    "app_id": "app",
    "cluster_id": "cluster",
}


def publish(tenant: Tenant, body: bytes, *, key: str = "default", **properties: Any) -> None:
    with pika.BlockingConnection(pika.URLParameters(tenant.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        given = pika.BasicProperties(**properties)
        channel.basic_publish(tenant.stream, key, body, given, mandatory=True)


def test_what_expires_and_what_is_alike_is_listed_counted_and_replayed(shared: Program) -> None:
    tenant = shared.create()
    assert shared.call("POST", f"/tenants/{tenant.id}/pause").status_code == 200
    for _ in range(3):
        publish(tenant, b"ping", content_type="text/plain", expiration="1")
    publish(tenant, b"{}", message_id="m", expiration="1")
    letters = eventually(lambda: len(found := listed(shared, tenant)) == 4 and found)
    assert [one["reason"] for one in letters] == ["expired"] * 4
    eventually(lambda: shared.runtime(tenant)["dead_lettered"] == 4, what="4 counted")
    kinds = [one["type"] for one in shared.get(f"/tenants/{tenant.id}/events")["data"]]
    assert kinds.count("MessageDeadLettered") == 4

    assert shared.call("POST", f"/tenants/{tenant.id}/resume").status_code == 200
    told = shared.cli("dead-letters", "replay", tenant.id, "--reason", "expired", "--dry-run")
    assert (told.code, told.stdout.splitlines()[0]) == (0, "4 dead letters would be replayed")
    done = shared.cli("dead-letters", "replay", tenant.id, "--reason", "expired", "--json")
    assert (done.code, done.json) == (0, {"replayed": 4})
    eventually(lambda: count_rows(shared, tenant) == 4)
    assert shared.cli("dead-letters", "list", tenant.id, "--json").json == []
    eventually(lambda: shared.ready_messages(tenant.dead_letters) == 0)
    audit = eventually(lambda: (one := shared.cli("audit", tenant.id, "--json")).code == 0 and one)
    assert audit.json["tenants"][0]["dead_letters"]["replayed"] == 4


def test_a_replay_brings_back_every_property(shared: Program) -> None:
    tenant = shared.create()
    assert shared.call("POST", f"/tenants/{tenant.id}/pause").status_code == 200
    publish(tenant, b"body", user_id=tenant.user, **EVERYTHING)
    reject(tenant, tenant.queue, 1)
    eventually(lambda: shared.ready_messages(tenant.dead_letters) == 1)
    done = shared.cli("dead-letters", "replay", tenant.id, "--all", "--json")
    assert (done.code, done.json) == (0, {"replayed": 1})
    with pika.BlockingConnection(pika.URLParameters(tenant.amqp_url)) as connection:
        channel = connection.channel()
        _, properties, body = eventually(
            lambda: (got := channel.basic_get(tenant.queue))[0] is not None and got
        )
    assert body == b"body"
    headers = dict(properties.headers)
    headers.pop("x-delivery-count", None)  # the broker sets it for this delivery
    assert len(headers.pop("x-tenantry-replay")) == 36
    assert headers.pop("x-tenantry-replays") == 1
    assert headers.pop("x-tenantry-user-id") == tenant.user
    came = {name: value for name, value in vars(properties).items() if value is not None}
    assert came | {"headers": headers} == EVERYTHING | {"delivery_mode": 2}


def test_a_letter_is_known_by_the_queue_it_died_in_whatever_its_sender_claims(
    shared: Program,
) -> None:
    tenant = shared.create(topics=["events"], partitions=2)
    claims: list[dict[str, Any]] = [
        {"x-death": "0"},
        {"x-death": None, "x-first-death-queue": tenant.queue},
        {"x-first-death-queue": f"{tenant.stream}.events.0", "x-first-death-reason": "expired"},
    ]
    for number, headers in enumerate(claims):
        publish(tenant, b"{no", key="events.1", message_id=f"m-{number}", headers=headers)
    eventually(lambda: shared.ready_messages(tenant.dead_letters) == 3)
    before = listed(shared, tenant)
    replayed = shared.cli("dead-letters", "replay", tenant.id, "--all", "--json")
    assert (replayed.code, replayed.json) == (0, {"replayed": 3})
    eventually(lambda: shared.ready_messages(tenant.dead_letters) == 3)
    eventually(lambda: [one["replays"] for one in listed(shared, tenant)] == [1, 1, 1])
    again = listed(shared, tenant)
    for letters in (before, again):
        assert {one["id"] for one in letters} == {"m-0", "m-1", "m-2"}
    places = {(one["topic"], one["partition"], one["reason"]) for one in again}
    assert places == {("events", 1, "not_json")}
    found = shared.events("dead_letters.found")
    assert tenant.id not in {one["tenant"] for one in found}
