"""The multi-tenant consumer on Apache Iggy, and what its users can do to the daemon's work."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import apache_iggy as iggy
import psycopg
import pytest

from tenantry.broker.iggy import wire
from tenantry.broker.iggy.client import Access, RefusedError, Session
from tenantry.broker.iggy.topology import GROUP, Place
from tenantry.broker.port import BrokerError
from tests.acceptance.program import Program
from tests.iggy_server import PrivateIggy
from tests.services_iggy import own_server
from tests.waiting import DEADLINE, eventually

SMALL = ("--tenants", "2", "--partitions", "2")
SENDING = (*SMALL, "--producers", "1", "--message-batches-limit", "2", "--interval", "0s")


@pytest.fixture
def server() -> Iterator[PrivateIggy]:
    """A server of the test's own: the consumer's tenants have the same ids in each run."""
    with own_server() as made:
        yield made


@pytest.fixture
def program(server: PrivateIggy, database_url: str) -> Iterator[Program]:
    with Program(None, database_url) as made:
        made.settings = {"BROKER_URL": server.url, "TENANTRY_RECONCILE_EVERY_SECONDS": "1"}
        yield made.start()
        made.check_no_traceback()


def stored(program: Program) -> int:
    with psycopg.connect(program.database_url) as connection:
        row = connection.execute("SELECT count(*) FROM messages").fetchone()
    return 0 if row is None else int(row[0])


def received(program: Program, *arguments: str) -> int:
    ended = program.cli("consume", *SMALL, "--json", *arguments)
    assert ended.code == 0, (ended.stdout, ended.stderr)
    assert ended.json["failed"] == 0
    count: int = ended.json["received"]
    return count


def lets_in(url: str) -> bool:
    try:
        Session(Access.of(url)).close()
    except BrokerError:
        return False
    return True


def test_tenants_read_from_stored_offsets_what_the_daemon_stores_too(
    program: Program, server: PrivateIggy
) -> None:
    assert program.cli("produce", *SENDING).code == 0
    ended = program.cli("consume", *SMALL, "--consumers", "2", "--iggy-address", server.address)
    assert ended.code == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[:13] == [
        "--- Multi-tenant consumer has started, tenants: 2, consumers: 2, partitions: 2 ---",
        "--- Creating root client to manage streams and users ---",
        "--- Creating streams and users with permissions for each tenant ---",
        "Found stream: tenant_1_stream with ID: 1",
        "Created user: tenant_1_consumer with ID: 1, with permissions for stream: tenant_1_stream",
        "Found stream: tenant_2_stream with ID: 2",
        "Created user: tenant_2_consumer with ID: 2, with permissions for stream: tenant_2_stream",
        "--- Creating clients for each tenant ---",
        "--- Ensuring access to streams for each tenant ---",
        "Ensured access to stream: tenant_1_stream",
        "Ensured no access to stream: tenant_2_stream",
        "Ensured access to stream: tenant_2_stream",
        "Ensured no access to stream: tenant_1_stream",
    ]
    assert lines[-1] == "Total: received: 120, failed: 0"
    assert received(program) == 0, "it goes on from the stored offsets"
    assert program.cli("produce", *SENDING, "--no-ensure-access").code == 0
    assert received(program, "--no-ensure-access", "--messages-per-batch", "3") == 120
    eventually(lambda: stored(program) == 240, what="240 rows")
    assert program.cli("audit").code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_what_is_handled_committed(
    program: Program, tmp_path: Path, number: int
) -> None:
    assert received(program) == 0
    out = tmp_path / "out"
    with program.beside("consume", *SMALL, "--follow", out=out) as follower:
        eventually(lambda: "--- Starting" in out.read_text())
        assert program.cli("produce", *SENDING, "--no-ensure-access").code == 0
        eventually(lambda: out.read_text().count("Received: ") > 3)
        follower.send_signal(number)
        assert follower.wait(DEADLINE) == 0
    *_, total = out.read_text().splitlines()
    before = int(total.removeprefix("Total: received: ").removesuffix(", failed: 0"))
    assert 0 < before <= 120
    assert before + received(program) == 120


def test_access_is_granted_renewed_repaired_and_revoked(
    program: Program, server: PrivateIggy
) -> None:
    tenant = program.create(topics=["events"])
    path = f"/tenants/{tenant.id}/consumer-access"

    def granted() -> str:
        answer = program.call("POST", path)
        assert answer.status_code == 200, answer.text
        url: str = answer.json()["credentials"]["iggy_url"]
        return url

    first = granted()
    assert lets_in(first)
    second = granted()
    assert not lets_in(first)
    assert lets_in(second)
    root = Session(Access.of(server.url))
    user = f"tenant_{tenant.id}_consumer"
    with psycopg.connect(program.database_url) as connection:
        assert not repairs(program, tenant.id), "nothing of that is drift"
        kept = connection.execute("SELECT * FROM tenantry.consumer_credentials").fetchall()
    assert second.split(":")[2].split("@")[0] not in str(kept)
    root.call(lambda client: client.update_permissions(user, None))
    eventually(lambda: repairs(program, tenant.id))
    assert lets_in(second)
    assert program.call("DELETE", path).status_code == 204
    assert not lets_in(second)
    third = granted()
    assert lets_in(third)
    assert program.call("DELETE", f"/tenants/{tenant.id}").status_code == 204
    assert not lets_in(third)
    users = root.call(lambda client: client.get_users())
    assert not [one.username for one in users if tenant.id in one.username]
    root.close()


def repairs(program: Program, tenant_id: str) -> list[object]:
    listed = program.get(f"/tenants/{tenant_id}/events?limit=500")["data"]
    return [one["data"] for one in listed if one["type"] == "DriftRepaired"]


def test_a_holder_of_a_consumers_credentials_costs_the_daemon_no_message(program: Program) -> None:
    tenant, other = program.create(topics=["events"]), program.create("other", topics=["events"])
    answer = program.call("POST", f"/tenants/{tenant.id}/consumer-access")
    holder = Session(Access.of(answer.json()["credentials"]["iggy_url"]))
    stream, topic = tenant.stream, "default"
    publish = f"/tenants/{tenant.id}/messages"
    assert program.call("POST", publish, {"payload": 1, "id": "first"}).status_code == 202
    eventually(lambda: program.runtime(tenant)["stored"] == 1)

    refused = (
        lambda client: client.join_consumer_group(stream, topic, GROUP),
        lambda client: client.get_consumer_group(stream, topic, GROUP),
        lambda client: client.delete_consumer_group(stream, topic, GROUP),
        lambda client: client.create_consumer_group(stream, topic, "mine"),
        lambda client: client.send_messages(stream, topic, 0, [iggy.SendMessage(b"1")]),
        lambda client: client.purge_topic(stream, topic),
        lambda client: client.delete_topic(stream, topic),
        lambda client: client.delete_stream(stream),
        lambda client: client.get_users(),
        lambda client: client.get_streams(),
        lambda client: client.update_permissions(f"tenant_{tenant.id}_consumer", None),
        lambda client: client.join_consumer_group(other.stream, topic, GROUP),
        lambda client: client.send_messages(other.stream, topic, 0, [iggy.SendMessage(b"1")]),
    )
    for ask in refused:
        with pytest.raises(RefusedError):
            holder.call(ask)

    place = Place(stream, topic, 0)

    def store(*, alone: bool) -> None:
        request = wire.store_offset(GROUP, place, 0, alone=alone)
        holder.call(lambda client: client.send_binary_request(wire.STORE_OFFSET, request))

    # While the tenant is paused the daemon stores no offset: one that its user could store too
    # far ahead would skip messages.
    assert program.call("POST", f"/tenants/{tenant.id}/pause").status_code == 200
    for number in range(20):
        body = {"payload": number, "id": f"later-{number}"}
        assert program.call("POST", publish, body).status_code == 202
    last = wire.store_offset(GROUP, place, 20, alone=True)
    holder.call(lambda client: client.send_binary_request(wire.STORE_OFFSET, last))
    with pytest.raises(BrokerError):
        store(alone=False)
    program.kill()
    program.start()
    assert program.call("POST", f"/tenants/{tenant.id}/resume").status_code == 200
    eventually(lambda: program.runtime(tenant)["stored"] == 21, what="all that was published")
    assert program.cli("audit", tenant.id).code == 0
    holder.close()
