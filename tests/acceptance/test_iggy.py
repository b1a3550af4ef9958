"""The program on Apache Iggy, as tenants and operators use it."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import apache_iggy as iggy
import psycopg
import pytest

from tenantry.broker.iggy.client import Access, Session
from tenantry.broker.port import BrokerError
from tests import services_iggy
from tests.acceptance.program import Program, Tenant
from tests.iggy_server import PrivateIggy
from tests.waiting import DEADLINE, eventually


@pytest.fixture
def program(iggy: str, database_url: str) -> Iterator[Program]:
    """A daemon on the test run's Iggy."""
    with Program(None, database_url) as made:
        made.settings = {"BROKER_URL": iggy}
        yield made.start()
        made.check_no_traceback()


@pytest.fixture
def own_server() -> Iterator[PrivateIggy]:
    """An Iggy server that the test may kill."""
    with services_iggy.own_server() as server:
        yield server


class Sender:
    """A tenant's own client, with its credentials."""

    def __init__(self, url: str) -> None:
        self.session = Session(Access.of(url))

    def send(
        self, stream: str, topic: str, *messages: iggy.SendMessage, partition: int = 0
    ) -> None:
        self.session.call(
            lambda client: client.send_messages(
                stream, topic, iggy.Partitioning.partition_id(partition), list(messages)
            )
        )


@pytest.fixture
def senders() -> Iterator[Any]:
    """Opens tenants' clients, closed after the test."""
    opened: list[Sender] = []

    def open_one(url: str) -> Sender:
        opened.append(Sender(url))
        return opened[-1]

    yield open_one
    for one in opened:
        one.session.close()


class Row(NamedTuple):
    id: str
    topic: str
    partition: int
    payload: Any
    body: bytes | None
    content_type: str | None
    headers: Any


def rows_of(program: Program, tenant: Tenant, count: int) -> list[Row]:
    """Wait for so many rows; return all, in the order of their positions."""

    def look() -> list[Row]:
        with psycopg.connect(program.database_url) as connection:
            found = connection.execute(
                "SELECT id, topic, partition, payload, body, content_type, headers"
                " FROM messages WHERE tenant_id = %s ORDER BY position",
                [tenant.id],
            ).fetchall()
        return [Row(*row) for row in found] if len(found) >= count else []

    return eventually(look, what=f"{count} rows")


def test_what_a_tenant_sends_is_a_row_with_id_headers_and_bytes(
    program: Program, senders: Any
) -> None:
    tenant = program.create(topics=["events"], partitions=2)
    assert set(tenant.shown["credentials"]) == {"username", "password", "iggy_url"}
    sender = senders(tenant.amqp_url)
    one = uuid.uuid4()
    sender.send(
        tenant.stream,
        "events",
        iggy.SendMessage(b'{"n": 1}', {"kind": "first", "count": 7, "yes": True}, one.int),
        iggy.SendMessage(b"\x00\xff", {"content-type": "application/octet-stream"}),
        partition=1,
    )
    sender.send(tenant.stream, "events", iggy.SendMessage(b'{"n": 1}', None, one.int), partition=1)
    sender.send(tenant.stream, "default", iggy.SendMessage(b'"last"', None, None))
    rows = rows_of(program, tenant, 3)
    assert {(row.topic, row.partition) for row in rows} == {("events", 1), ("default", 0)}
    first = next(row for row in rows if row.id == str(one))
    assert first.payload == {"n": 1}
    assert first.headers == {"kind": "first", "count": 7, "yes": True}
    (binary,) = [row for row in rows if row.body is not None]
    assert (binary.body, binary.content_type) == (b"\x00\xff", "application/octet-stream")
    eventually(lambda: program.runtime(tenant)["duplicates"] == 1, what="the second is a duplicate")


def test_an_event_is_stored_as_it_came_and_a_wrong_one_is_a_dead_letter(
    program: Program, senders: Any
) -> None:
    tenant = program.create(topics=["events"])
    sender = senders(tenant.amqp_url)
    event = {"specversion": "1.0", "id": "7", "source": "/shop", "type": "order.created"}
    binary = {f"cloudEvents:{name}": value for name, value in event.items()}
    structured = {"content-type": "application/cloudevents+json"}
    body = json.dumps(event | {"id": "8"}).encode()
    sender.send(
        tenant.stream,
        "events",
        iggy.SendMessage(b'{"total": 99.90}', binary | {"content-type": "application/json"}),
        iggy.SendMessage(body, structured),
        iggy.SendMessage(b"{}", binary | {"cloudEvents:time": "now"}),
    )
    first, second = rows_of(program, tenant, 2)
    assert (first.payload, first.headers) == ({"total": 99.90}, binary)
    assert (second.body, second.content_type) == (body, structured["content-type"])
    assert second.headers == binary | {"cloudEvents:id": "8"}
    path = f"/tenants/{tenant.id}/dead-letters"
    (letter,) = eventually(lambda: program.get(path)["data"], what="the dead letter")
    assert letter["reason"] == "invalid_cloudevent"


def test_a_tenant_that_is_moved_to_another_node_loses_and_doubles_nothing(
    program: Program, senders: Any
) -> None:
    tenant = program.create(topics=["events"])
    sender = senders(tenant.amqp_url)
    here = program.get("/nodes")["data"][0]["name"]
    with Program(None, program.database_url) as other:
        other.settings = program.settings | {"TENANTRY_NODE_NAME": "another"}
        other.start()
        for number, node in enumerate(["another", here, "another"]):
            sender.send(tenant.stream, "events", iggy.SendMessage(b"%d" % number))
            path = f"/tenants/{tenant.id}/move"
            answer = program.call("POST", path, {"node": node}, timeout=DEADLINE)
            assert answer.status_code == 200, answer.text
            sender.send(tenant.stream, "events", iggy.SendMessage(b"%d" % (number + 10)))
            rows = rows_of(program, tenant, 2 * number + 2)
            assert len(rows) == 2 * number + 2
            assert program.get(f"/tenants/{tenant.id}")["node"] == node
        assert [row.payload for row in rows] == [0, 10, 1, 11, 2, 12]
        other.check_no_traceback()


def test_a_tenant_sends_to_its_own_stream_alone(program: Program, senders: Any) -> None:
    ours, theirs = program.create("ours"), program.create("theirs")
    sender = senders(ours.amqp_url)
    with pytest.raises(BrokerError, match="Unauthorized"):
        sender.send(theirs.stream, "default", iggy.SendMessage(b"1"))
    with pytest.raises(BrokerError):
        sender.session.call(
            lambda client: client.poll_messages(
                ours.stream,
                "default",
                consumer=iggy.Consumer.Single("me"),
                polling_strategy=iggy.PollingStrategy.First(),
                count=1,
                auto_commit=False,
                partition_id=0,
            )
        )
    sender.send(ours.stream, "default", iggy.SendMessage(b"1"))
    rows_of(program, ours, 1)


def test_what_is_no_json_is_a_dead_letter_that_is_replayed_and_discarded(
    program: Program, senders: Any
) -> None:
    tenant = program.create()
    sender = senders(tenant.amqp_url)
    sender.send(
        tenant.stream,
        "default",
        iggy.SendMessage(b"{no", {"message-id": "bad", "n": 1}),
        iggy.SendMessage(b"2", {"message-id": "good"}),
    )
    path = f"/tenants/{tenant.id}/dead-letters"
    (letter,) = eventually(lambda: program.get(path)["data"], what="a dead letter")
    assert letter["id"] == "bad"
    rows_of(program, tenant, 1)
    eventually(lambda: _rejected(program) == 1, what="a rejected message")
    replayed = program.call("POST", f"{path}/replay", {"all": True})
    assert replayed.json() == {"replayed": 1}, replayed.text
    eventually(lambda: program.runtime(tenant)["dead_lettered"] == 2, what="again")
    eventually(lambda: _rejected(program) == 1, what="the replay, rejected")
    discarded = program.call("DELETE", path, {"all": True})
    assert discarded.json() == {"discarded": 1}
    assert program.get(path)["data"] == []


def _rejected(program: Program) -> int:
    with psycopg.connect(program.database_url) as connection:
        query = "SELECT count(*) FROM tenantry.iggy_rejected WHERE NOT gone"
        row = connection.execute(query).fetchone()
    return 0 if row is None else int(row[0])


def test_publishing_over_http_and_the_audit_work_as_on_the_others(program: Program) -> None:
    tenant = program.create(topics=["events"])
    path = f"/tenants/{tenant.id}/messages"
    sent = {"payload": {"n": 1}, "id": "mine"}
    assert program.call("POST", path, sent).status_code == 202
    unknown = {"payload": 1, "topic": "nothing"}
    assert program.call("POST", path, unknown).status_code == 404
    (row,) = rows_of(program, tenant, 1)
    assert (row.id, row.payload) == ("mine", {"n": 1})
    assert program.cli("audit", "--json").json["balanced"]


def test_a_password_holds_until_the_next_is_confirmed(program: Program, senders: Any) -> None:
    tenant = program.create()
    senders(tenant.amqp_url)
    renewed = program.rotated(tenant.id)
    with pytest.raises(BrokerError, match="Invalid credentials"):
        senders(tenant.amqp_url)
    sender = senders(renewed.amqp_url)
    sender.send(tenant.stream, "default", iggy.SendMessage(b"1"))
    rows_of(program, tenant, 1)
    for password in (tenant.password, renewed.password):
        assert password not in program.stderr
        assert password not in program.call("GET", f"/tenants/{tenant.id}").text


def test_a_deleted_tenant_leaves_nothing_on_the_server(
    program: Program, senders: Any, iggy: str
) -> None:
    tenant = program.create(topics=["events"])
    sender = senders(tenant.amqp_url)
    assert program.call("DELETE", f"/tenants/{tenant.id}").status_code == 204
    with pytest.raises(BrokerError):
        sender.send(tenant.stream, "default", _message(b"1"))
    root = senders(iggy).session
    assert root.call(lambda client: client.get_stream(tenant.stream)) is None
    users = {one.username for one in root.call(lambda client: client.get_users())}
    assert not [one for one in users if f"tenant_{tenant.id}_" in one]
    with psycopg.connect(program.database_url) as connection:
        left = connection.execute(
            "SELECT tenant_id FROM tenantry.iggy_users UNION ALL"
            " SELECT tenant_id FROM tenantry.iggy_rejected"
        ).fetchall()
    assert left == []


def test_a_server_that_is_killed_loses_and_doubles_nothing(
    own_server: PrivateIggy, database_url: str, senders: Any
) -> None:
    with Program(None, database_url) as program:
        program.settings = {"BROKER_URL": own_server.url}
        program.start()
        tenant = program.create(topics=["events"])
        for round_ in range(3):
            sender = senders(tenant.amqp_url)
            batch = [_message(b"%d" % n) for n in range(500)]
            sender.send(tenant.stream, "events", *batch)
            own_server.kill()
            own_server.start()
            rows_of(program, tenant, 500 * (round_ + 1))
        eventually(lambda: program.runtime(tenant)["stored"] == 1500, what="all rows counted")
        assert program.stop() == 0
        program.check_no_traceback()


def _message(body: bytes) -> iggy.SendMessage:
    return iggy.SendMessage(body)


def test_a_daemon_that_is_killed_between_commit_and_offset_doubles_nothing(
    program: Program, senders: Any
) -> None:
    tenants = [program.create(word, topics=["events"], partitions=3) for word in ("a", "b")]
    opened = {one.id: senders(one.amqp_url) for one in tenants}
    assert program.stop() == 0
    sent = 0
    for point in ("after_commit:kill@2", "before_ack:kill@2", "after_ack:kill@3"):
        program.spawn(TENANTRY_FAILPOINTS=point)
        while program.running:
            for one in tenants:
                for partition in range(3):
                    batch = [_message(b"%d" % n) for n in range(20)]
                    opened[one.id].send(one.stream, "events", *batch, partition=partition)
            sent += 60
            eventually(
                lambda wanted=2 * sent: not program.running or _stored(program) >= wanted,
                what="it is killed, or all is stored",
            )
        program.wait(DEADLINE)
    program.start()
    for one in tenants:
        rows = rows_of(program, one, sent)
        assert len(rows) == len({row.id for row in rows}) == sent
    assert program.cli("audit", "--json").json["balanced"]


def _stored(program: Program) -> int:
    with psycopg.connect(program.database_url) as connection:
        row = connection.execute("SELECT count(*) FROM messages").fetchone()
    return 0 if row is None else int(row[0])


def test_a_standby_takes_over_from_a_leader_that_is_frozen(program: Program, senders: Any) -> None:
    tenant = program.create(topics=["events"], partitions=4)
    sender = senders(tenant.amqp_url)
    with Program(None, program.database_url) as standby:
        standby.settings = program.settings | {"TENANTRY_NODE_STANDBY": "true"}
        standby.spawn()
        standby.wait_logged("daemon.standing_by")
        sender.send(tenant.stream, "events", *[_message(b"%d" % n) for n in range(100)])
        rows_of(program, tenant, 100)
        program.send(signal.SIGSTOP)
        for partition in range(4):
            batch = [_message(b"%d" % n) for n in range(50)]
            sender.send(tenant.stream, "events", *batch, partition=partition)
        rows = rows_of(standby, tenant, 300)
        assert len(rows) == 300
        program.send(signal.SIGCONT)
        eventually(lambda: not program.running, what="the former leader ends")
        sender.send(tenant.stream, "events", _message(b"1"), partition=2)
        assert len(rows_of(standby, tenant, 301)) == 301
        assert standby.stop() == 0
        standby.check_no_traceback()


def test_a_user_that_somebody_deletes_is_told_of_until_its_credentials_are_rotated(
    program: Program, senders: Any, iggy: str
) -> None:
    tenant = program.create()
    assert program.stop() == 0
    senders(iggy).session.call(lambda client: client.delete_user(tenant.user))
    program.start(TENANTRY_RECONCILE_EVERY_SECONDS="1")
    found = eventually(
        lambda: "rotate its credentials" in program.call("GET", "/status").text, what="it is told"
    )
    assert found
    with pytest.raises(BrokerError, match="Invalid credentials"):
        senders(tenant.amqp_url)
    renewed = program.rotated(tenant.id)
    senders(renewed.amqp_url).send(tenant.stream, "default", _message(b"1"))
    rows_of(program, tenant, 1)
    eventually(
        lambda: "rotate its credentials" not in program.call("GET", "/status").text, what="all well"
    )
