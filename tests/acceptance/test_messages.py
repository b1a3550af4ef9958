"""Messages are stored as published; those that can't be stored become dead letters, unchanged."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pika
import psycopg
from psycopg.rows import dict_row

from tests.acceptance.program import Program, Tenant
from tests.waiting import DEADLINE, eventually

PUBLISHED = datetime(2026, 1, 31, 12, 0, 7, tzinfo=UTC)


def publish(tenant: Tenant, messages: list[tuple[str, bytes, dict[str, Any]]]) -> None:
    """Publish as the tenant's own user; return once the broker has confirmed everything."""
    with pika.BlockingConnection(pika.URLParameters(tenant.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for routing_key, body, properties in messages:
            channel.basic_publish(
                tenant.stream,
                routing_key,
                body,
                pika.BasicProperties(delivery_mode=2, **properties),
                mandatory=True,
            )


def rows(program: Program, tenant: Tenant) -> dict[str, dict[str, Any]]:
    with (
        psycopg.connect(program.database_url) as connection,
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        cursor.execute("SELECT * FROM public.messages WHERE tenant_id = %s", [tenant.id])
        return {row["id"]: row for row in cursor}


def wait_rows(program: Program, tenant: Tenant, count: int) -> dict[str, dict[str, Any]]:
    def enough() -> dict[str, dict[str, Any]]:
        found = rows(program, tenant)
        return found if len(found) >= count else {}

    return eventually(enough, what=f"{count} rows")


def test_what_a_tenant_publishes_is_stored_with_every_property(shared: Program) -> None:
    tenant = shared.create(topics=["events"], partitions=2)
    document = {"text": "ä€\U0001f600", "number": 12345678901234567890, "deep": [{"a": None}]}
    bytes_ = bytes(range(256))
    publish(
        tenant,
        [
            (
                "default",
                json.dumps(document).encode(),
                {
                    "message_id": "json",
                    "content_type": "application/json",
                    "headers": {"tries": 3, "nested": {"list": ["a", True]}},
                    "timestamp": int(PUBLISHED.timestamp()),
                },
            ),
            ("events", bytes_, {"message_id": "bytes", "content_type": "application/x-thing"}),
            ("events.1", b'"just text"', {"message_id": "untyped"}),
            ("default", b"[]", {}),
        ],
    )
    found = wait_rows(shared, tenant, 4)
    first = found["json"]
    assert first["payload"] == document
    assert first["body"] is None
    assert first["content_type"] == "application/json"
    assert first["headers"] == {"tries": 3, "nested": {"list": ["a", True]}}
    assert first["published_at"] == PUBLISHED
    assert (first["topic"], first["partition"]) == ("default", 0)
    assert abs((datetime.now(UTC) - first["created_at"]).total_seconds()) < 600
    second = found["bytes"]
    assert (second["body"], second["payload"]) == (bytes_, None)
    assert second["content_type"] == "application/x-thing"
    assert second["published_at"] is None
    assert (second["topic"], second["partition"]) == ("events", 0)
    third = found["untyped"]
    assert (third["payload"], third["body"], third["content_type"]) == ("just text", None, None)
    assert (third["topic"], third["partition"]) == ("events", 1)
    (nameless,) = found.keys() - {"json", "bytes", "untyped"}
    assert nameless
    assert found[nameless]["payload"] == []
    assert len({row["position"] for row in found.values()}) == 4
    assert {row["tenant_id"] for row in found.values()} == {tenant.id}
    shown = shared.get(f"/messages?tenant_id={tenant.id}&topic=events")["data"]
    assert [one["id"] for one in shown] == sorted(
        ("bytes", "untyped"), key=lambda one: found[one]["position"]
    )


def test_the_same_id_is_stored_once_also_after_a_restart(running: Program) -> None:
    tenant = running.create()
    publish(tenant, [("default", b"1", {"message_id": "once"})] * 3)
    wait_rows(running, tenant, 1)
    assert running.stop() == 0
    running.start()
    publish(
        tenant,
        [("default", b"2", {"message_id": "once"}), ("default", b"3", {"message_id": "other"})],
    )
    found = wait_rows(running, tenant, 2)
    assert {one: row["payload"] for one, row in found.items()} == {"once": 1, "other": 3}
    eventually(lambda: running.runtime(tenant)["duplicates"] == 3, what="3 duplicates counted")


def test_what_is_no_json_is_dead_lettered_unchanged_and_its_neighbours_are_stored(
    shared: Program,
) -> None:
    tenant = shared.create()
    broken = b'{"never": "closed\xff'
    zero = b'{"nul": "\\u0000"}'
    publish(
        tenant,
        [
            ("default", b'"before"', {"message_id": "before"}),
            (
                "default",
                broken,
                {
                    "message_id": "broken",
                    "content_type": "application/json",
                    "headers": {"trace": "abc"},
                },
            ),
            ("default", zero, {"message_id": "nul", "content_type": "application/json"}),
            ("default", b'"after"', {"message_id": "after"}),
        ],
    )
    assert set(wait_rows(shared, tenant, 2)) == {"before", "after"}
    with shared.connect_admin() as connection:
        channel = connection.channel()

        def take() -> tuple[Any, Any, Any] | None:
            method, properties, body = channel.basic_get(tenant.dead_letters, auto_ack=True)
            return None if method is None else (method, properties, body)

        letters = {}
        for _ in range(2):
            method, properties, body = eventually(take, what="a dead letter")
            assert method.exchange == "dlx_exchange"
            letters[properties.message_id] = (properties, body)
    properties, body = letters["broken"]
    assert body == broken
    assert properties.content_type == "application/json"
    assert properties.headers["trace"] == "abc"
    assert properties.headers["x-death"][0]["queue"] == tenant.queue
    assert letters["nul"][1] == zero

    ended = shared.cli("events", tenant.id, "--json")
    assert ended.code == 0, ended.stderr
    recorded = [one for one in ended.json if one["type"] == "MessageDeadLettered"]
    assert {one["data"]["message_id"] for one in recorded} == {"broken", "nul"}
    for one in recorded:
        assert one["data"]["tenant_id"] == tenant.id
        assert one["data"]["reason"]
        assert one["data"]["error"]
        assert one["data"]["attempts"] == 1
    assert shared.runtime(tenant)["dead_lettered"] == 2


def test_the_api_publishes_and_pages_through_what_is_stored(shared: Program) -> None:
    tenant = shared.create(topics=["logs"], partitions=3)
    batch = [{"payload": {"n": n}, "topic": "logs", "id": f"m-{n}"} for n in range(25)]
    answer = shared.call("POST", f"/tenants/{tenant.id}/messages", batch)
    assert answer.status_code == 202, answer.text
    assert answer.json()["ids"] == [one["id"] for one in batch]
    wait_rows(shared, tenant, 25)
    seen: list[str] = []
    path = f"/messages?tenant_id={tenant.id}&limit=7"
    page = shared.get(path)
    while True:
        seen += [one["id"] for one in page["data"]]
        if page["next_cursor"] is None:
            break
        page = shared.get(f"{path}&cursor={page['next_cursor']}")
    assert sorted(seen) == sorted(one["id"] for one in batch)
    unknown = {"payload": 1, "topic": "none"}
    assert shared.call("POST", f"/tenants/{tenant.id}/messages", unknown).status_code == 404


EVENT = {"specversion": "1.0", "id": "7", "source": "/shop", "type": "order.created"}
BINARY = {f"cloudEvents:{name}": value for name, value in EVENT.items()}
STRUCTURED = "application/cloudevents+json"


def test_an_event_is_stored_once_however_it_comes_and_as_it_came(shared: Program) -> None:
    tenant = shared.create(topics=["events"])
    document = b' {"specversion":"1.0","id":"8","source":"/shop","type":"t","data":{"n":1.10}}'
    publish(
        tenant,
        [
            ("events.0", b'{"n": 1.10}', {"headers": BINARY, "content_type": "application/json"}),
            ("events.0", document, {"content_type": STRUCTURED}),
            ("events.0", document, {"content_type": STRUCTURED, "message_id": "own"}),
            ("events.0", b"{}", {"headers": BINARY | {"cloudEvents:time": "now"}}),
            ("events.0", b"[]", {"content_type": STRUCTURED, "message_id": "none"}),
        ],
    )
    port = shared.get("/info")["server"]["port"]
    over_http = {f"ce-{name}": value for name, value in EVENT.items()}
    with httpx.Client(timeout=DEADLINE, trust_env=False) as client:
        for content, headers in (
            (b'{"n": 1.10}', over_http | {"Content-Type": "application/json"}),
            (document, {"Content-Type": STRUCTURED}),
            (b"\xff", over_http | {"Content-Type": "image/png", "ce-id": "9"}),
        ):
            answer = client.post(
                f"http://127.0.0.1:{port}/tenants/{tenant.id}/messages?topic=events",
                content=content, headers=headers,
            )  # fmt: skip
            assert answer.status_code == 202, answer.text
        refused = client.post(
            f"http://127.0.0.1:{port}/tenants/{tenant.id}/messages",
            content=b"1", headers={"ce-type": "t"},
        )  # fmt: skip
        assert refused.json()["errors"] == [{"field": "specversion", "problem": "is required"}]
    found = wait_rows(shared, tenant, 4)
    assert found.keys() == {"/shop 7", "/shop 8", "own", "/shop 9"}
    binary, structured, picture = (found[f"/shop {number}"] for number in (7, 8, 9))
    assert (binary["payload"], binary["headers"]) == ({"n": 1.1}, BINARY)
    assert (structured["body"], structured["content_type"]) == (document, STRUCTURED)
    assert structured["headers"] == BINARY | {"cloudEvents:id": "8", "cloudEvents:type": "t"}
    assert (picture["body"], picture["content_type"]) == (b"\xff", "image/png")
    shown = shared.cli("messages", tenant.id, "--id", "/shop 7", "--json").json
    assert shown["headers"]["cloudEvents:type"] == "order.created"
    letters = f"/tenants/{tenant.id}/dead-letters?payload=false"
    eventually(lambda: shared.runtime(tenant)["duplicates"] == 2)
    dead = shared.get(letters)["data"]
    assert {one["reason"] for one in dead} == {"invalid_cloudevent"}
    assert {one["first_error"] for one in dead} == {
        "time: is no time by RFC 3339",
        "an event is a JSON object",
    }


def test_what_asyncapi_says_of_a_tenant_is_on_the_broker(shared: Program) -> None:
    tenant = shared.create(topics=["events", {"name": "orders", "partitions": 3}])
    told = shared.cli("tenant", "asyncapi", tenant.id).json
    broker = told["servers"]["broker"]
    url = pika.URLParameters(tenant.amqp_url)
    assert broker["host"] == f"{url.host}:{url.port}"
    with shared.connect_admin() as connection:
        channel = connection.channel()
        named = []
        for one in told["channels"].values():
            binding = one.get("bindings", {}).get("amqp", {})
            if "exchange" in binding:
                exchange = binding["exchange"]
                assert exchange["vhost"] == url.virtual_host
                channel.exchange_declare(
                    exchange["name"], exchange["type"], durable=exchange["durable"],
                    auto_delete=exchange["autoDelete"], passive=True,
                )  # fmt: skip
                key = one["address"].replace("{partition}", "0")
                publish(tenant, [(key, b"1", {})])  # mandatory, so this fails if it is unroutable
            elif "queue" in binding:
                channel.queue_declare(binding["queue"]["name"], durable=True, passive=True)
                named.append(binding["queue"]["name"])
    assert len(named) == 1 + 1 + 3
    wait_rows(shared, tenant, 3)
    assert tenant.password not in json.dumps(told)
