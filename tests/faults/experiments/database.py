"""The database is killed, or stopped by `pg_ctl stop -m immediate`; the daemon stays up."""

from __future__ import annotations

import time

from tests.faults.rig import Rig


def run(rig: Rig, rounds: int) -> None:
    assert rig.postgres is not None
    rig.start()
    pid = rig.program.process.pid
    with rig.load():
        for number in rig.rounds(rounds):
            rig.wait_for_some()
            if number % 2:
                rig.postgres.kill()
            else:
                rig.postgres.stop_immediately()
            rig.wait_not_ready()
            assert rig.program.status_of("/healthz") == 200
            rig.moment(1.0)
            rig.postgres.start()
            rig.recover(time.monotonic(), serves=True)
            rig.caught_up()
    rig.program.check_running()
    assert rig.program.process.pid == pid
