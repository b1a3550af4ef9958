"""What a database has to give, and what is told while it takes nothing."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, closing
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from tenantry.database.errors import DatabaseUnavailableError, DatabaseUnfitError
from tenantry.database.migrations import migrate
from tenantry.database.pool import Database
from tenantry.database.server import Shares, look, take_share
from tenantry.domain import names
from tenantry.domain.events import TenantPaused
from tenantry.journal.port import ANY, JournalUnavailableError, Metadata
from tenantry.journal.postgres import PostgresEventStore
from tenantry.messages.port import StoreUnavailableError
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.messages.watch import DatabaseWatch
from tests.contract.test_message_store import incoming
from tests.services_postgres import admin_url
from tests.waiting import eventually

WANTED = Shares(pool=20, pages=8, front_pool=20, front_pages=8)


@pytest.fixture
def modest(empty_database_url: str) -> Iterator[str]:
    """The URL of a database that belongs to a user who is no superuser."""
    role = f"owner_{secrets.token_hex(4)}"
    parts = urlsplit(empty_database_url)
    execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'x'", f"ALTER DATABASE {parts.path[1:]} OWNER TO {role}"
    )
    yield urlunsplit(parts._replace(netloc=f"{role}:x@"))
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER".encode())
        connection.execute(f"DROP OWNED BY {role}".encode())
        connection.execute(f"DROP ROLE {role}".encode())


def execute(*statements: str) -> None:
    with psycopg.connect(admin_url(), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def user_of(url: str) -> str:
    return str(urlsplit(url).username)


def test_rights_that_are_taken_away_are_told_and_no_tenant_s_fault(modest: str) -> None:
    migrate(modest)
    with closing(Database(modest)) as database:
        database.open()
        store, journal = PostgresMessageStore(database), PostgresEventStore(database)
        watch = DatabaseWatch(database)
        store.create_partition("a")
        event = TenantPaused(tenant_id="a")

        def take(what: str, change: str) -> None:
            with database.connection() as connection:
                words = "FROM" if change == "REVOKE" else "TO"
                connection.execute(f"{change} ALL ON {what} {words} {user_of(modest)}".encode())

        watch.look()
        assert watch.trouble is None
        take("tenantry.tenant_counters", "REVOKE")
        with pytest.raises(StoreUnavailableError, match="permission denied"):
            store.store("a", [incoming("1")])
        watch.look()
        assert "permission denied for table tenant_counters" in str(watch.trouble)
        assert str(urlsplit(modest).path[1:]) not in str(watch.trouble)
        take("tenantry.tenant_counters", "GRANT")
        take("tenantry.events", "REVOKE")
        stream = names.journal_stream("a")
        with pytest.raises(JournalUnavailableError, match="permission denied"):
            journal.append(stream, [event], expected=ANY, metadata=Metadata(actor="test"))
        take("tenantry.events", "GRANT")
        watch.look()
        assert watch.trouble is None
        assert store.store("a", [incoming("1")]).stored == 1


def test_a_term_that_is_over_is_told(database_url: str) -> None:
    with closing(Database(database_url, term="daemon/77")) as database:
        database.open()
        watch = DatabaseWatch(database)
        watch.look()
        assert "the term daemon/77 is over" in str(watch.trouble)


@pytest.mark.parametrize("of", ["ROLE", "DATABASE"])
def test_a_user_s_or_a_database_s_limit_is_what_is_shared_out(modest: str, of: str) -> None:
    name = user_of(modest) if of == "ROLE" else urlsplit(modest).path[1:]
    with closing(Database(modest, pool_size=2)) as database:
        database.open()
        execute(f"ALTER {of} {name} CONNECTION LIMIT 14")
        with database.connection(), database.listen_connection():
            # A second of the pool's, beside these two. What was closed still counts for a moment.
            room = eventually(
                lambda: (seen := look(database)).free == 12 and seen, what="room for twelve"
            )
        assert "limit of 14" in room.narrowest
        eventually(lambda: 11 <= take_share(database, WANTED).total <= 12, what="a share of it")
        execute(f"ALTER {of} {name} CONNECTION LIMIT 8")
        with pytest.raises(DatabaseUnfitError, match=r"limit of 8.* are needed; raise"):
            take_share(database, WANTED)


@pytest.mark.parametrize("of", ["ROLE", "DATABASE"])
def test_too_many_connections_is_an_outage_that_says_which_limit_to_raise(
    modest: str, of: str
) -> None:
    name = user_of(modest) if of == "ROLE" else urlsplit(modest).path[1:]
    execute(f"ALTER {of} {name} CONNECTION LIMIT 2")
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(closing(psycopg.connect(modest)))
        with pytest.raises(DatabaseUnavailableError) as caught:
            Database(modest).open(0)
    assert f"ALTER {of} ... CONNECTION LIMIT" in str(caught.value)
    assert not caught.value.permanent
