"""The leading daemon is frozen under load, a standby takes over, and the frozen one wakes up."""

from __future__ import annotations

import signal
import time

from tests.acceptance.program import Program
from tests.faults.rig import PATIENCE, Rig
from tests.waiting import eventually

TAKEOVER = 15.0
"""Seconds within which the contract promises that a standby takes over."""


def run(rig: Rig, rounds: int) -> None:
    other = rig.stack.enter_context(Program(rig.program.host, rig.program.database_url))
    for one in (rig.program, other):
        one.settings["TENANTRY_NODE_STANDBY"] = "true"
    rig.start()
    takeovers = []
    with rig.load():
        for number in rig.rounds(rounds):
            _stand_by(other)
            rig.wait_for_some()
            rig.moment(0.2)
            frozen = rig.program
            frozen.send(signal.SIGSTOP)
            began = time.monotonic()
            other.wait_ready(PATIENCE)
            takeovers.append(time.monotonic() - began)
            rig.figures.took(takeovers[-1], TAKEOVER, f"round {number}: takeover")
            # It wakes at once, or when the new leader is well into its work.
            rig.moment(1.0)
            frozen.send(signal.SIGCONT)
            if (code := frozen.wait(PATIENCE)) != 1:
                rig.figures.wrong.append(f"round {number}: who lost the term ended with {code}")
            rig.program, other = other, frozen
            rig.ledger.wait_confirmed(1, timeout=PATIENCE)
            rig.caught_up()
    rig.figures.notes["longest_takeover_seconds"] = round(max(takeovers), 1)


def _stand_by(program: Program) -> None:
    program.spawn()
    eventually(lambda: program.status_of("/healthz") == 200, timeout=PATIENCE, what="a standby")
    assert program.status_of("/readyz") == 503
