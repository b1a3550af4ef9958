"""Partitions keep their order: handlers fail, the daemon is killed, stopped, paused, resized."""

from __future__ import annotations

import signal

from tests.acceptance.program import Tenant
from tests.faults.experiments import nodes
from tests.faults.rig import PATIENCE, Rig

SETTINGS = {
    "TENANTRY_HANDLERS": "events=tests.faults.flaky:handle",
    "TENANTRY_RETRY_ATTEMPTS": "50",
    "TENANTRY_RETRY_BACKOFF_SECONDS": "0.05,0.2",
}
"""A kill costs each message in flight an attempt; with 50, no message runs out of them."""

TOPIC = {"name": "events", "partitions": 2, "ordering": "partition"}


def run(rig: Rig, rounds: int) -> None:
    rig.program.settings |= SETTINGS
    rig.ledger.ordered.add("events")
    rig.start(topic=TOPIC)
    with rig.load(rate=100):
        for number in rig.rounds(rounds):
            rig.wait_for_some()
            rig.moment(0.2)
            match rig.random.choice(("kill", "kill", "stop", "pause", "resize")):
                case "kill":
                    rig.program.kill()
                    assert rig.program.process.returncode == -signal.SIGKILL
                    rig.start_again()
                case "stop":
                    assert rig.program.stop() == 0
                    rig.start_again()
                case "pause":
                    for tenant in rig.tenants:
                        _tell(rig, tenant, "POST", "pause")
                        _tell(rig, tenant, "POST", "resume")
                case _:
                    for tenant in rig.tenants:
                        workers = {"workers": 1 + number % 5}
                        _tell(rig, tenant, "PUT", "config/concurrency", workers)
            rig.caught_up()


def on_nodes(rig: Rig, rounds: int) -> None:
    """Run the experiment `nodes` with topics whose partitions are in order."""
    rig.ledger.ordered.add("events")
    nodes.run(rig, rounds, topic=TOPIC, settings=SETTINGS, rate=30)


def _tell(rig: Rig, tenant: Tenant, method: str, what: str, body: object = None) -> None:
    answer = rig.program.call(method, f"/tenants/{tenant.id}/{what}", body, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
