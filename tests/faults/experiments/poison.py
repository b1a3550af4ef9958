"""One message in a hundred is poison; the others pay at most half of their speed for it."""

from __future__ import annotations

import statistics
import time

from tests.acceptance.program import Tenant
from tests.faults.rig import PATIENCE, Rig
from tests.ledger import Draft, mixed
from tests.waiting import eventually

ONE_IN = 100
AT_MOST = 0.5
"""The share of the throughput that poison may cost."""

BACKLOGS = 3
"""Backlogs of each kind, taken in turns: a machine has other work to do as well."""

RATE = 20_000
LONGEST = 300.0


def run(rig: Rig, rounds: int) -> None:
    """Have backlogs of as many messages as there are rounds worked off."""
    rig.start(tenants=1)
    (tenant,) = rig.tenants
    rates: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(BACKLOGS):
        for poisoned, found in rates.items():
            rig.say(f"poison: a backlog {'with' if poisoned else 'without'} poison")
            found.append(_work_off(rig, tenant, rounds, poisoned=poisoned))
    clean, slowed = (statistics.median(found) for found in rates.values())
    cost = 1 - slowed / clean
    rig.figures.rounds = rounds * BACKLOGS * 2
    rig.figures.notes |= {
        "without_poison_a_second": round(clean),
        "with_poison_a_second": round(slowed),
        "cost": f"{cost:.0%}",
    }
    if cost > AT_MOST:
        rig.figures.wrong.append(f"poison costs {cost:.0%} of the throughput")


def _work_off(rig: Rig, tenant: Tenant, count: int, *, poisoned: bool) -> float:
    """Let a backlog build up while the tenant is paused; give the messages a second after."""
    _tell(rig, tenant, "pause")
    before = rig.ledger.confirmed
    with rig.load(rate=RATE, limit=count, make=_poisoned if poisoned else mixed):
        eventually(
            lambda: rig.ledger.confirmed - before >= count, timeout=LONGEST, what="a backlog"
        )
    done = _done(rig, tenant)
    began = time.monotonic()
    _tell(rig, tenant, "resume")
    eventually(lambda: _done(rig, tenant) - done >= count, timeout=LONGEST, what="its end")
    return count / (time.monotonic() - began)


def _poisoned(tenant_id: str, number: int) -> Draft:
    made = mixed(tenant_id, number)
    if number % ONE_IN:
        return made
    return Draft(
        key=made.key,
        message_id=made.message_id,
        body=b'{"no": json',
        content_type="application/json",
        fate="dead_lettered",
    )


def _done(rig: Rig, tenant: Tenant) -> int:
    runtime = rig.program.runtime(tenant)
    return int(runtime["stored"]) + int(runtime["dead_lettered"])


def _tell(rig: Rig, tenant: Tenant, what: str) -> None:
    answer = rig.program.call("POST", f"/tenants/{tenant.id}/{what}", timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
