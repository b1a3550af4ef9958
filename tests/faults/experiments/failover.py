"""The database's primary is killed, or falls silent for good; its standby takes over."""

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
            # Clients of the database itself would wait for one that is silent for ever.
            if number % 2 or rig.broker == "embedded":
                pair.kill()
                rig.wait_not_ready()
                rig.moment(1.0)
                pair.promote()
                rig.recover(time.monotonic(), serves=True)
            else:
                # Silence takes its time to be noticed: so long the daemon says that it is ready.
                pair.freeze()
                rig.moment(1.0)
                pair.promote()
                silent = max(silent, rig.stores_again())
            # As late as here: who is silent may be found no sooner than somebody else is.
            pair.fence()
            rig.caught_up()
            pair.join()
    rig.program.check_running()
    assert rig.program.process.pid == pid
    if silent:
        rig.figures.notes["longest_silence"] = round(silent, 1)
