"""A tenant is deleted and created again: what the former one leaves, and who can read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
import jwt
import psycopg
import pytest
from psycopg import sql

from tests.acceptance.program import Program
from tests.acceptance.test_front import free_port
from tests.waiting import DEADLINE, eventually

SECRET: Final = "a secret of the operator's, sixty-four bytes long or a little more..."

KEPT: Final = "the journal, or what is made of it"
ASIDE: Final = "put aside, if it was retained"
GONE: Final = "gone with the tenant"
NAMES: Final = "names, to be waited for or of roles, which say nothing of a tenant"
NOBODYS: Final = "of no tenant, or by keys that name none"

FATES: Final = {
    "public.messages": ASIDE,
    "tenantry.archived_streams": KEPT,
    "tenantry.attempts": GONE,
    "tenantry.backlog_parts": GONE,
    "tenantry.bindings": GONE,
    "tenantry.broker_limits": GONE,
    "tenantry.channels": NOBODYS,
    "tenantry.consumer_credentials": GONE,
    "tenantry.consumer_groups": GONE,
    "tenantry.consumer_leases": GONE,
    "tenantry.consumers": NOBODYS,
    "tenantry.credentials": GONE,
    "tenantry.current_segment": NOBODYS,
    "tenantry.dead_letters": GONE,
    "tenantry.ended_sessions": NAMES,
    "tenantry.events": KEPT,
    "tenantry.idempotency_keys": NOBODYS,
    "tenantry.iggy_offsets": GONE,
    "tenantry.iggy_rejected": GONE,
    "tenantry.iggy_users": GONE,
    "tenantry.installation": NOBODYS,
    "tenantry.journal_head": NOBODYS,
    "tenantry.journal_parts": NOBODYS,
    "tenantry.locks": NAMES,
    "tenantry.nodes": NOBODYS,
    "tenantry.owners": NAMES,
    "tenantry.projection_checkpoints": NOBODYS,
    "tenantry.queued": GONE,
    "tenantry.queues": GONE,
    "tenantry.refused_publishes": GONE,
    "tenantry.rejected": GONE,
    "tenantry.remembered_slices": NOBODYS,
    "tenantry.removals": GONE,
    "tenantry.retained": ASIDE,
    "tenantry.schema_migrations": NOBODYS,
    "tenantry.snapshots": KEPT,
    "tenantry.sql_roles": GONE,
    "tenantry.statistics": GONE,
    "tenantry.statistics_marks": GONE,
    "tenantry.tenant_counters": ASIDE,
    "tenantry.tenants": KEPT,
    "tenantry.terms": NOBODYS,
    "tenantry.walks": GONE,
}
"""The fate of each table's rows when a tenant is deleted and another gets its id."""

WITH_THE_COUNTS = {
    "tenantry.refused_publishes", "tenantry.removals", "tenantry.statistics",
    "tenantry.statistics_marks",
}  # fmt: skip
"""Tables whose rows go with the counts: if messages are retained, when the id is given again."""


@pytest.fixture
def embedded(database_url: str) -> Iterator[tuple[Program, httpx.Client]]:
    """A daemon with tokens on its embedded broker, and a client of its front."""
    port = free_port()
    with (
        Program(None, database_url) as program,
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE, trust_env=False
        ) as front,
    ):
        program.settings = {"TENANTRY_SERVER_PORT": str(port), "TENANTRY_JWT_SECRET": SECRET}
        yield program.start(), front
        program.check_no_traceback()


def bearer(tenant_id: str, iat: float | None) -> dict[str, str]:
    claims: dict[str, Any] = {
        "scope": "tenant",
        "tenant_id": tenant_id,
        "exp": datetime.now(UTC) + timedelta(hours=1),
    }
    if iat is not None:
        claims["iat"] = iat
    return {"Authorization": f"Bearer {jwt.encode(claims, SECRET, algorithm='HS256')}"}


def tables(connection: psycopg.Connection) -> list[str]:
    """Return the names of all tables, without the tenants' own and partitions of others."""
    found = connection.execute(
        "SELECT n.nspname || '.' || c.relname FROM pg_class AS c"
        " JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname IN ('public', 'tenantry') AND c.relkind IN ('r', 'p')"
        " AND NOT c.relispartition AND c.relname !~ '^(retained|messages)_' ORDER BY 1"
    )
    return [name for (name,) in found]


def naming(connection: psycopg.Connection, tenant_id: str) -> set[str]:
    """Return the tables with a row that contains the tenant's id, or with any row of a queue."""
    found = set()
    for name in tables(connection):
        rows = connection.execute(
            sql.SQL("SELECT FROM {} AS one WHERE strpos(one::text, %s) > 0 LIMIT 1").format(
                sql.Identifier(*name.split("."))
            ),
            ["" if name in {"tenantry.queued", "tenantry.rejected"} else tenant_id],
        )
        found |= {name} if rows.rowcount else set()
    return found


def test_nothing_of_a_former_tenant_reaches_the_one_that_has_its_id(
    embedded: tuple[Program, httpx.Client],
) -> None:
    program, front = embedded
    tenant = program.create(topics=["logs"])
    path = f"/tenants/{tenant.id}"
    page = f"/messages?tenant_id={tenant.id}"
    made_at = datetime.now(UTC).timestamp()
    old, oldest = bearer(tenant.id, made_at), bearer(tenant.id, float(int(made_at)))
    program.call("PUT", f"{path}/limits", {"backlog": {"messages": 1000}})
    assert front.post(
        f"{path}/messages", json={"payload": "old", "id": "m"}, headers=old
    ).is_success
    with psycopg.connect(tenant.amqp_url, autocommit=True) as session:
        session.execute("SELECT tenantry.publish_bytes('default', '{no', NULL, id => 'bad')")
    program.call("POST", f"{path}/sql-access")
    program.call("POST", f"{path}/consumer-access")
    eventually(lambda: program.runtime(tenant)["dead_lettered"] == 1, what="a dead letter")
    eventually(lambda: not program.ready_messages(tenant.queue), what="an empty queue")
    first = eventually(lambda: (p := program.get(page))["data"] and p, what="a row")
    with psycopg.connect(program.database_url, autocommit=True) as connection:
        assert set(tables(connection)) == FATES.keys()
        there = naming(connection, tenant.id)
        assert {name for name, fate in FATES.items() if fate is GONE} - there <= {
            "tenantry.attempts",  # only if handlers fail
            "tenantry.consumer_leases",  # only while a batch is not settled
            "tenantry.iggy_offsets",  # only on Iggy
            "tenantry.iggy_rejected",
            "tenantry.iggy_users",
            "tenantry.statistics",  # only once a minute is over
            "tenantry.statistics_marks",
            "tenantry.refused_publishes",  # only if a limit refuses messages
            "tenantry.removals",  # only with a retention
            "tenantry.queued",  # empty once all is stored
            "tenantry.walks",  # only while dead letters are browsed
        }
        assert program.call("DELETE", f"{path}?retain=true").status_code == 204
        # A browse of its dead letters may be under way, and ends soon.
        left = eventually(
            lambda: "tenantry.walks" not in (found := naming(connection, tenant.id)) and found
        )
        surprising = {name for name in left if FATES[name] not in {KEPT, ASIDE, NAMES}}
        assert surprising <= WITH_THE_COUNTS
        # The rows are kept, and the former tenant can still read them.
        assert front.get(page, headers=old).json()["data"] == first["data"]

        again = program.create(topics=["logs"])
        assert again.id == tenant.id
        assert again.password != tenant.password
        (counted,) = connection.execute(
            "SELECT stored + duplicates + dead_lettered + position FROM tenantry.tenant_counters"
            " WHERE tenant_id = %s", [tenant.id]
        ).fetchall()  # fmt: skip
        assert counted == (0,)
    new = bearer(tenant.id, datetime.now(UTC).timestamp())
    for stale in (old, oldest, bearer(tenant.id, None)):
        for asked in (page, f"{path}/messages/m", path, f"{path}/events", f"{path}/dead-letters"):
            answer = front.get(asked, headers=stale)
            assert (answer.status_code, asked) == (401, asked)
            assert "created anew" in answer.json()["detail"]
        sent = front.post(f"{path}/messages", json={"payload": 1}, headers=stale)
        assert sent.status_code == 401
    assert front.get(page, headers=new).json()["data"] == []
    assert front.get(f"{path}/messages/m", headers=new).status_code == 404
    assert front.get(f"{path}/dead-letters", headers=new).json()["data"] == []
    cursor = front.get(page, params={"cursor": first["follow_cursor"]}, headers=new)
    assert cursor.status_code == 400
    # The same message id in the new tenant is another message.
    body = {"payload": "new", "id": "m"}
    assert front.post(f"{path}/messages", json=body, headers=new).status_code == 202
    shown = eventually(
        lambda: (a := front.get(f"{path}/messages/m", headers=new)).is_success and a.json(),
        what="the new message",
    )
    assert (shown["payload"], shown["position"]) == ("new", 1)
    assert program.get(f"{page}&incarnation=1")["data"] == first["data"]
    listed = program.cli("messages", tenant.id, "--incarnation", "1", "--json")
    assert json.loads(listed.stdout) == first["data"]
    audit = program.get(f"{path}/audit")
    assert (audit["balanced"], audit["stored"], audit["rows"]) == (True, 1, 1)
    # After another deletion with its rows kept, both former tenants' rows can be read, also after
    # a restart.
    assert program.call("DELETE", f"{path}?retain=true").status_code == 204
    program.create()
    assert program.stop() == 0
    program.start()
    assert program.get(f"{page}&incarnation=1")["data"] == first["data"]
    assert [one["payload"] for one in program.get(f"{page}&incarnation=2")["data"]] == ["new"]
    assert program.get(page)["data"] == []
    assert program.get(path)["incarnation"] == 3
