"""What a tenant publishes is stored as it is; what can't be stored is set aside as it was."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pika
import psycopg
from psycopg.rows import dict_row

from tests.acceptance.program import Program, Tenant
from tests.waiting import eventually

PUBLISHED = datetime(2026, 1, 31, 12, 0, 7, tzinfo=UTC)


def publish(tenant: Tenant, messages: list[tuple[str, bytes, dict[str, Any]]]) -> None:
    """Publish as the tenant's own user; returns once the broker has confirmed everything."""
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
