"""The daemon is killed at any moment: under load, while it starts, while it catches up."""

from __future__ import annotations

import signal

from tests.faults.rig import Rig

WHILE_STARTING = 0.3
"""The share of kills that come while the daemon starts."""


def run(rig: Rig, rounds: int) -> None:
    rig.start()
    with rig.load():
        for _ in rig.rounds(rounds):
            if rig.random.random() < WHILE_STARTING and rig.figures.rounds:
                rig.program.kill()
                rig.program.spawn()
                rig.moment(2.0)
            else:
                rig.wait_for_some()
                rig.moment(0.1)
            rig.program.kill()
            assert rig.program.process.returncode == -signal.SIGKILL
            rig.start_again()
            rig.caught_up()
