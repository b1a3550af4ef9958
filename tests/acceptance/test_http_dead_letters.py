"""Dead letters of a running daemon: listed, replayed, discarded; a death in the middle."""

from __future__ import annotations

import base64
from typing import Any

import pika
import psycopg

from tests.acceptance.program import Program, Tenant, in_background
from tests.waiting import DEADLINE, eventually


def publish(tenant: Tenant, *bodies: bytes, key: str = "default") -> None:
    """Publish as the tenant's own user, with confirms."""
    with pika.BlockingConnection(pika.URLParameters(tenant.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for number, body in enumerate(bodies):
            properties = pika.BasicProperties(
                message_id=f"m-{number}", content_type="application/json", delivery_mode=2
            )
            channel.basic_publish(tenant.stream, key, body, properties, mandatory=True)


def reject(tenant: Tenant, queue: str, count: int) -> None:
    """Reject messages as the tenant's own user, which may read its queues."""
    with pika.BlockingConnection(pika.URLParameters(tenant.amqp_url)) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=count)
        messages = channel.consume(queue, inactivity_timeout=DEADLINE)
        for _, (method, _, _) in zip(range(count), messages, strict=False):
            assert method is not None, f"no {count} messages in {queue}"
            channel.basic_reject(method.delivery_tag, requeue=False)
        channel.cancel()


def listed(program: Program, tenant: Tenant) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = program.get(f"/tenants/{tenant.id}/dead-letters")["data"]
    return data


def count_rows(program: Program, tenant: Tenant) -> int:
    with psycopg.connect(program.database_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM public.messages WHERE tenant_id = %s", [tenant.id]
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_what_can_not_be_stored_is_listed_and_comes_back_when_it_is_replayed_in_vain(
    shared: Program,
) -> None:
    tenant = shared.create(topics=["logs"], partitions=2)
    publish(tenant, b"not json", b"{}", key="logs.1")
    (letter,) = eventually(lambda: listed(shared, tenant))
    assert (letter["id"], letter["topic"], letter["partition"]) == ("m-0", "logs", 1)
    assert base64.b64decode(letter["body"]) == b"not json"
    assert (letter["reason"], letter["attempts"]) == ("not_json", 1)
    eventually(lambda: shared.ready_messages(tenant.dead_letters) == 1)

    path = f"/tenants/{tenant.id}/dead-letters"
    answer = shared.call("POST", f"{path}/replay", {"all": True})
    assert (answer.status_code, answer.json()) == (202, {"replayed": 1})
    (again,) = eventually(lambda: [one for one in listed(shared, tenant) if one["replays"] == 1])
    assert again["letter_id"] == letter["letter_id"]
    assert again["body"] == letter["body"]
    assert again["headers"] == {
        "x-tenantry-replay": letter["letter_id"],
        "x-tenantry-replays": 1,
    }
    eventually(lambda: shared.ready_messages(tenant.dead_letters) == 1)
    assert len(listed(shared, tenant)) == 1

    answer = shared.call("DELETE", path, {"ids": ["m-0"]})
    assert (answer.status_code, answer.json()) == (200, {"discarded": 1})
    assert listed(shared, tenant) == []
    eventually(lambda: shared.ready_messages(tenant.dead_letters) == 0)
    kinds = [one["type"] for one in shared.get(f"/tenants/{tenant.id}/events")["data"]]
    # A worker may record the second death before the replay records its own event.
    assert sorted(kinds[3:5]) == ["DeadLettersReplayed", "MessageDeadLettered"]
    assert [kinds[2], *kinds[5:]] == ["MessageDeadLettered", "DeadLettersDiscarded"]
    assert count_rows(shared, tenant) == 1


def test_good_messages_that_were_rejected_are_stored_by_a_replay(shared: Program) -> None:
    tenant = shared.create()
    assert shared.call("POST", f"/tenants/{tenant.id}/pause").status_code == 200
    publish(tenant, *[b'{"n": %d}' % number for number in range(300)])
    reject(tenant, tenant.queue, 300)
    eventually(lambda: shared.ready_messages(tenant.dead_letters) == 300)
    assert shared.call("POST", f"/tenants/{tenant.id}/resume").status_code == 200
    answer = shared.call("POST", f"/tenants/{tenant.id}/dead-letters/replay", {"all": True})
    assert answer.json() == {"replayed": 300}
    eventually(lambda: count_rows(shared, tenant) == 300)
    assert listed(shared, tenant) == []
    eventually(lambda: shared.ready_messages(tenant.dead_letters) == 0)


def test_a_daemon_that_dies_during_a_replay_loses_nothing_and_stores_nothing_twice(
    running: Program,
) -> None:
    tenant = running.create()
    assert running.call("POST", f"/tenants/{tenant.id}/pause").status_code == 200
    publish(tenant, *[b'{"n": %d}' % number for number in range(1500)])
    reject(tenant, tenant.queue, 1500)
    assert running.call("POST", f"/tenants/{tenant.id}/resume").status_code == 200

    def replay() -> None:
        try:
            running.call("POST", f"/tenants/{tenant.id}/dead-letters/replay", {"all": True})
        except Exception:  # noqa: BLE001 - the daemon is killed meanwhile
            return

    # The daemon dies before its second commit, and one batch does not hold all messages.
    assert running.stop() == 0
    running.start(TENANTRY_FAILPOINTS="before_commit:kill@2")
    with in_background(replay):
        assert running.wait() == -9
    assert count_rows(running, tenant) < 1500
    running.start()

    def replayed_to_the_end() -> bool:
        answer = running.call("POST", f"/tenants/{tenant.id}/dead-letters/replay", {"all": True})
        return answer.status_code == 202

    eventually(replayed_to_the_end)
    eventually(lambda: count_rows(running, tenant) == 1500)
    assert listed(running, tenant) == []
    eventually(lambda: running.ready_messages(tenant.dead_letters) == 0)


def test_a_deleted_tenants_dead_letters_go_with_it(shared: Program) -> None:
    for query in ("", "?retain=true"):
        tenant = shared.create()
        publish(tenant, b"not json")
        eventually(lambda tenant=tenant: listed(shared, tenant))  # type: ignore[misc]
        assert shared.call("DELETE", f"/tenants/{tenant.id}{query}").status_code == 204
        path = f"/tenants/{tenant.id}/dead-letters"
        assert shared.call("GET", path).status_code == 404
        assert shared.call("DELETE", path, {"all": True}).status_code == 404
        with psycopg.connect(shared.database_url) as connection:
            row = connection.execute(
                "SELECT count(*) FROM tenantry.dead_letters WHERE tenant_id LIKE %s",
                [f"%{tenant.id}%"],
            ).fetchone()
        assert row == (0,)
