"""Hanging actors are replaced, failing tenants parked; a fatal failure ends the process."""

from __future__ import annotations

from urllib.parse import quote

from tests.acceptance.program import Program, Tenant
from tests.ledger import Ledger
from tests.scrapes import Scrape, read
from tests.services_rabbitmq import RabbitHost
from tests.waiting import DEADLINE, eventually

HANG_SECONDS = "5"
"""Long enough for a busy machine."""


def scrape(program: Program) -> Scrape:
    return read(program.call("GET", "/metrics").text)


def test_a_worker_that_hangs_is_replaced_and_nothing_is_lost_or_doubled(
    program: Program, ledger: Ledger
) -> None:
    program.start(
        TENANTRY_SUPERVISION_HANG_SECONDS=HANG_SECONDS,
        TENANTRY_FAILPOINTS="before_commit:hang@3",
    )
    tenants = [program.create("one", workers=2), program.create("two", workers=2)]
    with ledger.publishing([(one.id, one.amqp_url) for one in tenants], rate=200):
        stuck = eventually(lambda: program.events("actor.stuck"))[0]
        assert "worker-" in stuck["stuck"]
        assert "tenantry/failpoints.py" in stuck["error"]
        ledger.wait_confirmed()
    ledger.check(alive=program.check_running)
    eventually(lambda: program.get("/status")["abandoned"] == [stuck["stuck"]])
    assert scrape(program).value("tenantry_stuck_total", kind="worker") >= 1
    assert scrape(program).value("tenantry_abandoned_threads") == 1
    assert program.call("GET", "/healthz").status_code == 200
    top = program.cli("top", "--json").json
    assert top["abandoned"] == [stuck["stuck"]]
    assert top["totals"]["stored"] == ledger.stored()
    assert program.stop() == 0
    assert program.ready_messages(*(one.queue for one in tenants)) == 0


def test_a_tenant_that_hangs_in_a_command_is_replaced_and_its_neighbour_notices_nothing(
    program: Program, ledger: Ledger
) -> None:
    program.start(
        TENANTRY_SUPERVISION_HANG_SECONDS=HANG_SECONDS,
        # Two appends make a tenant: the fifth is that of the first command after two creations.
        TENANTRY_FAILPOINTS="before_append:hang@5",
    )
    tenant, other = program.create("one"), program.create("other")
    with ledger.publishing([(one.id, one.amqp_url) for one in (tenant, other)], rate=200):
        path = f"/tenants/{tenant.id}/config/concurrency"
        answer = program.call("PUT", path, {"workers": 5}, timeout=DEADLINE)
        assert answer.status_code == 503
        assert program.wait_logged("actor.stuck")[0]["stuck"] == f"{tenant.id}/tenant"
        answer = program.call_until_taken("PUT", path, {"workers": 5})
        assert (answer.status_code, answer.json()["workers_current"]) == (200, 5)
        eventually(lambda: program.status_of("/readyz") == 200, what="readyz 200")
        ledger.wait_confirmed()
    ledger.check(alive=program.check_running)
    assert {one["tenant"] for one in program.events("tenant.restarts")} == {tenant.id}
    assert program.stop() == 0


def test_a_loop_that_hangs_ends_the_process_and_the_next_one_makes_up_for_it(
    program: Program, ledger: Ledger
) -> None:
    program.start(
        TENANTRY_SUPERVISION_HANG_SECONDS=HANG_SECONDS,
        TENANTRY_FAILPOINTS="before_ack:hang@3",
    )
    tenant = program.create()
    with ledger.publishing([(tenant.id, tenant.amqp_url)], rate=200):
        assert program.wait(DEADLINE) == 1
        (failed,) = program.events("daemon.failed")
        assert "the thread broker-consuming has hung" in failed["reason"]
        program.start()
        ledger.wait_confirmed()
    ledger.check(alive=program.check_running)
    assert program.stop() == 0


def declare_otherwise(program: Program, tenant: Tenant) -> None:
    """Replace a tenant's queue by one that conflicts with the daemon's declaration."""
    with program.connect_admin() as connection:
        channel = connection.channel()
        channel.queue_delete(tenant.queue)
        channel.queue_declare(tenant.queue, durable=True, arguments={"x-max-length": 1})


def test_a_tenant_that_keeps_failing_is_parked_seen_and_revived(
    rabbitmq: RabbitHost, database_url: str, ledger: Ledger
) -> None:
    # A daemon of its own: its log has tracebacks of the failures here, as it should.
    with Program(rabbitmq, database_url) as program:
        park(program.start(), ledger)


def park(program: Program, ledger: Ledger) -> None:
    tenant, other = program.create("one"), program.create("other")
    assert program.stop() == 0
    declare_otherwise(program, tenant)
    program.start()
    path = f"/tenants/{tenant.id}"
    eventually(lambda: program.get(path)["parked"], what="the tenant parked")
    parked = program.cli("tenant", "show", tenant.id, "--json").json
    assert "exists with other arguments" in parked["parked"]
    assert (parked["state"], parked["workers_current"]) == ("paused", 0)
    assert program.status_of("/readyz") == 200
    assert scrape(program).value("tenantry_parked", tenant_id=tenant.id) == 1
    assert scrape(program).value("tenantry_parked", tenant_id=other.id) == 0
    assert f"(since {parked['parked_at']})" in program.cli("status").stdout
    with ledger.publishing([(other.id, other.amqp_url)], rate=200):
        ledger.wait_confirmed()
    ledger.check(alive=program.check_running)

    assert program.stop() == 0
    program.start()
    again = program.get(path)
    assert (again["parked"], again["parked_at"]) == (parked["parked"], parked["parked_at"])
    queue = f"/queues/{quote(program.host.vhost, safe='')}/{tenant.queue}"
    program.management.delete(queue).raise_for_status()
    revived = program.cli("tenant", "resume", tenant.id, "--json").json
    assert (revived["state"], revived["parked"], revived["parked_at"]) == ("active", None, None)
    with ledger.publishing([(tenant.id, tenant.amqp_url)], rate=200):
        ledger.wait_confirmed()
    ledger.check(alive=program.check_running)
    types = [one["type"] for one in program.get(f"/tenants/{tenant.id}/events")["data"]]
    # The daemon may notice and repair the missing queue before the command comes.
    told = [one for one in types if one != "DriftRepaired"]
    assert told[-2:] == ["TenantParked", "TenantResumed"]
