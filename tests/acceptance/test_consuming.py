"""`tenantry consume` beside producer and daemon, as a newcomer runs it; and consumer access."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pika
import psycopg
import pytest
from pika.exceptions import AMQPConnectionError

from tests.acceptance.program import Program, Tenant
from tests.acceptance.test_metrics import publish
from tests.acceptance.test_producing import settled
from tests.waiting import DEADLINE, eventually

SMALL = ("--tenants", "2", "--partitions", "2")
SENDING = (*SMALL, "--producers", "1", "--message-batches-limit", "2")
UNPROVEN = "--no-ensure-access"
"""The proof takes longer than all else, and another test is about it."""


@pytest.fixture
def both(running: Program) -> Iterator[Program]:
    """A daemon whose tenants 1 and 2 are deleted at the end: other tests use these names, too."""
    yield running
    for tenant_id in ("1", "2"):
        running.call("DELETE", f"/tenants/{tenant_id}")


def received(program: Program, *arguments: str) -> int:
    ended = program.cli("consume", *SMALL, "--json", *arguments)
    assert ended.code == 0, ended.stderr
    assert ended.json["failed"] == 0
    assert ended.json["isolated"] in {True, None}
    count: int = ended.json["received"]
    return count


def test_what_is_published_is_stored_by_the_daemon_and_read_by_its_tenants(both: Program) -> None:
    assert received(both) == 0
    assert both.cli("produce", *SENDING).code == 0
    ended = both.cli("consume", *SMALL)
    assert ended.code == 0, ended.stderr
    lines = ended.stdout.splitlines()
    for tenant, other in (("1", "2"), ("2", "1")):
        user, stream = f"tenant_{tenant}_consumer", f"tenant_{tenant}_stream"
        found = f"Found user: {user} with ID: {tenant}, with permissions for stream: {stream}"
        assert found in lines
        assert f"Ensured access to stream: tenant_{tenant}_stream" in lines
        assert f"Ensured no access to stream: tenant_{other}_stream" in lines
        for topic in ("events", "logs", "notifications"):
            line = (
                f"Received: 10 message(s) by tenant: {tenant}, consumer: 1,"
                f" from: tenant_{tenant}_stream -> {topic}"
            )
            assert lines.count(line) == 2
        eventually(lambda one=tenant: settled(both, one) == 60, what="60 messages")
    assert lines[-1] == "Total: received: 120, failed: 0"
    assert received(both, UNPROVEN) == 0
    bad = both.cli("consume", CONSUMERS_COUNT="none")
    assert bad.code == 2
    assert "CONSUMERS_COUNT" in bad.stderr.splitlines()[-1]
    many = both.cli("consume", "--follow", TENANTS_COUNT="50")
    assert many.code == 2
    assert "TENANTS_COUNT" in many.stderr


def test_a_signal_ends_it_with_what_is_handled_committed(both: Program, tmp_path: Path) -> None:
    assert received(both, UNPROVEN) == 0
    for number in (signal.SIGINT, signal.SIGTERM):
        out = tmp_path / number.name
        with both.beside("consume", *SMALL, UNPROVEN, "--follow", out=out) as follower:
            eventually(lambda out=out: "--- Starting" in out.read_text())
            assert both.cli("produce", *SENDING, UNPROVEN).code == 0
            eventually(lambda out=out: out.read_text().count("Received: ") > 3)
            follower.send_signal(number)
            assert follower.wait(DEADLINE) == 0
        *_, total = out.read_text().splitlines()
        before = int(total.removeprefix("Total: received: ").removesuffix(", failed: 0"))
        assert 0 < before <= 120
        assert before + received(both, UNPROVEN) == 120


def test_runs_with_the_same_credentials_share_what_comes_and_one_has_the_others_part(
    both: Program, tmp_path: Path
) -> None:
    tenant = both.create(topics=["events", "logs", "notifications"])
    sending = file_of(tmp_path, "sending", {tenant.id: tenant.shown["credentials"]})
    alone = both.cli("consume", "--credentials", sending)
    assert alone.code == 1
    assert f"tenantry tenant consumer-access {tenant.id}" in alone.stderr
    answer = both.call("POST", f"/tenants/{tenant.id}/consumer-access")
    assert answer.status_code == 200
    reading = file_of(tmp_path, "reading", {tenant.id: answer.json()["credentials"]})
    consume = ("consume", "--credentials", reading, "--follow", "--messages-per-batch", "1")
    produce = (
        "produce", "--credentials", sending, "--producers", "1", "--messages-per-batch", "30",
        "--message-batches-limit", "1", "--json", UNPROVEN,
    )  # fmt: skip
    one, other = tmp_path / "one", tmp_path / "other"
    sent = 0

    def told(out: Path) -> int:
        return out.read_text().count("Received: 1 message(s)")

    def both_have_some() -> bool:
        # The consumer that starts late gets none of the first messages.
        nonlocal sent
        sent += both.cli(*produce).json["confirmed"]
        eventually(lambda: told(one) + told(other) == sent, what="each is told by one of them")
        return bool(told(one) and told(other))

    with both.beside(*consume, out=one) as first, both.beside(*consume, out=other) as second:
        eventually(lambda: all("--- Starting" in out.read_text() for out in (one, other)))
        eventually(both_have_some, what="both have some")
        first.kill()
        sent += both.cli(*produce).json["confirmed"]
        eventually(lambda: told(one) + told(other) >= sent, what="the other has all")
        second.send_signal(signal.SIGTERM)
        assert second.wait(DEADLINE) == 0
    lacking = both.cli("produce", "--credentials", reading, "--tenants", "2")
    assert lacking.code == 2
    assert "--tenants" in lacking.stderr


def file_of(directory: Path, name: str, credentials: Mapping[str, Any]) -> str:
    file = directory / name
    file.write_text(json.dumps(credentials))
    return str(file)


def granted(program: Program, tenant: Tenant) -> str:
    answer = program.call("POST", f"/tenants/{tenant.id}/consumer-access")
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert shown["consumer_access"] is True
    assert shown["credentials"]["username"] == f"tenant_{tenant.id}_consumer"
    url: str = shown["credentials"]["amqp_url"]
    return url


def lets_in(url: str) -> bool:
    try:
        pika.BlockingConnection(pika.URLParameters(url)).close()
    except AMQPConnectionError:
        return False
    return True


def group(tenant: Tenant, topic: str) -> str:
    return f"tenant_{tenant.id}_consumer.{topic}"


def there(program: Program, queue: str) -> bool:
    path = f"/queues/{program.host.vhost}/{queue}"
    return program.management.get(path).status_code == 200


def test_access_is_granted_renewed_repaired_revoked_and_gone_with_its_tenant(
    program: Program,
) -> None:
    program.start(TENANTRY_RECONCILE_EVERY_SECONDS="1")
    tenant = program.create(topics=["events"])
    first = granted(program, tenant)
    publish(tenant, "1", "2")
    eventually(lambda: program.ready_messages(group(tenant, "default")) == 2)
    eventually(lambda: program.runtime(tenant)["stored"] == 2)
    # Messages that wait for the tenant's own consumers count neither as backlog nor as missing.
    eventually(lambda: program.get(f"/tenants/{tenant.id}")["messages_pending"] == 0)
    assert program.cli("audit", tenant.id).code == 0

    renewed = program.cli("tenant", "consumer-access", tenant.id)
    assert renewed.code == 0
    assert "The password is shown this once" in renewed.stderr
    assert not lets_in(first)
    second = granted(program, tenant)
    assert lets_in(second)

    program.management.delete(f"/users/tenant_{tenant.id}_consumer").raise_for_status()
    eventually(lambda: lets_in(second))
    with program.connect_admin() as connection:
        connection.channel().queue_delete(group(tenant, "events"))
    eventually(lambda: there(program, group(tenant, "events")))

    assert program.cli("tenant", "consumer-access", tenant.id, "--revoke").code == 0
    assert not lets_in(second)
    assert not there(program, group(tenant, "events"))
    assert program.get(f"/tenants/{tenant.id}")["consumer_access"] is False

    third = granted(program, tenant)
    assert program.call("DELETE", f"/tenants/{tenant.id}").status_code == 204
    assert not lets_in(third)
    assert not there(program, group(tenant, "default"))
    body = {"name": "again", "id": tenant.id}
    assert program.call("POST", "/tenants", body).status_code == 201
    assert program.get(f"/tenants/{tenant.id}")["consumer_access"] is False
    assert not lets_in(third)

    types = [one["type"] for one in program.get("/events?limit=500")["data"]]
    assert types.count("ConsumerAccessGranted") == 4
    assert types.count("ConsumerAccessRevoked") == 1
    with psycopg.connect(program.database_url) as connection:
        kept = connection.execute(
            "SELECT (SELECT string_agg(data::text, '') FROM tenantry.events),"
            " (SELECT string_agg(c::text, '') FROM tenantry.consumer_credentials AS c)"
        ).fetchone()
    for url in (first, second, third):
        password = url.split(":")[2].split("@")[0]
        assert password not in program.stderr
        assert password not in str(kept)
    assert kept is not None
    assert kept[1] is None, "the deleted tenant's hash is gone"
