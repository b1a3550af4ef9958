"""The daemon is told to end at any moment of its start."""

from __future__ import annotations

import subprocess
import time
from collections import Counter

from tests.faults.rig import Rig

WITHIN = 5.0
"""Seconds a start may go on once it has been told to end."""

START = 2.5
"""Seconds a start takes, on a machine that has other work to do as well."""


def run(rig: Rig, rounds: int) -> None:
    rig.start()
    longest = 0.0
    codes: Counter[int] = Counter()
    with rig.load(rate=100):
        rig.program.stop()
        for number in rig.rounds(rounds):
            rig.program.spawn()
            rig.moment(START)
            began = time.monotonic()
            try:
                code = rig.program.stop(timeout=4 * WITHIN)
            except subprocess.TimeoutExpired:
                rig.program.kill()
                rig.figures.wrong.append(f"round {number}: it goes on starting")
                continue
            took = time.monotonic() - began
            longest = max(longest, took)
            codes[code] += 1
            if took > WITHIN:
                rig.figures.wrong.append(f"round {number}: it took {took:.1f} s to end")
        rig.start_again()
        rig.caught_up()
    if codes[0] != sum(codes.values()):
        rig.figures.wrong.append(f"not all ended with 0: {dict(codes)}")
    rig.figures.notes["longest_end_seconds"] = round(longest, 2)
