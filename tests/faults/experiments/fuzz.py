"""Odd and malformed bodies, properties and headers are published, by AMQP or in SQL."""

from __future__ import annotations

from tests.faults.payloads import Fuzz
from tests.faults.rig import Rig
from tests.waiting import eventually

TENANTS = 3
LONGEST = 1_800.0
RATE = 2_000


def run(rig: Rig, rounds: int) -> None:
    """Publish as many messages as there are rounds."""
    rig.start(tenants=TENANTS)
    each = -(-rounds // TENANTS)
    fuzz = Fuzz(rig.figures.seed)
    make = fuzz.in_sql if rig.program.broker is None else fuzz
    with rig.load(rate=RATE, make=make, limit=each):
        eventually(
            lambda: _progress(rig) >= each * TENANTS,
            timeout=LONGEST,
            what="confirms for all messages",
        )
    rig.figures.rounds = each * TENANTS
    eventually(
        lambda: rig.ledger.follow() + rig.ledger.dead_letters() >= rig.ledger.confirmed,
        timeout=LONGEST,
        what="a row or a dead letter for each message",
    )
    _see_that_nothing_was_shaken(rig)


def _progress(rig: Rig) -> int:
    rig.program.check_running()
    confirmed = rig.ledger.confirmed
    rig.say(f"fuzz: {confirmed} messages")
    return confirmed


def _see_that_nothing_was_shaken(rig: Rig) -> None:
    """Check that no actor failed, no connection was lost, no message was delivered again."""
    for name in (
        "actor.failed",
        "tenant.parked",
        "broker.connection_lost",
        "consumer.channel_lost",
    ):
        if found := rig.program.events(name):
            rig.figures.wrong.append(f"{len(found)} times {name}: {found[0].get('error')}")
    rig.count_duplicates()
    if rig.figures.duplicates:
        rig.figures.wrong.append(f"{rig.figures.duplicates} messages were delivered again")
