"""Books in a real PostgreSQL: counts that advance with what they count, and what hands can do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from uuid import uuid4

import pytest

from tenantry.audit.balance import Account, Kind, of_books
from tenantry.audit.port import CountingTookTooLongError
from tenantry.audit.postgres import PostgresAccounts
from tenantry.database.migrations import migrate, migrations
from tenantry.database.pool import Database
from tenantry.dead_letters.port import Intent, RejectedMessage, Work
from tenantry.dead_letters.postgres import PostgresDeadLetterIndex
from tenantry.messages.port import Incoming
from tenantry.messages.postgres import PostgresMessageStore
from tests.depth import examples
from tests.waiting import DEADLINE

TENANT = "a-tenant-whose-id-has-40-characters-0000"


def incoming(identity: str, body: bytes = b"{}") -> Incoming:
    return Incoming(identity, "default", 0, body, "application/json", None, None)


def judged(identity: str) -> RejectedMessage:
    return RejectedMessage(incoming(identity, b"no"), "not_json", "no JSON", 1)


@pytest.fixture
def store(database: Database) -> PostgresMessageStore:
    store = PostgresMessageStore(database)
    store.create_partition(TENANT)
    return store


@pytest.fixture
def letters(store: PostgresMessageStore, database: Database) -> PostgresDeadLetterIndex:
    return PostgresDeadLetterIndex(database)


def read(database: Database) -> Account:
    account = PostgresAccounts(database).read(TENANT, seconds=20)
    assert account is not None
    return account


def texts(database: Database) -> list[str]:
    return [one.text for one in of_books(read(database))]


def test_what_is_stored_twice_and_refused_adds_up(
    store: PostgresMessageStore, letters: PostgresDeadLetterIndex, database: Database
) -> None:
    store.store(TENANT, [incoming(str(n)) for n in range(10)])
    store.store(TENANT, [incoming("1"), incoming("10"), incoming("bad", b"no")])
    letters.add(TENANT, [judged("bad")])
    account = read(database)
    assert (account.stored, account.duplicates, account.dead_lettered) == (11, 1, 1)
    assert (account.rows, account.newest) == (11, account.position)
    assert texts(database) == []


def test_three_rows_deleted_by_hand_show_as_three(
    store: PostgresMessageStore, database: Database
) -> None:
    store.store(TENANT, [incoming(str(n)) for n in range(1000)])
    with database.connection() as connection:
        connection.execute("DELETE FROM public.messages WHERE id IN ('1', '500', '999')")
    (found,) = of_books(read(database))
    assert found.text == (f"3 rows of tenant {TENANT} are missing: counted 1000 stored, 997 rows")
    assert (found.kind, found.size) == (Kind.ROWS, 3)


def test_rows_put_in_by_hand_show(store: PostgresMessageStore, database: Database) -> None:
    store.store(TENANT, [incoming("1")])
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO public.messages (tenant_id, id, position, topic, partition, body,"
            " created_at) VALUES (%s, 'x', 1000, 'default', 0, '', now())",
            [TENANT],
        )
    assert texts(database) == [
        f"1 row of tenant {TENANT} is too many: counted 1 stored, 2 rows",
        f"tenant {TENANT} has a row at position 1000, and 1 was the last one given out",
    ]


def test_letters_are_counted_as_they_come_and_as_they_are_settled(
    letters: PostgresDeadLetterIndex, database: Database
) -> None:
    ids = [one.id for one in letters.add(TENANT, [judged(str(n)) for n in range(6)])]
    letters.add(TENANT, [judged("0")])  # come again: the same letter
    for some, work in ((ids[:2], Work.REPLAY), (ids[2:3], Work.DISCARD)):
        letters.begin(TENANT, some, Intent(uuid4(), work))
        letters.settle(TENANT, some)
        letters.settle(TENANT, some)  # settled already
    account = read(database)
    assert (account.kept, account.replayed, account.discarded) == (6, 2, 1)
    assert (account.listed, account.settled) == (3, 3)
    letters.gone(TENANT, ids[:3])
    assert read(database).settled == 0
    letters.add(TENANT, [judged("2")])  # discarded, and come again: another letter
    assert (read(database).kept, read(database).listed) == (7, 4)
    assert texts(database) == []
    assert letters.forget_missing(TENANT, browse=uuid4(), older_than=-1) == 4
    assert (read(database).missing, read(database).listed) == (4, 0)
    assert texts(database) == []


def test_letters_deleted_by_hand_show(letters: PostgresDeadLetterIndex, database: Database) -> None:
    letters.add(TENANT, [judged(str(n)) for n in range(3)])
    with database.connection() as connection:
        connection.execute("DELETE FROM tenantry.dead_letters WHERE message_id = '1'")
    assert texts(database) == [
        f"1 dead letter of tenant {TENANT} is missing: counted 3, 2 are listed"
    ]


def test_a_deletion_that_retains_the_rows_leaves_books_that_add_up(
    letters: PostgresDeadLetterIndex, store: PostgresMessageStore, database: Database
) -> None:
    store.store(TENANT, [incoming("1")])
    letters.add(TENANT, [judged("2")])
    store.drop_partition(TENANT, retain=True)
    assert (read(database).rows, read(database).discarded) == (1, 1)
    assert texts(database) == []


def test_a_dropped_tenant_has_no_books(store: PostgresMessageStore, database: Database) -> None:
    store.store(TENANT, [incoming("1")])
    store.drop_partition(TENANT, retain=False)
    assert PostgresAccounts(database).read(TENANT, seconds=20) is None


def test_a_partition_dropped_by_hand_shows_with_all_its_rows(
    store: PostgresMessageStore, database: Database
) -> None:
    store.store(TENANT, [incoming("1"), incoming("2")])
    with database.connection() as connection:
        connection.execute(f'DROP TABLE tenantry."messages_{TENANT}"'.encode())
    assert texts(database) == [f"2 rows of tenant {TENANT} are missing: counted 2 stored, 0 rows"]


@pytest.fixture
def pouring(store: PostgresMessageStore) -> Iterator[None]:
    """Two writers that never rest."""
    stopping = threading.Event()

    def write(name: str) -> None:
        number = 0
        while not stopping.is_set():
            number += 1
            batch = [incoming(f"{name}-{number}-{n}") for n in range(20)]
            store.store(TENANT, [*batch, incoming(f"{name}-{number}-0")])

    writers = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for writer in writers:
        writer.start()
    yield
    stopping.set()
    for writer in writers:
        writer.join(DEADLINE)


@pytest.mark.usefixtures("pouring")
def test_it_adds_up_at_every_moment_while_messages_pour_in(database: Database) -> None:
    seen = set()
    for _ in range(examples(15, 200)):
        assert texts(database) == []
        seen.add(read(database).stored)
    assert len(seen) > 1  # they did pour in


def test_counting_that_takes_too_long_is_given_up(
    store: PostgresMessageStore, database: Database
) -> None:
    store.store(TENANT, [incoming("1")])
    with database.connection() as connection, connection.transaction():
        connection.execute(f'LOCK TABLE tenantry."messages_{TENANT}"'.encode())
        with pytest.raises(CountingTookTooLongError, match=TENANT):
            PostgresAccounts(database).read(TENANT, seconds=0.05)


def test_counts_begin_with_what_is_there_when_they_come(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    database.open()
    try:
        migrate(database, known=[one for one in migrations() if one.number < 6])
        with database.connection() as connection:
            connection.execute("SELECT tenantry.create_messages_partition(%s)", [TENANT])
            connection.execute(
                "SELECT tenantry.store_messages(%s, %s, %s, %s, %s::jsonb[], %s::bytea[],"
                " %s::text[], %s::jsonb[], %s::timestamptz[], 0)",
                [TENANT, ["1", "2", "2"], ["t"] * 3, [0] * 3, ["{}"] * 3, *([[None] * 3] * 4)],
            )
            connection.execute("DELETE FROM public.messages WHERE id = '1'")
            connection.execute(
                "INSERT INTO tenantry.dead_letters (tenant_id, id, fingerprint, topic, partition,"
                " reason, error, attempts, size, settled) SELECT %s, gen_random_uuid(),"
                " n::text::bytea, 't', 0, '', '', 1, 0, n = 1 FROM generate_series(1, 3) AS n",
                [TENANT],
            )
        migrate(database)
        account = read(database)
        assert (account.stored, account.duplicates, account.removed, account.rows) == (2, 1, 1, 1)
        assert (account.kept, account.listed, account.settled) == (2, 2, 1)
        assert texts(database) == []
        with database.connection() as connection:
            guarded = connection.execute(
                "SELECT relname FROM pg_class WHERE relrowsecurity ORDER BY relname"
            ).fetchall()
        assert guarded == [("messages",), (f"messages_{TENANT}",)]
        PostgresMessageStore(database).store(TENANT, [incoming("3")])
        assert texts(database) == []
    finally:
        database.close()
