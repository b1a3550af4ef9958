"""Counts of refused calls on a real PostgreSQL: of all nodes together, of existing tenants."""

from __future__ import annotations

from tenantry.database.pool import Database
from tenantry.messages.port import Whose
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.metrics.postgres import PostgresRefusals
from tenantry.metrics.refusals import Reason, Refused
from tests.fakes.messages import TENANT

RATE, BACKLOG = Refused(TENANT, 1, Reason.RATE), Refused(TENANT, 1, Reason.BACKLOG)


def rows(database: Database) -> int:
    with database.connection() as connection:
        row = connection.execute("SELECT count(*) FROM tenantry.refused_publishes").fetchone()
    assert row is not None
    return int(row[0])


def test_what_several_count_is_added_by_tenant_and_reason(
    store: PostgresMessageStore, database: Database
) -> None:
    store.create_partition("other")
    one, another = PostgresRefusals(database), PostgresRefusals(database)
    assert one.totals() == {}
    one.add({RATE: 2, BACKLOG: 1, RATE._replace(tenant_id="other"): 5})
    another.add({RATE: 3})
    assert one.totals() == {(TENANT, "rate"): 5, (TENANT, "backlog"): 1, ("other", "rate"): 5}


def test_of_a_tenant_that_goes_nothing_is_left_and_the_next_of_its_id_begins_anew(
    store: PostgresMessageStore, database: Database
) -> None:
    refusals = PostgresRefusals(database)
    refusals.add({RATE: 2, RATE._replace(tenant_id="nobody"): 1})
    store.drop_partition(TENANT, retain=False)
    assert rows(database) == 0
    store.create_partition(TENANT, Whose(2, None))
    # Another node counts for the former tenant: it does not know of the next incarnation yet.
    refusals.add({RATE: 2})
    assert refusals.totals() == {}
    refusals.add({RATE._replace(incarnation=2): 1})
    assert refusals.totals() == {(TENANT, "rate"): 1}
