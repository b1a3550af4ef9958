"""Tenants' own consumers on the embedded broker, and what a holder of their password can do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import psycopg
import pytest
from psycopg import errors

from tests import services_postgres
from tests.acceptance.program import Program, Tenant
from tests.waiting import eventually


@pytest.fixture(scope="module")
def lasting() -> Iterator[Program]:
    """A daemon with its embedded broker, for the tests that share it."""
    with (
        services_postgres.database(services_postgres.admin_url()) as url,
        Program(None, url) as made,
    ):
        made.settings = {"TENANTRY_RECONCILE_EVERY_SECONDS": "1"}
        yield made.start()
        assert made.stop() == 0
        made.check_no_traceback()


def granted(program: Program, tenant: Tenant) -> str:
    answer = program.call("POST", f"/tenants/{tenant.id}/consumer-access")
    assert answer.status_code == 200, answer.text
    url: str = answer.json()["credentials"]["postgres_url"]
    return url


def publish(program: Program, tenant: Tenant, *ids: str) -> None:
    body = [{"payload": one, "id": one} for one in ids]
    assert program.call("POST", f"/tenants/{tenant.id}/messages", body).status_code == 202
    page = f"/messages?tenant_id={tenant.id}"
    eventually(lambda: set(ids) <= {one["id"] for one in program.get(page)["data"]})


def lets_in(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


RECEIVE = "SELECT lease, id FROM tenantry.receive('default', %s)"


def test_batches_are_leased_settled_and_given_out_again_when_their_session_has_ended(
    shared: Program,
) -> None:
    tenant = shared.create()
    publish(shared, tenant, "before")
    url = granted(shared, tenant)
    publish(shared, tenant, "a", "b", "c", "d")
    with psycopg.connect(url, autocommit=True) as one, psycopg.connect(url, autocommit=True) as two:
        (first,), (second,) = (each.execute(RECEIVE, [1]).fetchall() for each in (one, two))
        assert (first[1], second[1]) == ("a", "b")
        # A session can't settle another session's lease, and its own only once.
        assert two.execute("SELECT tenantry.settle(%s)", [first[0]]).fetchone() == (False,)
        assert one.execute("SELECT tenantry.settle(%s)", [first[0]]).fetchone() == (True,)
        assert one.execute("SELECT tenantry.settle(%s)", [first[0]]).fetchone() == (False,)
        # After a rollback the messages count as not delivered.
        with one.transaction(force_rollback=True):
            assert [row[1] for row in one.execute(RECEIVE, [9])] == ["c", "d"]
        two.close()
        given: dict[str, int] = {}

        def more() -> bool:
            given.update((row[1], row[0]) for row in one.execute(RECEIVE, [9]))
            return given.keys() == {"b", "c", "d"}

        eventually(more, what="what the other had, and the rest")
        for lease in set(given.values()):
            assert one.execute("SELECT tenantry.settle(%s)", [lease]).fetchone() == (True,)
        assert one.execute(RECEIVE, [9]).fetchall() == []
        with pytest.raises(errors.UndefinedObject, match="has no topic nowhere"):
            one.execute("SELECT tenantry.receive('nowhere')")


def test_what_is_being_settled_late_is_neither_given_out_again_nor_waited_for(
    shared: Program,
) -> None:
    tenant = shared.create()
    url = granted(shared, tenant)
    publish(shared, tenant, "a", "b")
    with (
        psycopg.connect(url, autocommit=True) as late,
        psycopg.connect(url, autocommit=True) as other,
    ):
        ((lease, given),) = late.execute(RECEIVE, [1]).fetchall()
        with psycopg.connect(shared.database_url, autocommit=True) as admin:
            admin.execute(
                "UPDATE tenantry.consumer_leases SET expires_at = now() - interval '1s'"
                " WHERE tenant_id = %s",
                [tenant.id],
            )
        other.execute("SET lock_timeout = '5s'")
        with late.transaction():
            assert late.execute("SELECT tenantry.settle(%s)", [lease]).fetchone() == (True,)
            assert [row[1] for row in other.execute(RECEIVE, [9])] == ["b"]
        assert given == "a"
        assert other.execute(RECEIVE, [9]).fetchall() == []


def test_access_is_granted_renewed_repaired_and_revoked(shared: Program) -> None:
    tenant = shared.create(topics=["events"])
    first = granted(shared, tenant)
    second = granted(shared, tenant)
    assert not lets_in(first)
    assert lets_in(second)
    role = f"tenant_{tenant.id}_consumer"
    with psycopg.connect(shared.database_url, autocommit=True) as admin:
        admin.execute(f'ALTER ROLE "{role}" NOLOGIN PASSWORD NULL'.encode())
        eventually(lambda: lets_in(second))
        shared.call("DELETE", f"/tenants/{tenant.id}/consumer-access")
        assert not lets_in(second)
        third = granted(shared, tenant)
        assert shared.call("DELETE", f"/tenants/{tenant.id}").status_code == 204
        assert not lets_in(third)
        left = admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchall()
        assert left == []
        for table in ("consumer_groups", "consumer_leases", "consumer_credentials"):
            query = f"SELECT FROM tenantry.{table} WHERE tenant_id = %s".encode()
            assert admin.execute(query, [tenant.id]).fetchall() == []


def test_a_holder_of_a_consumers_credentials_reads_its_topics_and_does_nothing_else(
    shared: Program,
) -> None:
    tenant, other = shared.create(), shared.create("other")
    granted(shared, other)
    refused = (
        "SELECT tenantry.publish('default', '{}')",
        f"SELECT tenantry.publish('default', '{{}}', tenant => '{tenant.id}')",
        f"SELECT tenantry.publish('default', '{{}}', tenant => '{other.id}')",
        f"SELECT FROM tenantry.look('tenant_{tenant.id}_queue', 1)",
        "SELECT FROM tenantry.queued",
        "SELECT FROM tenantry.consumer_groups",
        "UPDATE tenantry.consumer_groups SET position = 0",
        "DELETE FROM tenantry.consumer_leases",
        "SELECT FROM tenantry.consumer_credentials",
        "SELECT FROM public.messages",
        f'SELECT FROM tenantry."messages_{tenant.id}"',
        f'SELECT FROM tenantry."messages_{other.id}"',
        f'SET ROLE "tenant_{tenant.id}_producer"',
        f'SET ROLE "tenant_{other.id}_consumer"',
        "SET SESSION AUTHORIZATION DEFAULT; SELECT FROM tenantry.events",
        "SELECT tenantry.consuming_tenant()",
    )
    with psycopg.connect(granted(shared, tenant), autocommit=True) as holder:
        for statement in refused:
            with pytest.raises(errors.InsufficientPrivilege):
                holder.execute(statement.encode())
        for hostile in (
            "SELECT FROM tenantry.receive('default', -1)",
            "SELECT FROM tenantry.receive('default', NULL)",
            "SELECT FROM tenantry.receive('default', 2147483647)",
            "SELECT tenantry.settle(NULL)",
            "SELECT tenantry.settle(-9223372036854775808)",
        ):
            holder.execute(hostile.encode())
        for topic in ("", f"default'; DELETE FROM messages_{tenant.id}; --", "x" * 100_000):
            with pytest.raises(errors.UndefinedObject):
                holder.execute("SELECT FROM tenantry.receive(%s)", [topic])
        # The functions ignore objects that come first on the session's search path.
        with suppress(errors.InsufficientPrivilege):
            holder.execute("CREATE TEMP TABLE pg_stat_activity (pid integer)")
            holder.execute("CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (false)")
        # A consumer that never settles gets each message once, and takes none from the daemon.
        publish(shared, tenant, *(f"m{n}" for n in range(20)))
        ids = [row[1] for _ in range(25) for row in holder.execute(RECEIVE, [1]).fetchall()]
        assert sorted(ids) == sorted(f"m{n}" for n in range(20))
    with psycopg.connect(tenant.amqp_url, autocommit=True) as producer:
        for statement in ("SELECT tenantry.receive('default')", "SELECT tenantry.settle(1)"):
            with pytest.raises(errors.InsufficientPrivilege):
                producer.execute(statement.encode())
