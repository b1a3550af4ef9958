"""The daemon kills itself at the worst places: before a commit, after it, before the ack."""

from __future__ import annotations

import signal

from tests.faults.rig import PATIENCE, Rig

POINTS = ("before_commit", "after_commit", "before_ack", "after_ack")
LATEST, LATEST_LIGHT = 40, 15
"""A failpoint kills at its Nth pass, with N drawn from 1 up to this."""

CATCH_UP_EVERY = 8
"""Rounds after which the daemon may catch up; until then one kill follows the other."""


def run(rig: Rig, rounds: int) -> None:
    rig.start()
    with rig.load():
        rig.program.stop()
        for number in rig.rounds(rounds):
            point = POINTS[(number - 1) % len(POINTS)]
            hit = rig.random.randint(1, LATEST_LIGHT if rig.light else LATEST)
            rig.program.spawn(TENANTRY_FAILPOINTS=f"{point}:kill@{hit}")
            assert rig.program.wait(PATIENCE) == -signal.SIGKILL, "it was to kill itself"
            if number % CATCH_UP_EVERY == 0:
                rig.start_again()
                rig.caught_up()
                rig.program.stop()
        rig.start_again()
        rig.caught_up()
    rig.figures.notes["places"] = ", ".join(POINTS)
