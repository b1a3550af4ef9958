"""A tenant reads its own rows with SQL: over the command line, the API and a real login."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests.acceptance.program import Program
from tests.acceptance.test_metrics import publish
from tests.waiting import eventually


def test_a_tenant_reads_its_rows_with_sql_until_it_is_revoked_or_deleted(shared: Program) -> None:
    tenant, other = shared.create(), shared.create("other")
    for one in (tenant, other):
        publish(one, "1", "2")
        eventually(lambda one=one: shared.runtime(one)["stored"] == 2)  # type: ignore[misc]
    granted = shared.cli("tenant", "sql-access", tenant.id, "--json")
    assert granted.code == 0, granted.stderr
    url = granted.json["url"]
    with psycopg.connect(url, autocommit=True) as connection:
        assert connection.info.user == granted.json["username"]
        found = connection.execute("SELECT tenant_id, id FROM messages ORDER BY id")
        assert found.fetchall() == [(tenant.id, "1"), (tenant.id, "2")]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM tenantry.events")
    shown = shared.cli("tenant", "sql-access", other.id)
    assert "The password is shown this once" in shown.stderr

    # The daemon goes on storing, creating and deleting beside it.
    publish(tenant, "3")
    eventually(lambda: shared.runtime(tenant)["stored"] == 3)
    assert shared.cli("tenant", "sql-access", tenant.id, "--revoke").code == 0
    with pytest.raises(psycopg.OperationalError, match=r"does not exist|authentication failed"):
        psycopg.connect(url)
    again = shared.call("POST", f"/tenants/{tenant.id}/sql-access").json()["url"]
    with hostile_sessions(again) as holding:
        assert shared.call("DELETE", f"/tenants/{other.id}").status_code == 204
        with pytest.raises(psycopg.OperationalError):
            holding.execute("SELECT 1")
    assert shared.call("DELETE", f"/tenants/{tenant.id}").status_code == 204
    with pytest.raises(psycopg.OperationalError, match=r"does not exist|authentication failed"):
        psycopg.connect(again)
    types = [one["type"] for one in shared.get("/events?limit=500")["data"]]
    assert types.count("SqlAccessGranted") == 3
    assert types.count("SqlAccessRevoked") == 1
    password = granted.json["password"]
    assert password not in shared.stderr
    with psycopg.connect(shared.database_url) as connection:
        events = connection.execute("SELECT string_agg(data::text, '') FROM tenantry.events")
        assert password not in str(events.fetchone())
        left = connection.execute("SELECT * FROM tenantry.sql_roles").fetchall()
    assert left == []


@contextmanager
def hostile_sessions(url: str) -> Iterator[psycopg.Connection]:
    """Hold all that a tenant can: two overlapping transactions that read; and, in the session that
    is yielded, a lock on the table of all tenants, which the tenant may name though not read."""
    with psycopg.connect(url) as one, psycopg.connect(url) as two, psycopg.connect(url) as three:
        for reading in (one, two):
            reading.execute("SELECT count(*) FROM messages")
        three.execute("PREPARE held AS SELECT FROM public.messages")
        yield three
        for reading in (one, two):
            reading.execute("SELECT count(*) FROM messages")


def test_a_forged_notice_neither_wakes_nor_stops_those_who_follow_the_journal(
    shared: Program,
) -> None:
    with psycopg.connect(shared.database_url, autocommit=True) as connection:
        for payload in ("9" * 7999, "9999999999", "", "nonsense"):
            connection.execute("SELECT tenantry.tell('events', %s)", [payload])
    tenant = shared.create()
    page = shared.get(f"/tenants/{tenant.id}/events")
    waited = shared.get(f"/tenants/{tenant.id}/events?wait=0.5&cursor={page['next_cursor']}")
    assert waited["data"] == []
    assert shared.call("POST", f"/tenants/{tenant.id}/pause").status_code == 200
    waited = shared.get(f"/tenants/{tenant.id}/events?wait=20&cursor={page['next_cursor']}")
    assert [one["type"] for one in waited["data"]] == ["TenantPaused"]
