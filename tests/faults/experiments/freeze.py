"""The network to the broker, or to the database, carries nothing and closes no connection."""

from __future__ import annotations

import time

from tests.faults.rig import Rig


def run(rig: Rig, rounds: int) -> None:
    proxies = {"database": rig.proxy_to_database(), "broker": rig.proxy_to_broker()}
    rig.start()
    noticed: dict[str, float] = dict.fromkeys(proxies, 0.0)
    with rig.load(rate=200):
        for number in rig.rounds(rounds):
            for which, proxy in proxies.items():
                rig.wait_for_some()
                proxy.freeze()
                try:
                    noticed[which] = max(noticed[which], rig.wait_not_ready())
                finally:
                    proxy.thaw()
                rig.recover(time.monotonic())
                rig.caught_up()
            rig.figures.rounds = number
    rig.program.check_running()
    for which, seconds in noticed.items():
        rig.figures.notes[f"{which}_not_ready_after_seconds"] = round(seconds, 1)
