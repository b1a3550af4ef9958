"""In a RabbitMQ cluster of three nodes, the one that the daemon uses is killed, and comes back."""

from __future__ import annotations

import time

from tests.faults.rig import Rig
from tests.rabbitmq_cluster import PrivateCluster


def run(rig: Rig, rounds: int) -> None:
    cluster = rig.node
    assert isinstance(cluster, PrivateCluster)
    host, settings = rig.program.host, rig.program.settings
    settings["RABBITMQ_URL"] = cluster.everywhere(host.url)
    settings["RABBITMQ_MANAGEMENT_URL"] = cluster.everywhere(host.management_url)
    rig.start()
    pid = rig.program.process.pid
    # The tenants' clients use the last node, which stays up: all they get confirmed must arrive.
    with rig.load(rate=300):
        # A quorum queue that is younger than a second does not survive a kill of its node.
        rig.ledger.wait_confirmed(30 if rig.light else 500)
        for number in rig.rounds(rounds):
            rig.wait_for_some()
            victim = cluster.nodes[(number - 1) % 2]
            victim.kill()
            began = time.monotonic()
            made = rig.program.create(f"during-{number}").shown["state"]
            assert made == "active", "a tenant that is made while a node is down"
            rig.recover(began, serves=True)
            rig.caught_up()
            victim.start()
            rig.caught_up()
    rig.program.check_running()
    assert rig.program.process.pid == pid
