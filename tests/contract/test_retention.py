"""What a tenant's retention removes, counts and remembers, on a real PostgreSQL."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenantry.audit.balance import Account, of_books
from tenantry.audit.postgres import PostgresAccounts
from tenantry.database.pool import Database
from tenantry.messages.port import Incoming, Order
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.messages.retention import Retention
from tenantry.messages.retention_postgres import PostgresMessageRemovals
from tests.depth import examples
from tests.fakes.handling import World
from tests.fakes.handling import incoming as handled
from tests.fakes.messages import TENANT, incoming
from tests.waiting import DEADLINE, eventually

DAY = 24 * 3600


def limit(database: Database, tenant_id: str = TENANT, **limits: int) -> None:
    """Write a tenant's limits into the read model, as its events would."""
    state = {"limits": {f"retention_{name}": value for name, value in limits.items()}}
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO tenantry.tenants (id, version, lifecycle, state, created_at, updated_at)"
            " VALUES (%s, 1, 'active', %s, now(), now())"
            " ON CONFLICT (id) DO UPDATE SET state = excluded.state",
            [tenant_id, json.dumps(state)],
        )


def execute(database: Database, query: str, *parameters: object) -> Any:
    with database.connection() as connection:
        cursor = connection.execute(query.encode(), parameters)
        return cursor.fetchall() if cursor.description else None


def age(database: Database, ids: Sequence[str], seconds: int) -> None:
    """Make stored messages older by so many seconds."""
    execute(
        database,
        "UPDATE public.messages SET created_at = created_at - %s * interval '1 second'"
        " WHERE id = ANY(%s)",
        seconds,
        list(ids),
    )


def names(*numbers: int) -> list[str]:
    return [str(number) for number in numbers]


def batch(*numbers: int) -> list[Incoming]:
    return [incoming(name) for name in names(*numbers)]


def account(database: Database, tenant_id: str = TENANT) -> Account:
    found = PostgresAccounts(database).read(tenant_id, seconds=DEADLINE)
    assert found is not None
    return found


def positions(store: PostgresMessageStore, **how: Any) -> list[int]:
    return [row.position for row in store.page(TENANT, limit=1000, **how)]


def retention(database: Database, *, size: int = 1000) -> Retention:
    removals = PostgresMessageRemovals(database)
    return Retention(removals, mine=lambda _: True, batch=size, rest=0.0)


def pass_periods(database: Database, count: int) -> None:
    """Make remembered ids older by `count` periods of a slice."""
    execute(database, "UPDATE tenantry.remembered_slices SET period = period - %s", count)


def test_what_is_too_old_goes_and_what_is_not_stays(
    store: PostgresMessageStore, database: Database
) -> None:
    store.store(TENANT, batch(1, 2, 3, 4, 5))
    age(database, names(1, 2, 3), 8 * DAY)
    age(database, names(4), 6 * DAY)
    limit(database, seconds=7 * DAY)
    retention(database).turn()
    assert positions(store) == [4, 5]
    removal = PostgresMessageRemovals(database).remove(TENANT, 10)
    assert (removal.aged, removal.more) == (0, False)
    assert removal.due == pytest.approx(DAY, abs=DEADLINE)


def test_what_is_too_much_goes_the_oldest_first_a_few_at_a_time(
    store: PostgresMessageStore, database: Database
) -> None:
    store.store(TENANT, batch(*range(1, 31)))
    limit(database, rows=7)
    removals = PostgresMessageRemovals(database)
    assert removals.limited()[TENANT].excess == 23
    assert removals.remove(TENANT, 10).more
    assert positions(store) == list(range(11, 31))
    retention(database, size=10).turn()
    assert positions(store) == list(range(24, 31))


def test_both_limits_hold_and_each_message_is_counted_once(
    store: PostgresMessageStore, database: Database
) -> None:
    store.store(TENANT, batch(*range(1, 11)))
    age(database, names(1, 2, 3, 4), DAY + 60)
    limit(database, seconds=DAY, rows=3)
    kept = retention(database)
    kept.turn()
    found = account(database)
    assert (found.rows, found.removed, found.aged, found.crowded) == (3, 7, 4, 3)
    assert list(of_books(found)) == []
    assert kept.removed() == {(TENANT, "age"): 4, (TENANT, "rows"): 3}


def test_rows_deleted_by_hand_show_beside_those_that_were_removed(
    store: PostgresMessageStore, database: Database
) -> None:
    store.store(TENANT, batch(*range(1, 11)))
    limit(database, rows=5)
    retention(database).turn()
    execute(database, "DELETE FROM public.messages WHERE id IN ('9', '10')")
    retention(database).turn()
    (difference,) = of_books(account(database))
    assert difference.text == (
        f"2 rows of tenant {TENANT} are missing: counted 10 stored less 5 removed, 3 rows"
    )


def test_readers_go_on_behind_what_was_removed_and_positions_rise_on(
    store: PostgresMessageStore, database: Database
) -> None:
    store.store(TENANT, batch(*range(1, 21)))
    limit(database, rows=5)
    retention(database).turn()
    # A reader that had reached the tenth message, in either direction, and by topic.
    assert positions(store, after=10) == [16, 17, 18, 19, 20]
    assert positions(store, after=10, topic="default") == [16, 17, 18, 19, 20]
    assert positions(store, after=18, order=Order.DESCENDING) == [17, 16]
    assert positions(store, after=16, order=Order.DESCENDING) == []
    store.store(TENANT, batch(21))
    assert positions(store, after=20) == [21]


def test_an_id_is_remembered_for_a_day_beyond_its_row_and_not_for_ever(
    store: PostgresMessageStore, database: Database
) -> None:
    store.store(TENANT, batch(1, 2, 3))
    limit(database, rows=1)
    retention(database).turn()
    for _ in range(2):
        again = store.store(TENANT, [*batch(1, 2, 3, 4), incoming("1", b"[]"), incoming(None)])
        assert (again.stored, again.duplicates) in {(2, 4), (1, 5)}
        retention(database).turn()
        # Half a day later another slice takes the removed ids; this slice's turn is two later.
        pass_periods(database, 1)
    found = account(database)
    assert list(of_books(found)) == []
    for number in range(10, 12):
        store.store(TENANT, batch(number))
        retention(database).turn()
        pass_periods(database, 1)
    assert store.store(TENANT, batch(1)).stored == 1


def test_after_days_without_a_removal_nothing_is_looked_up_any_more(
    store: PostgresMessageStore, database: Database
) -> None:
    store.store(TENANT, batch(1, 2))
    limit(database, rows=1)
    retention(database).turn()
    remembers = "SELECT remembers IS NOT NULL FROM tenantry.tenant_counters"
    assert execute(database, remembers) == [(True,)]
    execute(database, "UPDATE tenantry.removals SET latest = latest - interval '51 hours'")
    retention(database).turn()
    assert execute(database, remembers) == [(True,)]
    execute(database, "UPDATE tenantry.removals SET latest = latest - interval '2 hours'")
    retention(database).turn()
    assert execute(database, remembers) == [(False,)]
    # Remembering begins again with the next removal.
    store.store(TENANT, batch(3))
    retention(database).turn()
    assert store.store(TENANT, batch(2)).duplicates == 1


def test_an_id_of_one_tenant_is_remembered_for_no_other_and_not_for_the_next_of_its_id(
    store: PostgresMessageStore, database: Database
) -> None:
    store.create_partition("u")
    for tenant in (TENANT, "u"):
        limit(database, tenant, rows=1)
    store.store(TENANT, batch(1, 2))
    store.store("u", batch(8, 9))
    retention(database).turn()
    assert store.store("u", batch(1)).stored == 1
    store.drop_partition(TENANT, retain=False)
    store.create_partition(TENANT)
    store.store(TENANT, batch(1, 5))
    retention(database).turn()
    assert store.store(TENANT, batch(2)).stored == 1
    assert list(of_books(account(database))) == []


def test_a_message_that_comes_again_while_its_row_is_being_removed_is_a_duplicate(
    store: PostgresMessageStore, database: Database, database_url: str
) -> None:
    store.store(TENANT, batch(1, 2, 3))
    limit(database, rows=2)
    retention(database).turn()
    limit(database, rows=1)
    found: list[tuple[int, int]] = []

    def come_again() -> None:
        result = store.store(TENANT, batch(2, 4))
        found.append((result.stored, result.duplicates))

    storing = threading.Thread(target=come_again)
    with psycopg.connect(database_url) as removing:
        removing.execute("SELECT tenantry.remove_messages(%s, 10)", [TENANT])
        storing.start()
        # The insert has looked at the remembered ids, and waits for the row to go or to stay.
        eventually(
            lambda: (
                execute(
                    database,
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND (wait_event_type, wait_event) = ('Lock', 'transactionid')",
                )
                == [(1,)]
            ),
            what="a store that waits",
        )
    storing.join(DEADLINE)
    assert found == [(1, 1)]
    assert list(of_books(account(database))) == []


def test_a_removal_that_outlives_its_daemon_and_the_next_one_s_remove_each_message_once(
    store: PostgresMessageStore, database: Database, database_url: str
) -> None:
    store.store(TENANT, batch(*range(1, 9)))
    limit(database, rows=7)
    retention(database).turn()
    limit(database, rows=3)
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock' AND strpos(query, 'remove_messages') > 0"
    )

    def removal_waits(count: int) -> None:
        eventually(lambda: execute(database, waiting) == [(count,)], what="a removal that waits")

    former = psycopg.connect(database_url, autocommit=True)
    next_one = threading.Thread(target=retention(database).turn)
    with psycopg.connect(database_url) as holding:
        holding.execute("SELECT FROM public.messages WHERE id = '4' FOR UPDATE")
        former.pgconn.send_query_params(
            b"SELECT tenantry.remove_messages($1, 10)", [TENANT.encode()]
        )
        removal_waits(1)
        former.close()  # as kill -9 does: the server notices when it next sends something
        next_one.start()
        removal_waits(2)
    next_one.join(DEADLINE)
    eventually(lambda: execute(database, waiting) == [(0,)], what="an end")
    assert positions(store) == [6, 7, 8]
    found = account(database)
    assert (found.stored, found.removed, found.crowded) == (8, 5, 5)
    assert list(of_books(found)) == []
    assert store.store(TENANT, batch(*range(1, 9))).duplicates == 8


def test_what_was_lifted_or_given_away_removes_nothing(
    store: PostgresMessageStore, database: Database, database_url: str
) -> None:
    store.store(TENANT, batch(1, 2, 3))
    limit(database, rows=1)
    removals = PostgresMessageRemovals(database)
    execute(database, "INSERT INTO tenantry.owners (tenant_id, node) VALUES (%s, 'b')", TENANT)
    execute(database, "INSERT INTO tenantry.terms (scope, number) VALUES ('node:a', 1)")
    with psycopg.connect(database_url, autocommit=True) as former:
        former.execute("SET tenantry.term = 'node:a/1'")
        row = former.execute(
            "SELECT aged + crowded FROM tenantry.remove_messages(%s, 10)", [TENANT]
        )
        assert row.fetchone() == (0,)
    limit(database)
    assert removals.limited() == {}
    assert removals.remove(TENANT, 10).crowded == 0
    assert positions(store) == [1, 2, 3]


numbers = st.lists(st.integers(0, 12), min_size=1, max_size=6)
steps = st.lists(numbers | st.integers(1, 6), min_size=3, max_size=12)


@given(steps=steps)
@settings(
    max_examples=examples(12, 100), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_is_stored_and_removed_each_id_is_stored_once_and_the_newest_are_kept(
    store: PostgresMessageStore, database: Database, steps: list[list[int] | int]
) -> None:
    store.drop_partition(TENANT, retain=False)
    store.create_partition(TENANT)
    kept: list[str] = []
    ever: set[str] = set()
    for step in steps:
        if isinstance(step, int):
            limit(database, rows=step)
            retention(database, size=2).turn()
            del kept[:-step]
        else:
            new = [one for one in dict.fromkeys(names(*step)) if one not in ever]
            result = store.store(TENANT, batch(*step))
            assert (result.stored, result.duplicates) == (len(new), len(step) - len(new))
            kept += new
            ever.update(new)
    assert [row.id for row in store.page(TENANT)] == kept
    assert [row.id for row in store.page(TENANT, order=Order.DESCENDING)] == kept[::-1]
    assert list(of_books(account(database))) == []


def test_a_tenant_whose_removal_fails_does_not_keep_others_from_theirs(
    store: PostgresMessageStore, database: Database
) -> None:
    store.create_partition("a")
    execute(database, "DROP TABLE tenantry.messages_a")
    execute(database, "UPDATE tenantry.tenant_counters SET stored = 9 WHERE tenant_id = 'a'")
    store.store(TENANT, batch(1, 2))
    for tenant in ("a", TENANT):
        limit(database, tenant, rows=1)
    retention(database).turn()
    assert positions(store) == [2]


def test_a_handler_does_not_see_a_message_whose_row_was_removed(world: World) -> None:
    store = world.store()
    store.store(TENANT, [handled("1"), handled("2")])
    limit(world.database, rows=1)
    retention(world.database).turn()
    again = store.store(TENANT, [handled("1"), handled("2"), handled("3")])
    assert (again.stored, again.duplicates) == (1, 2)
    assert [one.id for one in world.seen] == ["1", "2", "3"]
