"""The daemon ends gracefully, or at once on a second signal; nothing is lost either way."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.acceptance.program import Program, Tenant
from tests.ledger import Ledger
from tests.waiting import eventually


def stop_by_command(program: Program) -> int:
    ended = program.cli("stop", "--wait")
    assert ended.code == 0, ended.stderr
    return program.wait(0.5)


def stop_by_sigterm(program: Program) -> int:
    return program.stop(signal.SIGTERM)


def stop_by_sigint(program: Program) -> int:
    return program.stop(signal.SIGINT)


WAYS = (stop_by_sigterm, stop_by_sigint, stop_by_command)


def test_a_graceful_end_under_load_finishes_what_was_accepted(
    running: Program, ledger: Ledger
) -> None:
    tenants = [running.create("one", topics=["events"]), running.create("two", workers=1)]
    with ledger.publishing([(one.id, one.amqp_url) for one in tenants], rate=3000):
        for stop in WAYS:
            ledger.wait_confirmed()
            assert stop(running) == 0, stop.__name__
            assert not running.events("drain.orphan"), stop.__name__
            ledger.wait_confirmed()
            running.start()
        ledger.wait_confirmed()
    ledger.check(alive=running.check_running)
    assert running.stop() == 0
    assert running.ready_messages(*(one.queue for one in tenants)) == 0


def test_a_drained_daemon_answers_and_consumes_no_more(running: Program, ledger: Ledger) -> None:
    tenant = running.create()
    with ledger.publishing([(tenant.id, tenant.amqp_url)], rate=2000):
        ledger.wait_confirmed()
        ended = running.cli("drain", "--json")
        assert ended.code == 0, ended.stderr
        assert ended.json == {"state": "drained"}
        stored = ledger.stored()
        ledger.wait_confirmed()
    assert running.status_of("/readyz") == 503
    assert running.status_of("/healthz") == 200
    assert len(running.get(f"/messages?tenant_id={tenant.id}&limit=1000")["data"]) > 0
    refused = running.call("POST", "/tenants", {"name": "late", "id": running.name("late")})
    assert refused.status_code == 503
    assert refused.headers["content-type"] == "application/problem+json"
    assert ledger.stored() == stored
    assert running.ready_messages(tenant.queue) == ledger.confirmed - stored
    assert running.runtime(tenant)["unsettled"] == 0
    assert running.stop() == 0
    running.start()
    ledger.check(alive=running.check_running)


@contextmanager
def held_up(program: Program, tenant: Tenant) -> Iterator[None]:
    """Lock the row that every transaction storing the tenant's messages needs."""
    with psycopg.connect(program.database_url) as connection:
        connection.execute(
            "SELECT FROM tenantry.tenant_counters WHERE tenant_id = %s FOR UPDATE", [tenant.id]
        )
        yield


def test_a_second_signal_ends_a_drain_at_once(program: Program, ledger: Ledger) -> None:
    # Without the second signal this drain would last for an hour: the lock is held to the end.
    running = program.start(TENANTRY_SHUTDOWN_DEADLINE_SECONDS="3600")
    tenant = running.create()
    with held_up(running, tenant):
        with ledger.publishing([(tenant.id, tenant.amqp_url)], rate=500):
            ledger.wait_confirmed()
        eventually(lambda: running.runtime(tenant)["unsettled"] > 0, what="unsettled deliveries")
        running.send(signal.SIGTERM)
        running.wait_logged("drain.started")
        assert running.stop(signal.SIGTERM) == 1
    running.start()
    ledger.check(alive=running.check_running)


def test_what_is_unfinished_at_the_deadline_is_named_and_stored_after_the_next_start(
    program: Program, ledger: Ledger
) -> None:
    program.start(TENANTRY_SHUTDOWN_DEADLINE_SECONDS="1")
    tenant = program.create()
    idle = program.create("idle")
    with held_up(program, tenant):
        with ledger.publishing([(tenant.id, tenant.amqp_url)], rate=500):
            ledger.wait_confirmed()
        eventually(
            lambda: (
                program.runtime(tenant)["unsettled"] >= ledger.confirmed
                and not program.ready_messages(tenant.queue)
            ),
            what="all deliveries unsettled",
        )
        unsettled = program.runtime(tenant)["unsettled"]
        began = time.monotonic()
        # The lock that the drain waits for is still held.
        assert program.stop() == 1
        assert time.monotonic() - began >= 1
    orphans = program.events("drain.orphan")
    assert {one["tenant"] for one in orphans} == {tenant.id}
    assert idle.id not in str(orphans)
    assert all(one["actor"] for one in orphans)
    assert sum(one["deliveries"] for one in orphans) == unsettled
    program.start()
    ledger.check(alive=program.check_running)
    assert program.stop() == 0
    assert program.ready_messages(tenant.queue) == 0


def test_sigusr1_writes_every_threads_stack_and_the_daemon_lives_on(running: Program) -> None:
    tenant = running.create()
    running.send(signal.SIGUSR1)
    eventually(lambda: "Current thread" in running.stderr, what="the stacks")
    assert running.stderr.count("Thread 0x") > 5
    assert running.status_of("/readyz") == 200
    assert running.get(f"/tenants/{tenant.id}")["state"] == "active"
