"""Tenants that compete on one daemon get their shares by weight."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from typing import NamedTuple

import psycopg
import pytest
from psycopg import sql

from tenantry.domain import names
from tenantry.tenant_client.amqp import TenantMessage
from tenantry.tenant_client.connecting import client_for
from tests.acceptance.program import Program, Tenant
from tests.waiting import eventually

HEAVY, LIGHT = 3, 1
"""The tenants' weights."""

BACKLOG = {HEAVY: 7_000, LIGHT: 2_600}
"""More for the tenant that stores faster, so that both have messages to the end."""

BATCH = 100
SETTLING, FEWEST = 5, 10
"""Batches of each left out at both ends, and how many of the light one must remain between."""

SETTINGS = {
    "TENANTRY_CONSUMER_BATCH_SIZE": str(BATCH),
    # Room for three of these batches, and connections for five: both tenants' workers wait.
    "TENANTRY_CONSUMER_STORED_AT_ONCE": "0.3",
    "TENANTRY_DATABASE_POOL_SIZE": "6",
}
PREFETCH = 4000

SLOWLY = """
CREATE TABLE public.gate ();
CREATE FUNCTION public.slowly() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM FROM public.gate; PERFORM pg_sleep(0.01); RETURN NULL; END $$
"""
"""Makes the database the bottleneck, however many processors there are; and stores nothing while
the table `gate` is locked."""


class Stored(NamedTuple):
    """A batch that was stored."""

    tenant_id: str
    at: datetime
    rows: int


@contextmanager
def gate_closed(program: Program) -> Iterator[None]:
    with psycopg.connect(program.database_url) as connection:
        connection.execute("LOCK TABLE public.gate")
        yield


def make_storing_slow(program: Program, *tenants: Tenant) -> None:
    with psycopg.connect(program.database_url, autocommit=True) as connection:
        connection.execute(SLOWLY)
        for one in tenants:
            table = sql.Identifier("tenantry", names.partition_table_name(one.id))
            connection.execute(
                sql.SQL(
                    "CREATE TRIGGER slowly AFTER INSERT ON {}"
                    " FOR EACH STATEMENT EXECUTE FUNCTION public.slowly()"
                ).format(table)
            )


def pile_up(program: Program, tenant: Tenant, count: int) -> None:
    assert program.call("POST", f"/tenants/{tenant.id}/pause").is_success
    with closing(client_for(tenant.amqp_url, name="test")) as client:
        client.open()
        for _ in range(0, count, BATCH):
            batch = [
                TenantMessage(routing_key="default", body=b"{}", message_id=uuid.uuid4().hex)
                for _ in range(BATCH)
            ]
            result = client.publish(tenant.stream, batch)
            assert len(result.confirmed) == BATCH, result.reason


def batches(program: Program) -> list[Stored]:
    """Return all stored batches, in order: each has a time of its own."""
    with psycopg.connect(program.database_url) as connection:
        rows = connection.execute(
            "SELECT tenant_id, created_at, count(*) FROM public.messages"
            " GROUP BY tenant_id, created_at ORDER BY created_at"
        ).fetchall()
    return [Stored(*row) for row in rows]


def shares(stored: list[Stored], heavy: Tenant, light: Tenant) -> tuple[int, int]:
    """Count both tenants' rows between two batches of the light one, while both have a backlog.

    So turns are counted, however long they took.
    """
    times = [[one.at for one in stored if one.tenant_id == of.id] for of in (heavy, light)]
    began, ended = max(of[SETTLING] for of in times), min(of[-SETTLING] for of in times)
    while_both = [at for at in times[1] if began <= at < ended]
    assert len(while_both) > FEWEST, "they have hardly competed"
    since, until = while_both[0], while_both[-1]
    rows = [
        sum(one.rows for one in stored if one.tenant_id == of.id and since < one.at <= until)
        for of in (heavy, light)
    ]
    return rows[0], rows[1]


@pytest.mark.parametrize("workers", [8, 1], ids=["by turns", "with one batch at a time"])
def test_of_two_that_compete_one_with_three_times_the_weight_stores_three_times_as_much(
    program: Program, workers: int
) -> None:
    program.start(**SETTINGS)
    by_weight = {
        weight: program.create(word, workers=workers)
        for word, weight in (("light", LIGHT), ("heavy", HEAVY))
    }
    for weight, tenant in by_weight.items():
        path = f"/tenants/{tenant.id}/limits"
        assert program.call("PUT", path, {"weight": weight}).is_success
        pile_up(program, tenant, BACKLOG[weight])
    make_storing_slow(program, *by_weight.values())
    with gate_closed(program):
        for weight, tenant in by_weight.items():
            assert program.call("POST", f"/tenants/{tenant.id}/resume").is_success
            in_hand = min(BACKLOG[weight], PREFETCH)
            eventually(
                lambda of=tenant, most=in_hand: program.runtime(of)["unsettled"] == most,
                what="all that is taken at once",
            )
    eventually(
        lambda: all(
            program.runtime(tenant)["stored"] == BACKLOG[weight]
            for weight, tenant in by_weight.items()
        ),
        what="all messages stored",
    )
    heavy, light = shares(batches(program), by_weight[HEAVY], by_weight[LIGHT])
    assert heavy / light == pytest.approx(HEAVY / LIGHT, rel=0.1)
