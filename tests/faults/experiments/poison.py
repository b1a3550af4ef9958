"""One message in a hundred is poison; that may cost the others half of their throughput at most."""

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
"""Backlogs of each kind, taken in turns, as the machine may have other work as well."""

RATE = 20_000
LONGEST = 300.0

POISONS = {"none": None, "no_json": b'{"no": json', "handler_fails": b'{"poison": true}'}
"""The body of one message in a hundred; None for no poison."""

SETTINGS = {
    "TENANTRY_HANDLERS": ",".join(
        f"{topic}=tests.faults.poisonous:handle" for topic in ("default", "events")
    ),
    "TENANTRY_RETRY_ATTEMPTS": "3",
    "TENANTRY_RETRY_BACKOFF_SECONDS": "0.1,0.5",
}


def run(rig: Rig, rounds: int) -> None:
    """Let a handler work off backlogs, each of as many messages as there are rounds."""
    rig.program.settings |= SETTINGS
    rig.start(tenants=1)
    (tenant,) = rig.tenants
    rates: dict[str, list[float]] = {poison: [] for poison in POISONS}
    for _ in range(BACKLOGS):
        for poison, found in rates.items():
            rig.say(f"poison: a backlog with {poison.replace('_', ' ')}")
            found.append(_work_off(rig, tenant, rounds, POISONS[poison]))
    clean = statistics.median(rates["none"])
    rig.figures.rounds = rounds * BACKLOGS * len(POISONS)
    for poison, found in rates.items():
        rate = statistics.median(found)
        cost = 1 - rate / clean
        rig.figures.notes[poison] = f"{rate:.0f} a second, costs {cost:.0%}"
        if cost > AT_MOST:
            rig.figures.wrong.append(f"{poison}: poison costs {cost:.0%} of the throughput")


def _work_off(rig: Rig, tenant: Tenant, count: int, poison: bytes | None) -> float:
    """Let a backlog build up while the tenant is paused; return the rate of good messages after."""

    def make(tenant_id: str, number: int) -> Draft:
        made = mixed(tenant_id, number)
        if poison is None or number % ONE_IN:
            return made
        return Draft(
            key=made.key,
            message_id=made.message_id,
            body=poison,
            content_type="application/json",
            fate="dead_lettered",
        )

    good = count if poison is None else count - count // ONE_IN
    _tell(rig, tenant, "pause")
    before = rig.ledger.confirmed
    with rig.load(rate=RATE, limit=count, make=make):
        eventually(
            lambda: rig.ledger.confirmed - before >= count, timeout=LONGEST, what="a backlog"
        )
    stored = rig.program.runtime(tenant)["stored"]
    began = time.monotonic()
    _tell(rig, tenant, "resume")
    eventually(
        lambda: rig.program.runtime(tenant)["stored"] - stored >= good,
        timeout=LONGEST,
        what="the end of the backlog",
    )
    return good / (time.monotonic() - began)


def _tell(rig: Rig, tenant: Tenant, what: str) -> None:
    answer = rig.program.call("POST", f"/tenants/{tenant.id}/{what}", timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
