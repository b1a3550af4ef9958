"""Workers are resized and tenants paused while messages come in, and nothing is lost."""

from __future__ import annotations

from tests.acceptance.program import Program
from tests.depth import examples
from tests.ledger import DEFAULT, Ledger, Target
from tests.waiting import eventually

TARGETS = (
    DEFAULT,
    Target(routing_key="events", topic="events", partition=0),
    Target(routing_key="events.1", topic="events", partition=1),
)


def test_workers_are_resized_under_load_and_nothing_is_lost(
    running: Program, ledger: Ledger
) -> None:
    tenant = running.create(workers=3, topics=["events"], partitions=2)
    assert tenant.shown["workers_current"] == 3
    with ledger.publishing([(tenant.id, tenant.amqp_url)], TARGETS, rate=3000):
        for workers in (8, 1):
            ledger.wait_confirmed()
            answer = running.call(
                "PUT", f"/tenants/{tenant.id}/config/concurrency", {"workers": workers}
            )
            assert answer.status_code == 200
            assert (answer.json()["workers"], answer.json()["workers_current"]) == (workers,) * 2
            shown = running.get(f"/tenants/{tenant.id}")
            assert (shown["workers"], shown["workers_current"]) == (workers, workers)
            ended = running.cli("status", "--json")
            busy = [
                actor
                for actor in ended.json["tree"]["children"][0]["children"]
                if actor["kind"] == "Worker"
            ]
            assert len(busy) <= workers
        ledger.wait_confirmed()
    ledger.check(alive=running.check_running)
    assert running.stop() == 0
    running.start()
    shown = running.get(f"/tenants/{tenant.id}")
    assert (shown["workers"], shown["workers_current"]) == (1, 1)
    with ledger.publishing([(tenant.id, tenant.amqp_url)], TARGETS):
        ledger.wait_confirmed()
    ledger.check(alive=running.check_running)
    assert running.stop() == 0
    queues = (tenant.queue, f"{tenant.stream}.events.0", f"{tenant.stream}.events.1")
    assert running.ready_messages(*queues, tenant.dead_letters) == 0


def test_a_paused_tenants_messages_wait_also_across_a_restart(
    running: Program, ledger: Ledger
) -> None:
    tenant = running.create()
    other = running.create("other")
    assert running.cli("tenant", "pause", tenant.id).code == 0
    with ledger.publishing([(tenant.id, tenant.amqp_url), (other.id, other.amqp_url)], rate=500):
        ledger.wait_confirmed()
    waiting, through = ledger.clients
    eventually(lambda: ledger.stored() == len(through.confirmed), what="the other's rows")
    assert running.ready_messages(tenant.queue) == len(waiting.confirmed)
    assert running.get(f"/tenants/{tenant.id}")["state"] == "paused"

    assert running.stop() == 0
    running.start()
    assert running.get(f"/tenants/{tenant.id}")["state"] == "paused"
    assert running.get("/status")["tenants"][tenant.id]["consuming"] is False
    assert ledger.stored() == len(through.confirmed)

    ended = running.cli("tenant", "resume", tenant.id, "--json")
    assert ended.code == 0, ended.stderr
    assert ended.json["state"] == "active"
    ledger.check(alive=running.check_running)
    assert running.stop() == 0
    assert running.ready_messages(tenant.queue, other.queue) == 0


def test_pausing_and_resuming_under_load_loses_nothing(running: Program, ledger: Ledger) -> None:
    tenant = running.create()
    with ledger.publishing([(tenant.id, tenant.amqp_url)], rate=3000):
        for _ in range(examples(2, 5)):
            ledger.wait_confirmed()
            assert running.call("POST", f"/tenants/{tenant.id}/pause").json()["state"] == "paused"
            assert running.runtime(tenant)["unsettled"] == 0
            ledger.wait_confirmed()
            assert running.call("POST", f"/tenants/{tenant.id}/resume").json()["state"] == "active"
    ledger.check(alive=running.check_running)
    assert running.stop() == 0
    assert running.ready_messages(tenant.queue) == 0
