"""The multi-tenant producer and the proof of isolation on Apache Iggy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest

from tests.acceptance.program import Program
from tests.iggy_server import PrivateIggy
from tests.services_iggy import own_server
from tests.waiting import DEADLINE, eventually

QUICK = ("--tenants", "2", "--message-batches-limit", "2", "--interval", "0s")


@pytest.fixture
def server() -> Iterator[PrivateIggy]:
    """A server of the test's own: the producer's tenants have the same ids in each run."""
    with own_server() as made:
        yield made


@pytest.fixture
def program(server: PrivateIggy, database_url: str) -> Iterator[Program]:
    with Program(None, database_url) as made:
        made.settings = {"BROKER_URL": server.url}
        yield made.start()
        made.check_no_traceback()


def stored(program: Program) -> Counter[tuple[str, str, int]]:
    """Count rows by tenant, topic and partition."""
    with psycopg.connect(program.database_url) as connection:
        rows = connection.execute("SELECT tenant_id, topic, partition FROM messages").fetchall()
    return Counter(rows)


def test_what_tenants_produce_is_stored_once_and_spread_evenly(
    program: Program, server: PrivateIggy
) -> None:
    first = program.cli("produce", *QUICK, "--producers", "3")
    assert first.code == 0, first.stderr
    lines = first.stdout.splitlines()
    assert lines[:12] == [
        "--- Multi-tenant producer has started, tenants: 2, producers: 3, partitions: 3 ---",
        "--- Creating root client to manage streams and users ---",
        "--- Creating streams and users with permissions for each tenant ---",
        "Created stream: tenant_1_stream with ID: 1",
        "Created user: tenant_1_producer with ID: 1, with permissions for stream: tenant_1_stream",
        "Created stream: tenant_2_stream with ID: 2",
        "Created user: tenant_2_producer with ID: 2, with permissions for stream: tenant_2_stream",
        "--- Creating clients for each tenant ---",
        "--- Ensuring access to streams for each tenant ---",
        "Ensured access to stream: tenant_1_stream",
        "Ensured no access to stream: tenant_2_stream",
        "Ensured access to stream: tenant_2_stream",
    ]
    sent = "Sent: 10 message(s) by tenant: 1, producer: 1, to: tenant_1_stream -> events"
    assert lines.count(sent) == 2
    assert lines[-1] == "Total: sent: 360, confirmed: 360, failed: 0"
    again = ("--iggy-address", server.address, "--messages-per-batch", "1500", "--producers", "1")
    second = program.cli("produce", *QUICK, "--no-ensure-access", *again, "--json")
    assert second.code == 0, second.stderr
    assert second.json["confirmed"] == 18_000
    found = eventually(
        lambda: count if sum((count := stored(program)).values()) == 18_360 else None,
        what="all is stored",
    )
    assert set(found.values()) == {20 + 1000}
    assert len(found) == 2 * 3 * 3
    with psycopg.connect(program.database_url) as connection:
        row = connection.execute(
            "SELECT id, body, content_type, headers FROM messages"
            " WHERE body = 'event-1-1' ORDER BY position LIMIT 1"
        ).fetchone()
    assert row is not None
    assert row[0].endswith("-event-1-1")
    assert (row[1], row[2]) == (b"event-1-1", "text/plain")
    assert row[3]["timestamp_in_ms"] > 1e12
    assert program.cli("audit", "--json").json["balanced"]


def test_an_address_of_another_broker_or_of_nobody_is_an_error_in_a_line(program: Program) -> None:
    quick = (*QUICK, "--no-ensure-access", "--message-batches-limit", "1")
    wrong = program.cli("produce", *quick, "--amqp-address", "127.0.0.1:5672")
    assert wrong.code == 1
    assert "the broker is Apache Iggy: it has no AMQP address" in wrong.complaint


def test_a_server_that_is_killed_meanwhile_costs_no_message(
    program: Program, server: PrivateIggy
) -> None:
    import threading

    ended = []
    pace = ("--message-batches-limit", "40", "--interval", "100ms", "--producers", "1")
    arguments = ("produce", "--tenants", "2", "--no-ensure-access", *pace)
    thread = threading.Thread(
        target=lambda: ended.append(program.cli(*arguments, timeout=DEADLINE))
    )
    thread.start()
    eventually(lambda: sum(stored(program).values()) > 200, what="it is under way")
    server.kill()
    server.start()
    thread.join(DEADLINE)
    (result,) = ended
    assert result.code == 0, result.stdout[-2000:]
    assert "Retrying" in result.stdout
    eventually(lambda: sum(stored(program).values()) == 2400, what="all is stored, once")
