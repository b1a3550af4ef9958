"""The daemon gets SIGTERM at any moment of its start."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter

from tests.faults.rig import PATIENCE, Rig

WITHIN = 5.0
"""Seconds that a start may go on after SIGTERM."""


def run(rig: Rig, rounds: int) -> None:
    rig.start()
    rig.program.stop()
    longest, start = 0.0, _seconds_to_start(rig)
    codes: Counter[int] = Counter()
    with rig.load(rate=100):
        rig.program.stop()
        for number in rig.rounds(rounds):
            begun = len(rig.program.events("daemon.starting"))
            rig.program.spawn()
            rig.moment(start)
            began = time.monotonic()
            try:
                code = rig.program.stop(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                rig.program.kill()
                rig.figures.wrong.append(f"round {number}: it goes on starting")
                continue
            took = time.monotonic() - began
            longest = max(longest, took)
            codes[code] += 1
            rig.figures.took(took, WITHIN, f"round {number}: the end")
            # While Python is still loading, no handler can turn the signal into exit code 0.
            loading = len(rig.program.events("daemon.starting")) == begun
            if code != 0 and not (loading and code == -signal.SIGTERM):
                rig.figures.wrong.append(f"round {number}: it ended with {code}")
        rig.start_again()
        rig.caught_up()
    rig.figures.notes["longest_end_seconds"] = round(longest, 2)
    rig.figures.notes["ended_with"] = dict(codes)


def _seconds_to_start(rig: Rig) -> float:
    began = time.monotonic()
    rig.start_again()
    return time.monotonic() - began
