"""The daemon's own proof of isolation, on a real broker and a real database."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import psycopg

from tests.acceptance.program import Program, Tenant
from tests.acceptance.test_metrics import publish, scrape
from tests.waiting import DEADLINE, eventually


def allow(program: Program, tenant: Tenant, *, user: str = "", **rights: str) -> None:
    vhost, user = quote(program.host.vhost, safe=""), quote(user or tenant.user, safe="")
    path = f"/permissions/{vhost}/{user}"
    now = program.management.get(path).raise_for_status().json()
    body = {name: now[name] for name in ("configure", "write", "read")} | rights
    program.management.put(path, json=body).raise_for_status()


def probes_left(program: Program) -> list[str]:
    users = program.management.get("/users").raise_for_status().json()
    with psycopg.connect(program.database_url) as connection:
        roles = connection.execute("SELECT role FROM tenantry.sql_roles WHERE probe").fetchall()
    # Other tests' daemons have probes of their own meanwhile.
    mine = [one for one in users if one["name"].startswith(prefix(program))]
    return [str(one) for one in (*mine, *roles)]


def prefix(program: Program) -> str:
    import hashlib

    return f"tenantry_probe_{hashlib.sha256(program.host.vhost.encode()).hexdigest()[:8]}_"


def test_it_is_proven_without_any_password_and_every_leak_is_found(program: Program) -> None:
    # No drift may be repaired meanwhile.
    program.settings["TENANTRY_RECONCILE_EVERY_SECONDS"] = "86400"
    program.start()
    one, other = program.create(topics=["events"]), program.create("other", topics=["events"])
    for tenant in (one, other):
        publish(tenant, "1")
        eventually(lambda tenant=tenant: program.runtime(tenant)["stored"] == 1)  # type: ignore[misc]
    proof = program.cli("verify-isolation", "--probe", "--json", timeout=DEADLINE)
    assert proof.code == 0, (proof.stdout, proof.stderr)
    assert proof.json["isolated"] is True
    tried = {(check["owner"], check["target"]) for check in proof.json["checks"]}
    assert (other.id, f"{other.stream} (by deleting it)") in tried
    assert (other.id, f"tenantry.messages_{other.id}") in tried
    assert (one.id, "/api/queues (the management API)") in tried
    assert probes_left(program) == []
    publish(one, "2")  # the password is as it was
    eventually(lambda: program.runtime(one)["stored"] == 2)
    assert f"tenant_{one.id}_consumer.default" not in {target for _, target in tried}

    # If the tenant has consumer access, that user is tried, too.
    assert program.call("POST", f"/tenants/{one.id}/consumer-access").status_code == 200
    consumer, group = f"tenant_{one.id}_consumer", f"tenant_{one.id}_consumer.default"
    allow(program, one, user=consumer, write=f"^{other.stream}$", read=f"^({group}|{one.queue})$")
    found = program.call("POST", "/isolation", {"tenants": [one.id]}, timeout=DEADLINE).json()
    verb = f"tenant {one.id} is allowed"
    assert sorted(found["leaks"]) == sorted(
        [
            f"{verb} to read from its own {one.queue} (as its reader)",
            f"{verb} to write to {other.stream} of tenant {other.id}",
        ]
    )
    assert found["denials"] == [
        f"tenant {one.id} is refused to read from its own tenant_{one.id}_consumer.events"
    ]
    assert program.call("DELETE", f"/tenants/{one.id}/consumer-access").status_code == 204
    assert probes_left(program) == []

    # Let one tenant reach the other's objects, on the broker and in the database.
    allow(program, one, read=f"^({one.queue}|{other.dead_letters})$", configure=f"^{other.queue}$")
    with psycopg.connect(program.database_url, autocommit=True) as connection:
        connection.execute("CREATE POLICY careless ON messages FOR SELECT USING (true)")
        connection.execute("GRANT SELECT ON messages TO PUBLIC")
        broken = program.call("POST", "/isolation", {"tenants": [one.id]}, timeout=DEADLINE).json()
        connection.execute("REVOKE SELECT ON messages FROM PUBLIC")
        connection.execute("DROP POLICY careless ON messages")
    assert broken["isolated"] is False
    verb = f"tenant {one.id} is allowed"
    assert sorted(broken["leaks"]) == sorted(
        [
            f"{verb} to read from {other.dead_letters} of tenant {other.id}",
            f"{verb} to change {other.queue} of tenant {other.id}",
            f"{verb} to read from public.messages of tenant {other.id}",
            f"{verb} to read from its own public.messages",
        ]
    )
    assert [line.split(" its own ")[1] for line in broken["denials"]] == [f"{one.stream}.events.0"]
    allow(program, one, read=f"^({one.queue}|{one.stream}\\.events\\.0)$", configure="^$")
    assert program.call("POST", "/isolation", {}, timeout=DEADLINE).json()["isolated"] is True
    found = [
        event
        for event in program.get("/events?limit=500")["data"]
        if event["stream"] == "isolation"
    ]
    assert [event["type"] for event in found] == [
        "IsolationVerified", "IsolationViolated", "IsolationViolated", "IsolationVerified",
    ]  # fmt: skip
    assert set(found[2]["data"]["failures"]) == {*broken["leaks"], *broken["denials"]}
    assert found[1]["tenant_id"] is None
    assert probes_left(program) == []


def test_the_daemon_proves_it_by_itself_and_tells(program: Program) -> None:
    program.settings["TENANTRY_ISOLATION_VERIFY_EVERY_SECONDS"] = "0.5"
    program.start()
    one, other = program.create(), program.create("other")
    # A role that was granted too much by hand, behind the daemon's back.
    granted = program.call("POST", f"/tenants/{one.id}/sql-access").json()
    metric = "tenantry_isolation_failures"
    eventually(lambda: scrape(program).value(metric) == 0, what="a proof")
    with psycopg.connect(program.database_url, autocommit=True) as connection:
        user = psycopg.sql.Identifier(granted["username"])
        for words in ("GRANT USAGE ON SCHEMA tenantry TO {}", "GRANT SELECT ON {} TO {}"):
            table = psycopg.sql.Identifier("tenantry", f"messages_{other.id}")
            names = (user,) if "SCHEMA" in words else (table, user)
            connection.execute(psycopg.sql.SQL(words).format(*names))
    eventually(lambda: scrape(program).value(metric) == 2, what="the leak")
    failures: set[Any] = {one["failure"] for one in program.wait_logged("isolation.violated", 2)}
    assert any(f'rights on tenantry."messages_{other.id}"' in one for one in failures)
    assert program.stop() == 0
    assert probes_left(program) == []
