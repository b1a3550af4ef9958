"""Tenants that compete get their shares by weight: on one node, and roughly across nodes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from typing import NamedTuple

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg import sql

from tenantry.domain import names
from tenantry.nodes.membership import place
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


ONE_BY_ONE = """
CREATE TABLE public.turn (taken bigint);
INSERT INTO public.turn VALUES (0);
CREATE FUNCTION public.one_by_one() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN UPDATE public.turn SET taken = taken + 1; PERFORM pg_sleep(0.04); RETURN NULL; END $$
"""
"""Makes all batches of all nodes wait for one another."""

LONG_BACKLOG = 16_000
"""Lasts for several trials: the first may say little where other processes are busy."""

ACROSS_NODES = {
    "TENANTRY_PROCESSES": "2",
    "TENANTRY_CONSUMER_BATCH_SIZE": "20",
}


def places(program: Program) -> dict[str, str]:
    """Choose a tenant's name for each of the two nodes, once both are there."""

    def active() -> list[str] | None:
        there = [one["name"] for one in program.get("/nodes")["data"] if one["state"] == "active"]
        return there if len(there) == 2 else None

    weights = dict.fromkeys(eventually(active, what="two nodes"), 1.0)
    words = (f"t{number}" for number in range(1000))
    found: dict[str, str] = {}
    while len(found) < len(weights):
        word = next(words)
        found.setdefault(place(program.name(word), weights) or "", word)
    return found


def stored(program: Program) -> dict[str, int]:
    """Count the rows of each tenant."""
    with psycopg.connect(program.database_url) as connection:
        rows = connection.execute("SELECT tenant_id, count(*) FROM public.messages GROUP BY 1")
        return dict(rows.fetchall())


def held_to(program: Program) -> dict[str, float]:
    """Return to what each node holds its backlogs; without those that are late to answer."""
    families = text_string_to_metric_families(program.call("GET", "/metrics").text)
    samples = next(one.samples for one in families if one.name == "tenantry_backlogs_held_to")
    return {one.labels["node"]: one.value for one in samples}


def test_a_node_whose_tenant_weighs_less_is_held_while_another_nodes_tenant_gains_by_it(
    database_url: str,
) -> None:
    with Program(None, database_url) as program:
        program.start(**ACROSS_NODES)
        (light_node, light_word), (heavy_node, heavy_word) = sorted(places(program).items())
        by_weight = {
            weight: program.create(word, workers=4)
            for word, weight in ((light_word, LIGHT), (heavy_word, HEAVY))
        }
        for weight, tenant in by_weight.items():
            path = f"/tenants/{tenant.id}/limits"
            assert program.call("PUT", path, {"weight": weight}).is_success
            pile_up(program, tenant, LONG_BACKLOG)
        with psycopg.connect(program.database_url, autocommit=True) as connection:
            connection.execute(ONE_BY_ONE)
            tables = [
                sql.Identifier("tenantry", names.partition_table_name(one.id))
                for one in by_weight.values()
            ]
            for table in tables:
                connection.execute(
                    sql.SQL(
                        "CREATE TRIGGER one_by_one AFTER INSERT ON {}"
                        " FOR EACH STATEMENT EXECUTE FUNCTION public.one_by_one()"
                    ).format(table)
                )
            for tenant in by_weight.values():
                assert program.call("POST", f"/tenants/{tenant.id}/resume").is_success
            assert {one["node"] for one in program.wait_logged("backlogs.held")} == {light_node}
            eventually(lambda: held_to(program).get(light_node, 0) > 0, what="a hold")
            assert held_to(program).get(heavy_node, 0) == 0
            for table in tables:
                connection.execute(sql.SQL("DROP TRIGGER one_by_one ON {}").format(table))
        eventually(
            lambda: stored(program) == {one.id: LONG_BACKLOG for one in by_weight.values()},
            what="all messages stored",
        )
        eventually(lambda: held_to(program).get(light_node) == 0, what="no hold any more")
        program.check_no_traceback()
