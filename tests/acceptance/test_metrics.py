"""The metrics of the running program, compared with its real state."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import pika

from tests.acceptance.program import Program, Tenant
from tests.ledger import Ledger
from tests.scrapes import Scrape, read, read_openmetrics
from tests.waiting import DEADLINE, eventually

SECRET = "a secret that is long enough to sign tokens with"


def scrape(program: Program) -> Scrape:
    answer = program.call("GET", "/metrics")
    assert answer.status_code == 200, answer.text
    return read(answer.text)


def pending(program: Program, tenant: Tenant) -> float | None:
    return scrape(program).value("queue_messages_pending", tenant_id=tenant.id)


def becomes(look: Callable[[], object], expected: object) -> None:
    seen: list[object] = [None]

    def so() -> bool:
        seen[0] = look()
        return seen[0] == expected

    try:
        eventually(so)
    except AssertionError:
        raise AssertionError(f"{seen[0]!r} and not {expected!r} ") from None


def publish(
    tenant: Tenant, *ids: str, body: bytes = b"{}", content_type: str = "application/json"
) -> None:
    """Publish as the tenant's own user, with confirms and the present time."""
    with pika.BlockingConnection(pika.URLParameters(tenant.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for one in ids:
            channel.basic_publish(
                tenant.stream,
                "default",
                body,
                pika.BasicProperties(
                    delivery_mode=2,
                    message_id=one,
                    content_type=content_type,
                    headers={"timestamp_in_ms": time.time_ns() // 1_000_000},
                ),
                mandatory=True,
            )


def test_gauges_are_true_from_creation_through_resize_pause_and_restart_to_deletion(
    running: Program,
) -> None:
    tenant = running.create(workers=3)
    other = running.create("other")
    first = scrape(running)
    assert first.value("tenant_workers_current", tenant_id=tenant.id) == 3
    assert first.processed(tenant.id) == (0, 0, 0)
    assert first.labels("tenant_id") == {"", tenant.id, other.id}
    assert running.get("/info")["metrics"] == {"port": None}  # the default

    path = f"/tenants/{tenant.id}"
    assert running.call("PUT", f"{path}/config/concurrency", {"workers": 9}).status_code == 200
    assert scrape(running).value("tenant_workers_current", tenant_id=tenant.id) == 9

    assert running.call("POST", f"{path}/pause").status_code == 200
    assert scrape(running).value("tenant_workers_current", tenant_id=tenant.id) == 0
    publish(tenant, *(str(number) for number in range(7)))
    becomes(lambda: pending(running, tenant), 7)
    assert pending(running, other) == 0

    assert running.stop() == 0
    running.start()
    after = scrape(running)
    assert after.value("tenantry_consuming", tenant_id=tenant.id) == 0
    assert after.value("tenantry_consuming", tenant_id=other.id) == 1
    becomes(lambda: pending(running, tenant), 7)

    assert running.call("POST", f"{path}/resume").status_code == 200
    becomes(lambda: scrape(running).processed(tenant.id), (7, 0, 0))
    assert scrape(running).value("tenant_workers_current", tenant_id=tenant.id) == 9
    becomes(lambda: pending(running, tenant), 0)

    assert running.call("DELETE", path).status_code == 204
    assert scrape(running).labels("tenant_id") == {"", other.id}


def test_stored_messages_duplicates_and_dead_letters_are_counted_across_restarts(
    running: Program,
) -> None:
    tenant = running.create()
    publish(tenant, "1", "2", "3", "4")
    publish(tenant, "3", "4")
    publish(tenant, "bad", body=b"not JSON")
    becomes(lambda: scrape(running).processed(tenant.id), (4, 2, 1))
    found = scrape(running)
    count = found.value("tenantry_message_latency_seconds_count", tenant_id=tenant.id)
    assert count == 7
    total = found.value("tenantry_message_latency_seconds_sum", tenant_id=tenant.id)
    assert total is not None
    assert 0 <= total < 7 * 10
    assert found.value("tenantry_batch_messages_sum") == 7

    assert running.call("POST", f"/tenants/{tenant.id}/pause").status_code == 200
    assert running.stop() == 0
    running.start()
    # Paused or not, the counters never decrease.
    seen = {scrape(running).processed(tenant.id)}
    assert running.call("POST", f"/tenants/{tenant.id}/resume").status_code == 200
    seen.add(scrape(running).processed(tenant.id))
    assert seen == {(4, 2, 1)}
    publish(tenant, "5")
    becomes(lambda: scrape(running).processed(tenant.id), (5, 2, 1))


def test_counters_agree_with_what_was_confirmed_and_a_lost_connection_shows(
    running: Program, ledger: Ledger
) -> None:
    tenant = running.create()
    with ledger.publishing([(tenant.id, tenant.amqp_url)], rate=1000):
        ledger.wait_confirmed()
        before = scrape(running)
        assert before.value("tenantry_broker_reconnects_total", connection="consuming") == 0
        names = eventually(running.daemon_connections)
        for name in names:
            running.management.delete(f"/connections/{name}")
        eventually(
            lambda: scrape(running).value(
                "tenantry_broker_reconnects_total", connection="consuming"
            ),
            what="the reconnect is counted",
        )
        ledger.wait_confirmed()
    ledger.check(alive=running.check_running)

    def all_counted() -> bool:
        stored, _, dead = scrape(running).processed(tenant.id)
        assert stored is not None
        assert stored <= ledger.confirmed
        return stored == ledger.confirmed and dead == 0

    eventually(all_counted)
    becomes(lambda: pending(running, tenant), 0)
    assert scrape(running).value("tenantry_unsettled", tenant_id=tenant.id) == 0


def test_a_port_of_their_own_needs_no_token(program: Program) -> None:
    program.start(TENANTRY_METRICS_PORT="0", TENANTRY_JWT_SECRET=SECRET)
    tenant = program.create()
    info = program.get("/info")
    server = f"http://127.0.0.1:{info['server']['port']}/metrics"
    alone = f"http://127.0.0.1:{info['metrics']['port']}/metrics"
    accept = {"Accept": "application/openmetrics-text"}
    with httpx.Client(timeout=DEADLINE, trust_env=False) as client:
        assert client.get(server).status_code == 401
        answer = client.get(alone)
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert read(answer.text).value("tenant_workers_current", tenant_id=tenant.id) == 3
        strict = client.get(alone, headers=accept)
        assert strict.headers["content-type"].startswith("application/openmetrics-text")
        assert read_openmetrics(strict.text).processed(tenant.id) == (0, 0, 0)
        assert client.get(alone.replace("/metrics", "/tenants")).status_code == 404
        token = program.cli("token", "--admin", TENANTRY_JWT_SECRET=SECRET).stdout.strip()
        admin = {"Authorization": f"Bearer {token}"}
        assert read(client.get(server, headers=admin).text).value("tenantry_ready") == 1
    assert program.stop() == 0
