"""The program without RabbitMQ: PostgreSQL is the broker as well; and moving to another broker."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx
import psycopg
import pytest

from tests import services_postgres
from tests.acceptance.program import Program, Tenant
from tests.acceptance.test_metrics import scrape
from tests.ledger import DEFAULT, Ledger, Target
from tests.services_rabbitmq import RabbitHost
from tests.waiting import DEADLINE, eventually

TARGETS = (DEFAULT, Target(routing_key="events.1", topic="events", partition=1))


@contextmanager
def owned(empty_database_url: str) -> Iterator[str]:
    """Make a role that is no superuser a database's owner; it may create roles, as is required."""
    name = urlsplit(empty_database_url).path.lstrip("/")
    owner = f"owner_of_{name}"
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {owner} LOGIN CREATEROLE PASSWORD 'owner'")
        connection.execute(f"ALTER DATABASE {name} OWNER TO {owner}")
    parts = urlsplit(empty_database_url)
    place = parts.netloc.rpartition("@")[2]
    yield urlunsplit(parts._replace(netloc=f"{owner}:owner@{place}"))
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} OWNER TO CURRENT_USER")
        connection.execute(f"DROP OWNED BY {owner} CASCADE")
        connection.execute(f"DROP ROLE IF EXISTS {owner}")


@pytest.fixture
def database_url(empty_database_url: str) -> Iterator[str]:
    """The URL of a database that the role of a non-superuser owns."""
    with owned(empty_database_url) as url:
        yield url


@pytest.fixture(scope="module")
def lasting() -> Iterator[Program]:
    """A daemon without a broker URL that consumes, for the tests that share it."""
    with (
        services_postgres.database(services_postgres.admin_url(), migrated=False) as empty,
        owned(empty) as url,
        Program(None, url) as program,
    ):
        yield program.start()
        assert program.stop() == 0
        program.check_no_traceback()


@pytest.fixture
def embedded(database_url: str) -> Iterator[Program]:
    """A daemon without a broker URL that consumes."""
    with Program(None, database_url) as program:
        yield program.start()
        program.check_no_traceback()


def stored(program: Program, tenant: Tenant) -> int:
    count: int = program.runtime(tenant)["stored"]
    return count


def test_what_tenants_publish_with_sql_is_stored_once_and_nobody_reaches_another(
    embedded: Program, ledger: Ledger
) -> None:
    tenants = [embedded.create(word, topics=["events"], partitions=2) for word in ("one", "two")]
    assert all(one.amqp_url.startswith("postgresql://") for one in tenants)
    assert "amqp_url" not in tenants[0].shown["credentials"]
    with ledger.publishing([(one.id, one.amqp_url) for one in tenants], TARGETS, rate=500):
        ledger.wait_confirmed()
    ledger.check(alive=embedded.check_running)
    given = embedded.directory / "credentials.json"
    given.write_text(json.dumps({one.id: one.shown["credentials"] for one in tenants}))
    proof = embedded.cli("verify-isolation", "--json", "--credentials", str(given))
    assert proof.code == 0, proof.stdout
    tried = {(one["action"], one["allowed"]) for one in proof.json["checks"]}
    assert tried == {
        ("read", True),
        ("read", False),
        ("write", True),
        ("write", False),
        ("configure", False),
    }
    rows = {one.id: stored(embedded, one) for one in tenants}
    assert embedded.stop() == 0
    assert embedded.ready_messages(*(one.queue for one in tenants)) == 0
    # The statistics include the last minute, once in each ring.
    with psycopg.connect(embedded.database_url) as connection:
        noted = connection.execute(
            "SELECT tenant_id, step, sum(stored), (SELECT sum(n) FROM unnest(array_agg(latencies))"
            " AS n) FROM tenantry.statistics GROUP BY 1, 2"
        ).fetchall()
    assert set(noted) == {
        (one, step, count, count) for one, count in rows.items() for step in (1, 60)
    }


def test_messages_beyond_a_tenants_retention_go_and_readers_and_audit_go_on(
    shared: Program,
) -> None:
    tenant = shared.create()
    path, page = f"/tenants/{tenant.id}", f"/messages?tenant_id={tenant.id}"
    sent = [{"payload": number, "id": f"m{number}"} for number in range(20)]
    assert shared.call("POST", f"{path}/messages", sent).is_success
    eventually(lambda: stored(shared, tenant) == 20, what="rows")
    first, last = shared.get(f"{page}&limit=5"), shared.get(page)
    assert shared.call("PUT", f"{path}/limits", {"retention": {"rows": 8}}).is_success
    audit = eventually(
        lambda: (a := shared.get(f"{path}/audit"))["removed"] == 12 and a, what="a removal"
    )
    assert audit["balanced"]
    assert (audit["rows"], audit["removed_by"]) == (8, {"age": 0, "rows": 12})
    assert "12 that were too many" in shared.cli("audit", tenant.id).stderr
    behind = shared.get(f"{page}&cursor={first['next_cursor']}")["data"]
    assert [one["id"] for one in behind] == [f"m{number}" for number in range(12, 20)]
    again = [{"payload": 0, "id": "m0"}, {"payload": 20, "id": "m20"}]
    assert shared.call("POST", f"{path}/messages", again).is_success
    new = eventually(lambda: shared.get(f"{page}&cursor={last['follow_cursor']}")["data"])
    assert [one["id"] for one in new] == ["m20"]
    eventually(
        lambda: (
            scrape(shared).value(
                "tenantry_messages_removed_total", tenant_id=tenant.id, reason="rows"
            )
            == 13
        ),
        what="the metric",
    )
    assert shared.cli("audit", tenant.id).code == 0


def test_publishing_that_is_refused_is_counted_whichever_process_has_refused_it(
    shared: Program,
) -> None:
    tenant = shared.create()
    path = f"/tenants/{tenant.id}"
    assert shared.call("PUT", f"{path}/limits", {"rate": 1, "burst": 1}).is_success
    port = shared.get("/info")["server"]["port"]
    many = [{"payload": number} for number in range(500)]
    refused = 0

    def taken(answer: httpx.Response) -> bool:
        nonlocal refused
        refused += answer.status_code == 429
        assert answer.status_code in {202, 429}
        return answer.is_success

    def by_daemon() -> bool:
        return taken(shared.call("POST", f"{path}/messages", many))

    def by_front() -> bool:
        url = f"http://127.0.0.1:{port}{path}/messages"
        return taken(httpx.post(url, json=many, timeout=DEADLINE, trust_env=False))

    # Messages beyond the burst are owed for minutes; daemon and front each count their own.
    assert by_daemon()
    assert not by_daemon()
    eventually(by_front, what="a front that answers by itself")
    assert not by_front()
    eventually(
        lambda: (
            scrape(shared).value(
                "tenantry_publishes_refused_total", tenant_id=tenant.id, reason="rate"
            )
            == refused
        ),
        what="the metric",
    )
    assert shared.call("DELETE", path).status_code == 204
    assert tenant.id not in scrape(shared).labels("tenant_id")


def test_http_producer_and_audit_work_as_on_rabbitmq(shared: Program) -> None:
    tenant = shared.create(topics=["events"])
    answer = shared.call("POST", f"/tenants/{tenant.id}/messages", {"payload": {"n": 1}})
    assert answer.status_code == 202
    unknown = {"payload": 1, "topic": "nothing"}
    assert shared.call("POST", f"/tenants/{tenant.id}/messages", unknown).status_code == 404
    eventually(lambda: stored(shared, tenant) == 1, what="a row")
    produced = shared.cli("produce", "--tenants", "1", "--message-batches-limit", "2", "--json")
    with psycopg.connect(shared.database_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS tenant_1_producer")
    assert produced.code == 0, produced.stderr
    assert produced.json["confirmed"] == produced.json["sent"] == 180
    eventually(
        lambda: shared.get("/status")["tenants"]["1"]["stored"] == 180, what="what was produced"
    )
    assert shared.cli("audit", "--json").json["balanced"]


def test_the_consumer_reads_what_is_stored_from_its_first_run_on(
    shared: Program, tmp_path: Path
) -> None:
    small = ("--tenants", "2", "--partitions", "2")
    sending = (*small, "--producers", "1", "--message-batches-limit", "2", "--interval", "0s")

    def received(*arguments: str) -> int:
        ended = shared.cli("consume", *small, "--json", *arguments)
        assert ended.code == 0, (ended.stdout, ended.stderr)
        assert ended.json["failed"] == 0
        count: int = ended.json["received"]
        return count

    def total() -> int:
        # The tenants may be there from another test.
        there = shared.get("/status")["tenants"]
        return sum(there[one]["stored"] for one in ("1", "2") if one in there)

    def produced(*arguments: str) -> None:
        before = total()
        sent = shared.cli("produce", *sending, *arguments)
        assert sent.code == 0, sent.stderr
        eventually(lambda: total() == before + 120)

    produced()
    assert received() == 0, "the group is younger than these"
    produced("--no-ensure-access")
    ended = shared.cli("consume", *small, "--consumers", "2")
    assert ended.code == 0, ended.stderr
    lines = ended.stdout.splitlines()
    for tenant_id in ("1", "2"):
        assert f"Ensured access to stream: tenant_{tenant_id}_stream" in lines
        assert f"Ensured no access to stream: tenant_{tenant_id}_stream" in lines
    assert any(
        line.startswith("Received: 10 message(s) by tenant: 1, consumer: ")
        and line.endswith("from: tenant_1_stream -> events")
        for line in lines
    )
    assert lines[-1] == "Total: received: 120, failed: 0"
    assert received("--no-ensure-access") == 0, "it was committed"
    assert shared.cli("audit").code == 0

    # A signal ends the consumer, with all handled batches committed.
    out = tmp_path / "out"
    with shared.beside("consume", *small, "--follow", out=out) as follower:
        eventually(lambda: "--- Starting" in out.read_text())
        produced("--no-ensure-access")
        eventually(lambda: out.read_text().count("Received: ") > 3)
        follower.send_signal(signal.SIGTERM)
        assert follower.wait(DEADLINE) == 0
    *_, last = out.read_text().splitlines()
    handled = int(last.removeprefix("Total: received: ").removesuffix(", failed: 0"))
    assert 0 < handled <= 120
    assert handled + received() == 120
    for tenant_id in ("1", "2"):
        assert shared.call("DELETE", f"/tenants/{tenant_id}").status_code == 204


def test_what_is_no_json_becomes_a_dead_letter_and_is_replayed(shared: Program) -> None:
    tenant = shared.create()
    with psycopg.connect(tenant.amqp_url, autocommit=True) as session:
        session.execute(
            "SELECT tenantry.publish_bytes('default', '{no', 'application/json', id => 'bad')"
        )
    path = f"/tenants/{tenant.id}/dead-letters"
    (letter,) = eventually(lambda: shared.get(path)["data"], what="a dead letter")
    assert letter["id"] == "bad"
    eventually(lambda: not shared.ready_messages(tenant.queue), what="an empty queue")
    replayed = shared.call("POST", f"{path}/replay", {"all": True})
    assert replayed.json() == {"replayed": 1}, replayed.text
    eventually(lambda: shared.runtime(tenant)["dead_lettered"] == 2, what="again")
    eventually(lambda: not shared.ready_messages(tenant.queue), what="an empty queue again")
    discarded = shared.call("DELETE", path, {"all": True})
    assert discarded.json() == {"discarded": 1}
    assert shared.get(path)["data"] == []


def test_a_deleted_tenant_leaves_no_role_and_no_message(shared: Program) -> None:
    tenant = shared.create()
    assert shared.call("POST", f"/tenants/{tenant.id}/pause").status_code == 200
    with psycopg.connect(tenant.amqp_url, autocommit=True) as session:
        session.execute("SELECT tenantry.publish('default', '1')")
        assert shared.call("DELETE", f"/tenants/{tenant.id}").status_code == 204
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    with psycopg.connect(shared.database_url) as connection:
        left = connection.execute(
            "SELECT rolname FROM pg_roles WHERE rolname = %s UNION ALL"
            " SELECT name FROM tenantry.queues WHERE name LIKE %s UNION ALL"
            " SELECT id FROM tenantry.queued",
            [tenant.user, f"tenant\\_{tenant.id}\\_%"],
        ).fetchall()
    assert left == []


@pytest.fixture(params=["rabbitmq", "iggy"])
def elsewhere(request: pytest.FixtureRequest) -> tuple[RabbitHost | None, dict[str, str]]:
    """Another broker: a daemon's host and settings."""
    if request.param == "iggy":
        return None, {"BROKER_URL": request.getfixturevalue("iggy")}
    host: RabbitHost = request.getfixturevalue("rabbitmq")
    return host, {"RABBITMQ_URL": host.url, "RABBITMQ_MANAGEMENT_URL": host.management_url}


def test_moving_to_another_broker_loses_and_doubles_nothing(
    embedded: Program, ledger: Ledger, elsewhere: tuple[RabbitHost | None, dict[str, str]]
) -> None:
    host, to = elsewhere
    tenant = embedded.create(topics=["events"], partitions=2)
    with psycopg.connect(tenant.amqp_url, autocommit=True) as session:
        session.execute("SELECT tenantry.publish_bytes('default', '{no', NULL, id => 'bad')")
    eventually(lambda: embedded.runtime(tenant)["dead_lettered"] == 1, what="a dead letter")
    move = ("broker", "migrate", "--json")
    refused = embedded.cli(*move, **to)
    assert refused.code == 1
    assert "stop it first" in refused.complaint
    with ledger.publishing([(tenant.id, tenant.amqp_url)], TARGETS, rate=500):
        ledger.wait_confirmed()
        assert embedded.stop() == 0
        ledger.wait_confirmed(50)
    url = to.get("RABBITMQ_URL") or to["BROKER_URL"]
    management = ("--management-to", host.management_url) if host else ()
    moved = embedded.cli(*move, "--to", url, *management)
    assert moved.code == 0, moved.stderr
    counts = moved.json["tenants"][tenant.id]
    assert counts["messages"] >= 50
    assert (counts["dead_letters"], counts["left"]) == (1, 0)
    nothing = {"messages": 0, "dead_letters": 0, "left": 0}
    assert embedded.cli(*move, **to).json["tenants"][tenant.id] == nothing
    with Program(host, embedded.database_url) as after:
        after.settings = to
        after.start()
        (letter,) = eventually(lambda: after.get(f"/tenants/{tenant.id}/dead-letters")["data"])
        assert letter["id"] == "bad"
        assert after.call("DELETE", f"/tenants/{tenant.id}/dead-letters", {"all": True}).json() == {
            "discarded": 1
        }
        ledger.check(alive=after.check_running)
        renewed = after.rotated(tenant.id)
        assert renewed.amqp_url.startswith(("amqp://", "iggy://"))
        # A second move takes messages published to the former broker since; clients that have
        # moved publish on.
        with psycopg.connect(tenant.amqp_url, autocommit=True) as late:
            late.execute("SELECT tenantry.publish('default', '1', id => 'late')")
        assert embedded.cli(*move, **to).json["tenants"][tenant.id] == {**nothing, "messages": 1}
        path = f"/tenants/{tenant.id}/messages/late"
        eventually(lambda: after.status_of(path) == 200, what="the late one")
        with ledger.publishing([(tenant.id, renewed.amqp_url)], TARGETS, rate=500):
            ledger.wait_confirmed()
        assert after.call("DELETE", f"/tenants/{tenant.id}").status_code == 204
        assert after.stop() == 0


def test_the_credentials_name_one_way_in(shared: Program) -> None:
    tenant = shared.create()
    credentials = tenant.shown["credentials"]
    assert set(credentials) == {"username", "password", "postgres_url"}
    wrong = credentials["postgres_url"].replace(tenant.password, "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)
    renewed = shared.rotated(tenant.id)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(tenant.amqp_url)
    with psycopg.connect(renewed.amqp_url) as session:
        session.execute("SELECT tenantry.publish('default', '1')")
    answer: httpx.Response = shared.call("GET", f"/tenants/{tenant.id}")
    assert tenant.password not in answer.text
    assert tenant.password not in shared.stderr


def test_a_full_backlog_is_an_error_in_sql_and_429_over_http_and_empties_as_it_is_stored(
    shared: Program,
) -> None:
    tenant = shared.create(topics=["events"], partitions=2)
    path = f"/tenants/{tenant.id}"
    refused = shared.call("PUT", f"{path}/limits", {"channels": 5})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "channels")
    assert "the embedded broker" in refused.json()["detail"]
    assert shared.call("POST", f"{path}/pause").status_code == 200
    assert shared.call("PUT", f"{path}/limits", {"backlog": {"messages": 4}}).is_success
    with psycopg.connect(tenant.amqp_url, autocommit=True) as tenants:
        for topic in ("default", "events", "events"):
            tenants.execute("SELECT tenantry.publish(%s, '1')", [topic])
        two = [{"payload": 1}, {"payload": 2}]
        full = shared.call("POST", f"{path}/messages", two)
        assert (full.status_code, full.json()["type"][-12:]) == (429, "backlog-full")
        assert shared.call("POST", f"{path}/messages", two[:1]).status_code == 202
        with pytest.raises(psycopg.Error, match="backlog of tenant") as told:
            tenants.execute("SELECT tenantry.publish('default', '1')")
        assert told.value.sqlstate == "TN003"
        assert shared.call("POST", f"{path}/resume").status_code == 200
        eventually(lambda: stored(shared, tenant) == 4, what="what was taken")
        tenants.execute("SELECT tenantry.publish('default', '\"not an order\"')")
    # Many times the limit may be published, as long as messages are stored meanwhile.
    for count in range(6, 30):
        assert shared.call("POST", f"{path}/messages", {"payload": count}).status_code == 202
        eventually(lambda count=count: stored(shared, tenant) == count, what="the next")
    assert shared.get(f"{path}/audit")["balanced"]


def test_events_are_understood_by_sql_as_well(shared: Program) -> None:
    tenant = shared.create(topics=["events"])
    event = {"specversion": "1.0", "id": "7", "source": "/shop", "type": "t"}
    headers = json.dumps({f"cloudEvents:{name}": value for name, value in event.items()})
    with psycopg.connect(tenant.amqp_url) as session:
        publish = "SELECT tenantry.publish('events', %s, id => %s, headers => %s)"
        session.execute(publish, ["1", "/shop 7", headers])
        session.execute(publish, ["1", "bad", headers.replace("/shop", "a b")])
        session.execute(
            "SELECT tenantry.publish_bytes('events', %s, %s, id => 's')",
            [json.dumps(event).encode(), "application/cloudevents+json"],
        )
    told = shared.get(f"/tenants/{tenant.id}/asyncapi.json")
    with psycopg.connect(tenant.amqp_url) as session:
        # The call in the AsyncAPI document, made by a driver.
        call = told["channels"]["events"]["x-sql"]["publish"]
        psycopg.RawCursor(session).execute(call, ["2", "from-document", "{}", "k"])
    eventually(lambda: stored(shared, tenant) == 3)
    path = f"/tenants/{tenant.id}/messages/s"
    assert shared.get(path)["headers"]["cloudEvents:source"] == "/shop"
    (letter,) = shared.get(f"/tenants/{tenant.id}/dead-letters")["data"]
    assert letter["reason"] == "invalid_cloudevent"
