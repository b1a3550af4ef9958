"""The database's primary is killed, or falls silent for good, and its standby is promoted."""

from __future__ import annotations

import time

from tests.faults.rig import Rig
from tests.faults.services import Pair


def run(rig: Rig, rounds: int) -> None:
    pair = rig.postgres
    assert isinstance(pair, Pair)
    rig.start()
    pid = rig.program.process.pid
    silent = 0.0
    with rig.load():
        for number in rig.rounds(rounds):
            rig.wait_for_some()
            # With the embedded broker, clients connect to the database itself, and would wait
            # for a silent primary for ever.
            if number % 2 or rig.broker == "embedded":
                pair.kill()
                rig.wait_not_ready()
                rig.moment(1.0)
                pair.promote()
                rig.recover(time.monotonic(), serves=True)
            else:
                # The daemon takes a while to notice the silence, and says meanwhile that it is
                # ready.
                pair.freeze()
                rig.moment(1.0)
                pair.promote()
                silent = max(silent, rig.stores_again())
            # Fenced only now: the daemon has to find the new primary while the former one is
            # still there, silent.
            pair.fence()
            rig.caught_up()
            pair.join()
    rig.program.check_running()
    assert rig.program.process.pid == pid
    if silent:
        rig.figures.notes["longest_silence"] = round(silent, 1)
