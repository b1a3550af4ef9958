"""The daemon gets SIGTERM under load; it finishes what it has accepted, and is started again."""

from __future__ import annotations

import time

from tests.faults.rig import Rig


def run(rig: Rig, rounds: int) -> None:
    rig.start()
    longest = 0.0
    with rig.load():
        for number in rig.rounds(rounds):
            rig.wait_for_some()
            rig.moment(0.1)
            began = time.monotonic()
            code = rig.program.stop()
            longest = max(longest, time.monotonic() - began)
            if code != 0:
                rig.figures.wrong.append(f"round {number}: exit {code}")
            rig.start_again()
            rig.caught_up()
    rig.figures.notes["longest_end_seconds"] = round(longest, 2)
