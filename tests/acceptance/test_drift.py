"""Tenants' objects are changed behind the daemon's back; it repairs them, and loses nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import quote

import pika
import psycopg
import pytest

from tests.acceptance.program import Program, Tenant
from tests.depth import examples
from tests.ledger import LIGHT, Ledger, Target
from tests.waiting import eventually

EVENTS = Target(routing_key="events", topic="events", partition=0)


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"TENANTRY_RECONCILE_EVERY_SECONDS": "1"}


@pytest.fixture
def often(shared: Program) -> Iterator[Program]:
    """A daemon that looks for drift every second, and has no other test's tenants."""
    yield shared
    for tenant in shared.get("/tenants")["data"]:
        assert shared.call("DELETE", f"/tenants/{tenant['id']}").status_code == 204


@pytest.fixture
def ledger(shared: Program) -> Ledger:
    return Ledger(database_url=shared.database_url, most=examples(LIGHT, math.inf))


def logged(program: Program, name: str, tenant_id: str) -> dict[str, object]:
    """Wait for a log event about a tenant."""
    return eventually(
        lambda: next((one for one in program.events(name) if one["tenant"] == tenant_id), {}),
        what=f"the log's event {name}",
    )


@contextmanager
def on_broker(program: Program) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    with program.connect_admin() as connection:
        yield connection.channel()


def repairs(program: Program, tenant: Tenant) -> list[dict[str, object]]:
    listed = program.get(f"/tenants/{tenant.id}/events?limit=500")["data"]
    return [one["data"] for one in listed if one["type"] == "DriftRepaired"]


def kinds(program: Program, tenant: Tenant) -> set[str]:
    return {str(kind) for one in repairs(program, tenant) for kind in one["kinds"]}  # type: ignore[attr-defined]


def detach_with_foreign_row(program: Program, tenant: Tenant) -> None:
    """Detach the tenant's partition; another tenant's row in it prevents attaching it again."""
    table = f'tenantry."messages_{tenant.id}"'
    with psycopg.connect(program.database_url) as connection:
        connection.execute(f"ALTER TABLE public.messages DETACH PARTITION {table}".encode())
        connection.execute(
            f"INSERT INTO {table} (tenant_id, id, position, topic, partition, body, created_at)"
            " VALUES ('other', 'theirs', 0, 'default', 0, '', now())".encode()
        )


def delete(program: Program, path: str) -> None:
    program.management.delete(path).raise_for_status()


def test_whatever_is_taken_away_under_load_is_made_again_and_nothing_is_lost(
    often: Program, ledger: Ledger
) -> None:
    tenant = often.create("one", topics=["events"])
    other = often.create("two", topics=["events"])
    vhost = quote(often.host.vhost, safe="")

    def lose_binding() -> None:
        with on_broker(often) as channel:
            channel.queue_unbind(f"{tenant.stream}.events.0", tenant.stream, "events")

    def lose_stream() -> None:
        with on_broker(often) as channel:
            channel.exchange_delete(tenant.stream)

    def lose_dead_letter_exchange() -> None:
        with on_broker(often) as channel:
            channel.exchange_delete("dlx_exchange")

    def lose_queue() -> None:
        # Nothing is published to this queue, so that no confirmed message is lost with it.
        with on_broker(often) as channel:
            channel.queue_delete(tenant.queue)

    def lose_dead_letter_queue() -> None:
        with on_broker(often) as channel:
            channel.queue_delete(tenant.dead_letters)

    def lose_user() -> None:
        delete(often, f"/users/{tenant.user}")

    def lose_permissions() -> None:
        delete(often, f"/permissions/{vhost}/{tenant.user}")

    def widen_permissions() -> None:
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        path = f"/permissions/{vhost}/{tenant.user}"
        often.management.put(path, json=everything).raise_for_status()

    def comes_in() -> bool:
        often.management.put(f"/users/{tenant.user}", json=another).raise_for_status()
        try:
            somebodys.append(pika.BlockingConnection(by_it))
        except pika.exceptions.AMQPConnectionError:  # the password has been set back already
            return False
        return True

    def change_password() -> None:
        eventually(comes_in, what="somebody comes in by another password")

    another = {"password": "another", "tags": "management"}
    by_it = pika.URLParameters(tenant.amqp_url)
    by_it.credentials = pika.PlainCredentials(tenant.user, "another")
    somebodys: list[pika.BlockingConnection] = []
    faults: list[tuple[Callable[[], None], str]] = [
        (lose_binding, "binding"),
        (lose_stream, "exchange"),
        (lose_dead_letter_exchange, "exchange dlx_exchange was missing"),
        (lose_queue, "queue"),
        (lose_dead_letter_queue, f"queue {tenant.dead_letters} was missing"),
        (lose_user, "user"),
        (lose_permissions, "had no permissions"),
        (widen_permissions, "had other permissions"),
        (change_password, "password"),
    ]
    with ledger.publishing(
        [(one.id, one.amqp_url) for one in (tenant, other)], [EVENTS], rate=300, patient=True
    ):
        ledger.wait_confirmed()
        for fault, sign in faults:
            fault()
            eventually(
                lambda what=sign: what in str(repairs(often, tenant)),
                what=f"the repair after {fault.__name__}",
            )
            ledger.wait_confirmed()
    ledger.check(alive=often.check_running)
    eventually(lambda: often.status_of("/readyz") == 200, what="readyz 200")
    eventually(lambda: is_closed(somebodys[0]), what="who came by another's password is out")
    # The tenant's own password still works, and its user has no excess rights any more.
    with pika.BlockingConnection(pika.URLParameters(tenant.amqp_url)) as connection:
        channel = connection.channel()
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
            channel.basic_get(other.queue)
    answer = often.call("GET", "/metrics").text
    assert 'tenantry_drift_total{kind="user",outcome="repaired"}' in answer


def is_closed(connection: pika.BlockingConnection) -> bool:
    try:
        connection.process_data_events(0)
    except pika.exceptions.AMQPError:
        return True
    return bool(connection.is_closed)


def test_a_partition_that_is_gone_is_made_again(often: Program, ledger: Ledger) -> None:
    tenant = often.create()
    with psycopg.connect(often.database_url, autocommit=True) as connection:
        connection.execute(f'DROP TABLE tenantry."messages_{tenant.id}"')
    eventually(lambda: "partition" in kinds(often, tenant), what="the repair")
    with ledger.publishing([(tenant.id, tenant.amqp_url)], rate=300):
        ledger.wait_confirmed()
    ledger.check(alive=often.check_running)


def test_a_partition_that_was_detached_is_attached_again_under_load(
    often: Program, ledger: Ledger
) -> None:
    tenant = often.create()
    table = f'tenantry."messages_{tenant.id}"'
    with (
        psycopg.connect(often.database_url, autocommit=True) as connection,
        ledger.publishing([(tenant.id, tenant.amqp_url)], rate=300),
    ):
        ledger.wait_confirmed()
        detach_with_foreign_row(often, tenant)
        remains = logged(often, "tenant.drift_remains", tenant.id)
        assert "holds rows of other tenants" in str(remains["error"])
        assert not repairs(often, tenant)
        ledger.wait_confirmed()
        connection.execute(f"DELETE FROM {table} WHERE tenant_id = 'other'".encode())
        eventually(lambda: "partition" in kinds(often, tenant), what="the repair")
        ledger.wait_confirmed()
    ledger.check(alive=often.check_running)
    with psycopg.connect(often.database_url) as connection:
        query = "SELECT count(*) FROM public.messages WHERE tenant_id = %s"
        row = connection.execute(query, [tenant.id]).fetchone()
    eventually(lambda: row == (often.runtime(tenant)["stored"],), what="all rows counted")


def test_a_tenant_whose_detached_partition_cant_be_attached_starts_and_stores(
    running: Program,
) -> None:
    tenant = running.create()
    assert running.stop() == 0
    detach_with_foreign_row(running, tenant)
    running.start()
    running.wait_logged("tenant.foreign_rows")
    with pika.BlockingConnection(pika.URLParameters(tenant.amqp_url)) as broker:
        channel = broker.channel()
        channel.confirm_delivery()
        channel.basic_publish(tenant.stream, "default", b"{}", mandatory=True)
    eventually(lambda: running.runtime(tenant)["stored"] == 1, what="the row")
    assert not repairs(running, tenant)


def test_what_drifted_while_the_daemon_was_down_is_repaired_and_recorded_at_its_start(
    running: Program,
) -> None:
    tenant = running.create(topics=["events"])
    assert running.stop() == 0
    with on_broker(running) as channel:
        channel.queue_delete(f"{tenant.stream}.events.0")
    delete(running, f"/users/{tenant.user}")
    running.start()
    eventually(lambda: kinds(running, tenant) >= {"queue", "binding", "user"}, what="the repairs")
    with pika.BlockingConnection(pika.URLParameters(tenant.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish(tenant.stream, "events", b"{}", mandatory=True)
    eventually(lambda: running.runtime(tenant)["stored"] == 1, what="the row")


def test_what_is_left_of_a_deleted_tenant_is_removed_and_a_strangers_is_not(often: Program) -> None:
    tenant = often.create()
    assert often.call("DELETE", f"/tenants/{tenant.id}").status_code == 204
    stranger = often.name("stranger")
    with on_broker(often) as channel:
        channel.queue_declare(tenant.queue, durable=True)
        channel.queue_declare(f"tenant_{stranger}_queue", durable=True)
    eventually(lambda: not often.broker_objects(tenant.id), what="the leftover's removal")
    logged(often, "reconciler.unknown_tenant", stranger)
    assert often.broker_objects(stranger) == [f"tenant_{stranger}_queue"]


def test_arguments_that_cant_be_changed_are_reported_and_disturb_nobody(
    often: Program, ledger: Ledger
) -> None:
    tenant = often.create()
    with on_broker(often) as channel:
        channel.queue_delete(tenant.dead_letters)
        channel.queue_declare(tenant.dead_letters, durable=True, arguments={"x-max-length": 5})
        channel.queue_bind(tenant.dead_letters, "dlx_exchange", tenant.id)
    reported = logged(often, "tenant.drift_unrepaired", tenant.id)
    assert tenant.dead_letters in str(reported["found"])
    trouble = often.get(f"/tenants/{tenant.id}")["trouble"]
    assert tenant.dead_letters in trouble
    assert "take out what is in it, and delete it" in trouble
    assert trouble in often.cli("status").stdout
    with ledger.publishing([(tenant.id, tenant.amqp_url)], rate=300):
        ledger.wait_confirmed()
    ledger.check(alive=often.check_running)
    assert not repairs(often, tenant)
