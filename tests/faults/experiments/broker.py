"""The broker is stopped and killed, and comes back; the daemon stays."""

from __future__ import annotations

import time

from tests.faults.rig import Rig


def run(rig: Rig, rounds: int) -> None:
    assert rig.node is not None
    rig.start()
    pid = rig.program.process.pid
    with rig.load(rate=300):
        # A quorum queue that is younger than a second does not survive a kill of its node.
        rig.ledger.wait_confirmed(100 if rig.light else 500)
        for number in rig.rounds(rounds):
            rig.wait_for_some()
            if number % 2:
                rig.node.kill()
            else:
                rig.node.stop()
            rig.wait_not_ready()
            assert rig.program.status_of("/healthz") == 200
            rig.node.start()
            rig.recover(time.monotonic(), serves=True)
            rig.caught_up()
    rig.program.check_running()
    assert rig.program.process.pid == pid
    assert rig.program.create("after").shown["state"] == "active"
