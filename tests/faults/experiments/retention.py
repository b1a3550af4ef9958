"""Retention removes messages; the daemon, or one of three nodes, is killed meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from tenantry.domain import names
from tests.acceptance.program import Tenant
from tests.faults.experiments import nodes
from tests.faults.rig import PATIENCE, Rig
from tests.waiting import eventually

KEPT, KEPT_LIGHT = 200, 20
"""Messages that retention keeps of each tenant."""

LONGEST_HELD = 1.5
"""Most seconds for which a removal is held up beyond its daemon's end."""

_REMOVING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND wait_event_type = 'Lock' AND query LIKE '%remove_messages%'"
)


def run(rig: Rig, rounds: int) -> None:
    rig.start()
    _limit(rig)
    with rig.load(rate=100):
        for _ in rig.rounds(rounds):
            rig.wait_for_some()
            with _removing(rig, rig.random.choice(rig.tenants)):
                rig.program.kill()
                assert rig.program.process.returncode == -signal.SIGKILL
                rig.program.spawn()
                rig.moment(LONGEST_HELD)
            rig.program.wait_ready(PATIENCE)
            rig.caught_up()
            _see_that_books_balance(rig)
    _count_removed(rig)


def on_nodes(rig: Rig, rounds: int) -> None:
    """Run the experiment `nodes` with tenants whose messages retention removes."""
    nodes.run(rig, rounds, prepare=_limit)
    _see_that_books_balance(rig)
    _count_removed(rig)


def _limit(rig: Rig) -> None:
    rig.ledger.removing = True
    kept = KEPT_LIGHT if rig.light else KEPT
    for tenant in rig.tenants:
        limits = {"retention": {"rows": kept}}
        answer = rig.program.call("PUT", f"/tenants/{tenant.id}/limits", limits, timeout=PATIENCE)
        assert answer.status_code == 200, answer.text


@contextmanager
def _removing(rig: Rig, tenant: Tenant) -> Iterator[None]:
    """Hold a removal up midway, by a lock on the first row that it has to remove."""
    url = rig.program.database_url
    first = sql.SQL("SELECT FROM {} ORDER BY position LIMIT 1 FOR UPDATE").format(
        sql.Identifier("tenantry", names.partition_table_name(tenant.id))
    )
    with psycopg.connect(url) as holding, psycopg.connect(url, autocommit=True) as looking:
        holding.execute(first)
        eventually(
            lambda: looking.execute(_REMOVING).fetchone() != (0,),
            timeout=PATIENCE,
            what="a removal that is under way",
        )
        yield


def _see_that_books_balance(rig: Rig) -> None:
    for tenant in rig.tenants:
        eventually(
            lambda of=tenant: rig.program.get(f"/tenants/{of.id}/audit")["balanced"],
            timeout=PATIENCE,
            what=f"books of {tenant.id} that balance",
        )


def _count_removed(rig: Rig) -> None:
    removed = sum(rig.program.get(f"/tenants/{one.id}/audit")["removed"] for one in rig.tenants)
    rig.figures.notes["removed"] = str(removed)
    if not removed:
        rig.figures.wrong.append("nothing was removed")
